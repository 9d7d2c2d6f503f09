"""CoX3D: X3D, which recognises actions with few multiplications, on a stream of images."""

import math

import jax.numpy as jnp
from jax import Array

from cojax.combinators.residual import Residual
from cojax.combinators.sequential import Sequential
from cojax.layers.activation import ReLU, Sigmoid, SiLU
from cojax.layers.arguments import require_one_of
from cojax.layers.closure import Lambda
from cojax.layers.conv import Conv3d
from cojax.layers.norm import BatchNorm3d
from cojax.layers.pooling import AdaptiveAvgPool3d, AvgPool3d
from cojax.models.video import classifier, pointwise, pooled_size, residual_block
from cojax.module import CoModule
from cojax.timing import Timing

_STAGE_CHANNELS = (12, 24, 48, 96)
_STAGE_BLOCKS = (1, 2, 5, 3)


def cox3d(
    image_size: int = 224,
    pool_size: int = 64,
    num_classes: int = 400,
    *,
    width_factor: float = 2.0,
    depth_factor: float = 2.2,
    bottleneck_factor: float = 2.25,
    se_scope: str = "frame",
    head_features: int = 2048,
    dropout: float = 0.5,
    in_channels: int = 3,
) -> Sequential:
    """CoX3D of any size; :func:`cox3d_s`, :func:`cox3d_m` and :func:`cox3d_l` are the paper's.

    The network has a stem, four stages of residual blocks with depthwise 3x3x3 convolutions,
    squeeze-and-excitation (SE) in every other block, and a head that averages the last
    ``pool_size`` steps.

    Source: Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", CVPR
    2020, https://arxiv.org/abs/2004.04730; Hedegaard and Iosifidis, "Continual 3D Convolutional
    Neural Networks for Real-time Processing of Videos", ECCV 2022,
    https://arxiv.org/abs/2106.00050. Modules are named as in the latter, so
    :func:`cojax.load_torch` loads its checkpoints; :func:`load_pretrained` loads others.

    Args:
      image_size: the side length of the images, in pixels. Larger images work as well: the outputs
        at several positions are averaged.
      pool_size: the number of steps that the head averages, and SE with ``se_scope="clip"``.
      num_classes: the number of classes.
      width_factor: the number of channels relative to the smallest X3D.
      depth_factor: the number of blocks relative to the smallest X3D.
      bottleneck_factor: the number of channels within a block relative to that between blocks.
      se_scope: what SE averages. "frame": the current frame, in all modes, so that a stream equals
        its clip. "clip": ``forward`` averages over the whole clip as X3D does, and a stream over
        ``pool_size`` steps beginning with the current frame, for which every SE waits
        ``pool_size - 1`` steps; the two differ.
      head_features: the number of features before the projection.
      dropout: the probability of dropping one of these in training.
      in_channels: the number of channels of the images.

    Returns:
      A network from clips ``(B, in_channels, T, H, W)`` to ``(B, num_classes, T')``, and from steps
      ``(B, in_channels, H, W)`` to ``(B, num_classes)``: probabilities, or logits with
      ``train=True``.

    Raises:
      ValueError: for sizes that are not positive, or another ``se_scope``.

    Example::

        net = co.models.cox3d(64, pool_size=8, num_classes=10, width_factor=1, depth_factor=0.5)
        assert (net.receptive_field, net.delay) == (26, 16)
    """
    require_one_of("se_scope", se_scope, ("frame", "clip"))
    se_window = pool_size if se_scope == "clip" else None
    channels = _rounded(_STAGE_CHANNELS[0], width_factor)
    stages: dict[str, CoModule] = {
        "s1": Sequential({"pathway0_stem": _stem(in_channels, channels)})
    }
    for number, (basis, blocks) in enumerate(zip(_STAGE_CHANNELS, _STAGE_BLOCKS, strict=True), 2):
        out_channels = _rounded(basis, width_factor)
        inner = int(out_channels * bottleneck_factor)
        stage = {}
        for i in range(math.ceil(blocks * depth_factor)):
            stride = 2 if i == 0 else 1
            excited = i % 2 == 0
            branch = _branch(channels, inner, out_channels, stride, excited, se_window)
            stage[f"pathway0_res{i}"] = residual_block(branch, channels, out_channels, stride)
            channels = out_channels
        stages[f"s{number}"] = Sequential(stage)
    pool = (pool_size, pooled_size(image_size), pooled_size(image_size))
    head = {
        "conv_5": pointwise(channels, inner),
        "conv_5_bn": BatchNorm3d(inner),
        "conv_5_relu": ReLU(),
        "avg_pool": AvgPool3d(pool, stride=1),
        "lin_5": pointwise(inner, head_features),
        "lin_5_relu": ReLU(),
        **classifier(head_features, num_classes, dropout),
    }
    return Sequential({**stages, "head": Sequential(head)})


def cox3d_s(
    image_size: int = 160,
    pool_size: int = 64,
    num_classes: int = 400,
    *,
    se_scope: str = "frame",
    dropout: float = 0.5,
) -> Sequential:
    """CoX3D-S: 3,794,322 parameters. Arguments, shapes and source are as for :func:`cox3d`.

    | pool_size | se_scope | receptive field | delay | padding | stride |
    |-----------|----------|-----------------|-------|---------|--------|
    | 64        | frame    | 120             | 91    | 28      | 1      |
    | 13        | frame    | 69              | 40    | 28      | 1      |
    | 64        | clip     | 1065            | 1036  | 28      | 1      |

    X3D-S, whose weights fit, was trained on clips of 13 steps that are 6 video frames apart.

    Example::

        net = co.models.cox3d_s()
        assert (net.receptive_field, net.delay) == (120, 91)

        step = jax.ShapeDtypeStruct((1, 3, 160, 160), "float32")
        assert net.output_spec(step).shape == (1, 400)
    """
    return cox3d(image_size, pool_size, num_classes, se_scope=se_scope, dropout=dropout)


