"""CoSlow and CoI3D: 3-D residual networks on a stream of images."""

from collections.abc import Sequence

from cojax.combinators.sequential import Sequential
from cojax.layers.activation import ReLU
from cojax.layers.conv import Conv3d
from cojax.layers.norm import BatchNorm3d
from cojax.layers.pooling import AvgPool3d, MaxPool3d
from cojax.models.video import classifier, pointwise, pooled_size, residual_block
from cojax.module import CoModule

Depth = int | Sequence[int]

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def coslow(
    image_size: int = 256,
    pool_size: int = 64,
    num_classes: int = 400,
    *,
    depth: Depth = 50,
    width_factor: float = 1.0,
    dropout: float = 0.5,
    in_channels: int = 3,
) -> Sequential:
    """CoSlow: the slow pathway of SlowFast, a ResNet with temporal kernels in its last two stages.

    With the default depth it has 32,454,096 parameters.

    | pool_size | receptive field | delay | padding | stride |
    |-----------|-----------------|-------|---------|--------|
    | 64        | 82              | 72    | 9       | 1      |
    | 8         | 26              | 16    | 9       | 1      |

    Source: Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019,
    https://arxiv.org/abs/1812.03982; Hedegaard and Iosifidis, "Continual 3D Convolutional Neural
    Networks for Real-time Processing of Videos", ECCV 2022, https://arxiv.org/abs/2106.00050.
    Modules are named as in the latter, so :func:`cojax.load_torch` loads its checkpoints;
    :func:`load_pretrained` loads others.

    Example::

        net = co.models.coslow()
        assert (net.receptive_field, net.delay) == (82, 72)

        step = jax.ShapeDtypeStruct((1, 3, 256, 256), "float32")
        assert net.output_spec(step).shape == (1, 400)

    Args:
      image_size: the side length of the images, in pixels. Larger images work as well: the outputs
        at several positions are averaged.
      pool_size: the number of steps that the head averages.
      num_classes: the number of classes.
      depth: 50 or 101 layers, or the number of blocks in each of the four stages.
      width_factor: the number of channels relative to ResNet.
      dropout: the probability of dropping a feature before the projection, in training.
      in_channels: the number of channels of the images.

    Returns:
      A network from clips ``(B, in_channels, T, H, W)`` to ``(B, num_classes, T')``, and from steps
      ``(B, in_channels, H, W)`` to ``(B, num_classes)``: probabilities, or logits with
      ``train=True``.

    Raises:
      ValueError: for sizes that are not positive, or another depth.
    """
    trunk, features = _trunk(1, ((1,), (1,), (3,), (3,)), 1, depth, width_factor, in_channels)
    head = _head(features, image_size, pool_size, num_classes, dropout)
    return Sequential({**trunk, "5": head})


def coi3d(
    image_size: int = 224,
    pool_size: int = 64,
    num_classes: int = 400,
    *,
    depth: Depth = 50,
    width_factor: float = 1.0,
    dropout: float = 0.5,
    in_channels: int = 3,
) -> Sequential:
    """CoI3D: an inflated ResNet, which emits an output every second step.

    With the default depth it has 28,043,472 parameters.

    | pool_size | receptive field | delay | padding | stride |
    |-----------|-----------------|-------|---------|--------|
    | 64        | 98              | 80    | 17      | 2      |
    | 8         | 42              | 24    | 17      | 2      |

    Source: Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics
    Dataset", CVPR 2017, https://arxiv.org/abs/1705.07750; Hedegaard and Iosifidis, "Continual 3D
    Convolutional Neural Networks for Real-time Processing of Videos", ECCV 2022,
    https://arxiv.org/abs/2106.00050. Modules are named as in the latter.

    Example::

        net = co.models.coi3d(pool_size=8)
        assert (net.receptive_field, net.delay, net.stride) == (42, 24, (2,))

        step = jax.ShapeDtypeStruct((1, 3, 224, 224), "float32")
        assert net.output_spec(step).shape == (1, 400)

    Args:
      image_size: the side length of the images, in pixels, as for :func:`coslow`.
      pool_size: the number of steps that the head averages; every second one reaches it.
      num_classes: the number of classes.
      depth: 50 or 101 layers, or the number of blocks in each of the four stages.
      width_factor: the number of channels relative to ResNet.
      dropout: the probability of dropping a feature before the projection, in training.
      in_channels: the number of channels of the images.

    Returns:
      A network with inputs and outputs as for :func:`coslow`.

    Raises:
      ValueError: as for :func:`coslow`, and for a ``pool_size`` below 2.
    """
    if pool_size < 2:
        raise ValueError(f"{pool_size=} must be at least 2: every second step reaches the head")
    trunk, features = _trunk(5, ((3,), (3, 1), (3, 1), (1, 3)), 2, depth, width_factor, in_channels)
    head = _head(features, image_size, pool_size // 2, num_classes, dropout)
    return Sequential({**trunk, "5": head})


def _trunk(
    stem_kernel: int,
    kernels: Sequence[Sequence[int]],
    temporal_stride: int,
    depth: Depth,
    width_factor: float,
    in_channels: int,
) -> tuple[dict[str, CoModule], int]:
    """The stem and the stages, and the number of channels that they end in.

    The pattern of temporal kernels of a stage is repeated over its blocks; the temporal stride is
    that of a pool after the first stage.
    """
    if isinstance(depth, int) and depth not in _BLOCKS:
        raise ValueError(f"{depth=} must be one of {sorted(_BLOCKS)}, or the blocks of each stage")
    blocks = _BLOCKS[depth] if isinstance(depth, int) else tuple(depth)
    width = int(64 * width_factor)
    layers: dict[str, CoModule] = {"0": _stem(in_channels, width, stem_kernel)}
    channels = width
    for number, (count, pattern) in enumerate(zip(blocks, kernels, strict=True), 1):
        inner = width * 2 ** (number - 1)
        stage = {}
        for i in range(count):
            stride = 2 if i == 0 and number > 1 else 1
            branch = _bottleneck(channels, inner, stride, pattern[i % len(pattern)])
            stage[f"pathway0_res{i}"] = residual_block(branch, channels, 4 * inner, stride)
            channels = 4 * inner
        layers[str(number)] = Sequential(stage)
        if number == 1 and temporal_stride > 1:
            layers["pathway0_pool"] = MaxPool3d((temporal_stride, 1, 1))
    return layers, channels


def _stem(in_channels: int, channels: int, kernel_size: int) -> Sequential:
    padding = (kernel_size // 2, 3, 3)
    conv = Conv3d(in_channels, channels, (kernel_size, 7, 7), (1, 2, 2), padding, bias=False)
    pool = MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    return Sequential({"conv": conv, "norm": BatchNorm3d(channels), "relu": ReLU(), "pool": pool})


def _bottleneck(in_channels: int, inner: int, stride: int, kernel_size: int) -> Sequential:
    temporal = (kernel_size, 1, 1)
    along_time = Conv3d(in_channels, inner, temporal, 1, (kernel_size // 2, 0, 0), bias=False)
    across_space = Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    return Sequential(
        {
            "conv_a": along_time,
            "norm_a": BatchNorm3d(inner),
            "relu_a": ReLU(),
            "conv_b": across_space,
            "norm_b": BatchNorm3d(inner),
            "relu_b": ReLU(),
            "conv_c": pointwise(inner, 4 * inner),
            "norm_c": BatchNorm3d(4 * inner),
        }
    )


def _head(
    features: int, image_size: int, pooled_steps: int, num_classes: int, dropout: float
) -> Sequential:
    size = pooled_size(image_size)
    pool = AvgPool3d((pooled_steps, size, size), stride=1)
    return Sequential({"pool": pool, **classifier(features, num_classes, dropout)})