def cox3d_m(
    image_size: int = 224,
    pool_size: int = 64,
    num_classes: int = 400,
    *,
    se_scope: str = "frame",
    dropout: float = 0.5,
) -> Sequential:
    """CoX3D-M: 3,794,322 parameters. Arguments, shapes and source are as for :func:`cox3d`.

    | pool_size | se_scope | receptive field | delay | padding | stride |
    |-----------|----------|-----------------|-------|---------|--------|
    | 64        | frame    | 120             | 91    | 28      | 1      |
    | 16        | frame    | 72              | 43    | 28      | 1      |
    | 64        | clip     | 1065            | 1036  | 28      | 1      |

    X3D-M, whose weights fit, was trained on clips of 16 steps that are 5 video frames apart.

    Example::

        net = co.models.cox3d_m()
        assert (net.receptive_field, net.delay) == (120, 91)

        step = jax.ShapeDtypeStruct((1, 3, 224, 224), "float32")
        assert net.output_spec(step).shape == (1, 400)
    """
    return cox3d(image_size, pool_size, num_classes, se_scope=se_scope, dropout=dropout)


def cox3d_l(
    image_size: int = 312,
    pool_size: int = 64,
    num_classes: int = 400,
    *,
    se_scope: str = "frame",
    dropout: float = 0.5,
) -> Sequential:
    """CoX3D-L: 6,153,432 parameters. Arguments, shapes and source are as for :func:`cox3d`.

    | pool_size | se_scope | receptive field | delay | padding | stride |
    |-----------|----------|-----------------|-------|---------|--------|
    | 64        | frame    | 178             | 120   | 57      | 1      |
    | 16        | frame    | 130             | 72    | 57      | 1      |
    | 64        | clip     | 2005            | 1947  | 57      | 1      |

    X3D-L, whose weights fit, was trained on clips of 16 steps that are 5 video frames apart.

    Example::

        net = co.models.cox3d_l()
        assert (net.receptive_field, net.delay) == (178, 120)

        step = jax.ShapeDtypeStruct((1, 3, 312, 312), "float32")
        assert net.output_spec(step).shape == (1, 400)
    """
    return cox3d(
        image_size, pool_size, num_classes, depth_factor=5.0, se_scope=se_scope, dropout=dropout
    )


def _rounded(width: float, factor: float, divisor: int = 8) -> int:
    """Scales a number of channels to a multiple of 8, at least 8, and at least 0.9 of the exact."""
    exact = width * factor
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def _stem(in_channels: int, channels: int) -> Sequential:
    spatial = Conv3d(in_channels, channels, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
    temporal = Conv3d(channels, channels, (5, 1, 1), 1, (2, 0, 0), groups=channels, bias=False)
    return Sequential(
        {"conv_xy": spatial, "conv": temporal, "bn": BatchNorm3d(channels), "relu": ReLU()}
    )


def _branch(
    in_channels: int, inner: int, out_channels: int, stride: int, excited: bool, window: int | None
) -> Sequential:
    depthwise = Conv3d(inner, inner, 3, (1, stride, stride), 1, groups=inner, bias=False)
    return Sequential(
        {
            "a": pointwise(in_channels, inner),
            "a_bn": BatchNorm3d(inner),
            "a_relu": ReLU(),
            "b": depthwise,
            "b_bn": BatchNorm3d(inner),
            **({"se": _squeeze_excitation(inner, window)} if excited else {}),
            "b_swish": SiLU(),
            "c": pointwise(inner, out_channels),
            "c_bn": BatchNorm3d(out_channels),
        }
    )


def _squeeze_excitation(channels: int, window: int | None) -> CoModule:
    """Scales channels by factors computed from all their means, over the frame or a time window."""
    squeezed = _rounded(channels, 1 / 16)
    means = Lambda(_mean_of_frame) if window is None else _ClipMean(1, kernel_size=window)
    return Residual(
        Sequential(
            {
                "avg_pool": means,
                "fc1": Conv3d(channels, squeezed, 1),
                "fc1_relu": ReLU(),
                "fc2": Conv3d(squeezed, channels, 1),
                "fc2_sigmoid": Sigmoid(),
            }
        ),
        reduce="mul",
    )


def _mean_of_frame(x: Array) -> Array:
    return jnp.mean(x, axis=(-2, -1), keepdims=True)


class _ClipMean(AdaptiveAvgPool3d):
    """The mean over a clip, at each step; in a stream, over ``kernel_size`` steps from it on.

    Near the end of a stream, the mean is over the remaining steps.
    """

    @property
    def timing(self) -> Timing:
        ahead = self._time.kernel_size - 1
        return Timing(receptive_field=ahead + 1, end=ahead, delay=ahead)

    def clip(self, x: Array, train: bool = False) -> Array:
        mean = super().clip(x, train=train)
        return jnp.broadcast_to(mean, (*mean.shape[:2], x.shape[2], *mean.shape[3:]))

    def _divisor(self, count: Array | int, past: Array | int) -> Array | int:
        return self._time.kernel_size - past
