"""Networks that recognise actions from skeletons: CoST-GCN, CoA-GCN and CoS-TR.

Hedegaard, Heidari and Iosifidis, "Continual Spatio-Temporal Graph Convolutional Networks", Pattern
Recognition 2023, https://arxiv.org/abs/2203.11009. Each of ten blocks mixes the joints of a frame,
and then the frames of a joint; the features of all joints, persons and frames are averaged.

The networks take clips ``(B, 3, T, joints, persons)`` and steps ``(B, 3, joints, persons)``, and
emit logits: ``(B, classes)`` for a step. The names of their variables are those of the published
checkpoints. Where the graph is not trained, it is stored in a separate collection, "constants",
beside "params" and "batch_stats".

| network | parameters (in ``params``) | receptive field | delay | padding | stride |
|---|---|---|---|---|---|
| CoST-GCN* | 3,160,228 (3,141,478) | 300 | 299 | 0 | 1 |
| CoA-GCN* | 3,488,260 (3,469,510) | 300 | 299 | 0 | 1 |
| CoS-TR* | 3,092,095 (3,086,470) | 300 | 299 | 0 | 1 |
| CoST-GCN, CoA-GCN, CoS-TR | as above | 449 | 296 | 152 | 4 |
"""

from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from cojax.analysis.macs import register_macs
from cojax.checks import require_floating
from cojax.combinators.parallel import BroadcastReduce
from cojax.combinators.residual import Residual
from cojax.combinators.sequential import Sequential
from cojax.errors import InputError
from cojax.frames import Spec
from cojax.layers.activation import ReLU
from cojax.layers.arguments import require_one_of, require_positive
from cojax.layers.closure import Lambda
from cojax.layers.conv import Conv2d
from cojax.layers.delay import Delay
from cojax.layers.linear import Linear
from cojax.layers.norm import BatchNorm1d, BatchNorm2d
from cojax.layers.pooling import AvgPool1d
from cojax.models.graph import KINETICS, NTU_RGBD, Graph
from cojax.models.graph_convolution import (
    AdaptiveGraphConvolution,
    GraphConvolution,
    RowSumGraphConvolution,
    he_normal_fan_out,
)
from cojax.models.joints import JointUnit
from cojax.models.spatial_attention import AttentionUnit
from cojax.module import CoModule, TimeLocal

DATASETS = {"ntu60": (NTU_RGBD, 60), "ntu120": (NTU_RGBD, 120), "kinetics": (KINETICS, 400)}
CHANNELS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)

# Makes the module that mixes joints, from a block's number (from 1), channels and skeleton.
Mixer = Callable[[int, int, int, Graph], JointUnit]


class Configuration(TypedDict, total=False):
    """The options of the networks, given by keyword.

    Attributes:
      num_classes: the number of classes; by default that of the dataset.
      graph: the skeleton; by default that of the dataset.
      in_channels: the number of coordinates of a joint; 3 by default.
      channels: the channels of each block. In the padded networks, the blocks after the first that
        change them have a stride of 2.
      kernel_size: the number of frames that the temporal convolution of a block sees; 9 by default.
      pool_size, pool_padding: the size and padding of the average over time; by default such that
        ``num_frames`` frames make one prediction.
    """

    num_classes: int
    graph: Graph
    in_channels: int
    channels: Sequence[int]
    kernel_size: int
    pool_size: int
    pool_padding: int


def cost_gcn(
    dataset: str = "ntu60",
    modified: bool = True,
    num_frames: int = 300,
    num_persons: int = 2,
    **configuration: Unpack[Configuration],
) -> Sequential:
    """CoST-GCN: graph convolutions with learnt weights of the bones.

    Source: Yan, Xiong and Lin, "Spatial Temporal Graph Convolutional Networks for Skeleton-Based
    Action Recognition", AAAI 2018, https://arxiv.org/abs/1801.07455; made continual by Hedegaard et
    al. (see this module, which also has a table of sizes and timings).

    Example::

        net = co.models.cost_gcn("ntu60")
        assert (net.receptive_field, net.delay) == (300, 299)

        step = jax.ShapeDtypeStruct((1, 3, 25, 2), "float32")
        assert net.output_spec(step).shape == (1, 60)

    Args:
      dataset: "ntu60" or "ntu120" (NTU RGB+D, 25 joints) or "kinetics" (18 joints): the skeleton
        and the number of classes.
      modified: whether to make CoST-GCN*, without temporal padding and stride: 3,160,228
        parameters; for 300 frames, receptive field 300, delay 299, a prediction with every frame.
        Otherwise CoST-GCN, with the same parameters: receptive field 449, delay 296, padding 152, a
        prediction with every 4th frame.
      num_frames: the number of frames that one prediction averages over.
      num_persons: the number of persons in a frame.
      configuration: see :class:`Configuration`.

    Returns:
      A network from clips ``(B, 3, T, joints, persons)`` to logits ``(B, classes, T')``, and from
      steps ``(B, 3, joints, persons)`` to ``(B, classes)``.

    Raises:
      ValueError: for an unknown dataset, too few frames, an even ``kernel_size``, no channels or no
        persons.
      InputError: from the network, for another number of coordinates, joints or persons.
    """

    def mixer(_block: int, in_channels: int, out_channels: int, graph: Graph) -> JointUnit:
        return GraphConvolution(in_channels, out_channels, graph)

    return _network(mixer, dataset, modified, num_frames, num_persons, **configuration)


def coa_gcn(
    dataset: str = "ntu60",
    modified: bool = True,
    num_frames: int = 300,
    num_persons: int = 2,
    **configuration: Unpack[Configuration],
) -> Sequential:
    """CoA-GCN: graph convolutions in which joints also attend to each other.

    Source: Shi, Zhang, Cheng and Lu, "Two-Stream Adaptive Graph Convolutional Networks for
    Skeleton-Based Action Recognition", CVPR 2019, https://arxiv.org/abs/1805.07694; made continual
    by Hedegaard et al.

    Example::

        net = co.models.coa_gcn("ntu120", modified=False)
        assert (net.receptive_field, net.delay, net.padding) == (449, 296, (152,))

        step = jax.ShapeDtypeStruct((1, 3, 25, 2), "float32")
        assert net.output_spec(step).shape == (1, 120)

    Args:
      dataset: as for :func:`cost_gcn`.
      modified: whether to make CoA-GCN*, whose attention has no effect (see
        :class:`~cojax.models.graph_convolution.RowSumGraphConvolution`): 3,488,260 parameters.
        Otherwise CoA-GCN, with the same parameters, which attends within each frame, in ``forward``
        too. Timings are those of :func:`cost_gcn`.
      num_frames: as for :func:`cost_gcn`.
      num_persons: as for :func:`cost_gcn`.
      configuration: as for :func:`cost_gcn`.

    Returns:
      A network with the shapes of :func:`cost_gcn`.

    Raises:
      ValueError: as for :func:`cost_gcn`.
    """
    convolution = RowSumGraphConvolution if modified else AdaptiveGraphConvolution

    def mixer(_block: int, in_channels: int, out_channels: int, graph: Graph) -> JointUnit:
        return convolution(in_channels, out_channels, graph)

    return _network(mixer, dataset, modified, num_frames, num_persons, **configuration)


def cos_tr(
    dataset: str = "ntu60",
    modified: bool = True,
    num_frames: int = 300,
    num_persons: int = 2,
    graph_blocks: int = 3,
    num_heads: int = 8,
    drop_connect: float = 0.5,
    **configuration: Unpack[Configuration],
) -> Sequential:
    """CoS-TR: three blocks of graph convolutions, then blocks of spatial attention.

    Training needs an rng named "dropout".

    Source: Plizzari, Cannici and Matteucci, "Skeleton-based action recognition via spatial and
    temporal transformer networks", CVIU 2021, https://arxiv.org/abs/2008.07404; made continual by
    Hedegaard et al.

    Example::

        net = co.models.cos_tr("kinetics")
        assert (net.receptive_field, net.delay) == (300, 299)

        step = jax.ShapeDtypeStruct((1, 3, 18, 2), "float32")
        assert net.output_spec(step).shape == (1, 400)

    Args:
      dataset: as for :func:`cost_gcn`.
      modified: whether to make CoS-TR*, otherwise CoS-TR; both have 3,092,095 parameters. Timings
        are those of :func:`cost_gcn`.
      num_frames: as for :func:`cost_gcn`.
      num_persons: as for :func:`cost_gcn`.
      graph_blocks: the number of blocks, from the first on, that have graph convolutions.
      num_heads: the number of attention heads in the others.
      drop_connect: the probability that a joint is hidden from the joints of its person in
        training.
      configuration: as for :func:`cost_gcn`.

    Returns:
      A network with the shapes of :func:`cost_gcn`.

    Raises:
      ValueError: as for :func:`cost_gcn`, and if the channels cannot be split among the heads.
    """

    def mixer(block: int, in_channels: int, out_channels: int, graph: Graph) -> JointUnit:
        if block <= graph_blocks:
            return GraphConvolution(in_channels, out_channels, graph)
        return AttentionUnit(
            in_channels, out_channels, graph, num_heads=num_heads, drop_connect=drop_connect
        )

    return _network(mixer, dataset, modified, num_frames, num_persons, **configuration)


def _network(
    mixer: Mixer,
    dataset: str,
    modified: bool,
    num_frames: int,
    num_persons: int,
    *,
    num_classes: int | None = None,
    graph: Graph | None = None,
    in_channels: int = 3,
    channels: Sequence[int] = CHANNELS,
    kernel_size: int = 9,
    pool_size: int | None = None,
    pool_padding: int | None = None,
) -> Sequential:
    require_one_of("dataset", dataset, tuple(DATASETS))
    graph = DATASETS[dataset][0] if graph is None else graph
    classes = DATASETS[dataset][1] if num_classes is None else num_classes
    if kernel_size % 2 == 0:
        raise ValueError(f"{kernel_size=} must be odd: a residual meets the middle of the kernel")
    require_positive(num_persons=num_persons)
    if not channels:
        raise ValueError(f"{channels=}: there must be a block")

    blocks, before = {}, in_channels
    for number, after in enumerate(channels, start=1):
        first = number == 1
        blocks[f"layer{number}"] = _block(
            mixer(number, before, after, graph),
            kernel_size,
            padding=0 if modified else kernel_size // 2,
            stride=1 if modified or first or before == after else 2,
            residual=not first,
        )
        before = after
    layers = Sequential(blocks)
    pool = _pool(layers, num_frames, pool_size, pool_padding)
    return Sequential(
        {
            "reshape1": JointsToChannels(in_channels, graph.joints, num_persons),
            "data_bn": BatchNorm1d(in_channels * graph.joints * num_persons),
            "reshape2": ChannelsToJoints(in_channels, graph.joints, num_persons),
            "layers": layers,
            "spatial_pool": Lambda(_mean_of_joints, takes_time=True),
            "pool": pool,
            "fc": Linear(channels[-1], classes, channel_dim=1, kernel_init=_normal_by_classes),
        }
    )


def _block(
    mixer: JointUnit, kernel_size: int, padding: int, stride: int, residual: bool
) -> Sequential:
    """Mixes joints, then frames; the residual adds the middle one of the frames mixed."""
    before, after = mixer.in_channels, mixer.out_channels
    mixing = {"gcn": mixer, "tcn": _temporal(after, after, kernel_size, padding, stride)}
    if not residual:
        return Sequential({**mixing, "relu": ReLU()})
    mixed = Sequential(mixing)
    if before == after and stride == 1:
        return Sequential(Residual(mixed, residual_shrink=True), ReLU())
    crop = kernel_size // 2 - padding
    middle: dict[str, CoModule] = {"align": Delay(crop, auto_shrink=True)} if crop else {}
    middle["residual"] = _temporal(before, after, kernel_size=1, padding=0, stride=stride)
    return Sequential(BroadcastReduce(Sequential(middle), mixed), ReLU())


def _temporal(
    in_channels: int, out_channels: int, kernel_size: int, padding: int, stride: int
) -> Sequential:
    conv = Conv2d(
        in_channels,
        out_channels,
        (kernel_size, 1),
        stride=(stride, 1),
        padding=(padding, 0),
        kernel_init=he_normal_fan_out,
        bias_init=nn.initializers.zeros,
    )
    return Sequential({"t_conv": conv, "bn": BatchNorm2d(out_channels)})


def _pool(
    layers: Sequential, num_frames: int, pool_size: int | None, pool_padding: int | None
) -> AvgPool1d:
    """The average over the layers' outputs for ``num_frames`` frames, including those of the flush.

    It is padded by the number of outputs of the flush, so that no prediction waits for these.
    """
    timing = layers.timing
    seen = num_frames - timing.receptive_field + 1
    size = -(-(seen + 2 * timing.padding) // timing.stride) if pool_size is None else pool_size
    padding = pool_padding
    if padding is None:
        padding = max(0, size - -(-(seen + timing.padding) // timing.stride))
    if None in (pool_size, pool_padding) and (size < 1 or 2 * padding > size):
        raise ValueError(
            f"{num_frames=} is too short: the blocks see {timing.receptive_field} frames, padded "
            f"by {timing.padding}, which leaves the average over time {max(size, 0)} outputs, of "
            f"which {padding} are padding; give more frames, or pool_size and pool_padding"
        )
    return AvgPool1d(size, stride=1, padding=padding)


def _mean_of_joints(x: Array) -> Array:
    return jnp.mean(x, axis=-1)


def _normal_by_classes(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    return jax.random.normal(key, shape, dtype) * (2 / shape[-1]) ** 0.5


class JointsToChannels(TimeLocal):
    """Reshapes ``(B, C, T, joints, persons)`` to ``(B, persons * joints * C, T)``.

    Attributes:
      in_channels, joints, persons: the sizes of a step.

    Raises:
      InputError: for steps of other sizes.
    """

    in_channels: int
    joints: int
    persons: int

    def output_spec(self, x: Spec) -> Spec:
        sizes = (self.in_channels, self.joints, self.persons)
        if x.shape[1:] != sizes:
            raise InputError(
                "the network expects steps (batch, coordinates, joints, persons) of shape "
                f"(B, {', '.join(map(str, sizes))}), got {x.shape}; build it for other skeletons "
                "with dataset= or graph=, and with num_persons="
            )
        require_floating(x, self)
        return Spec((x.shape[0], self.in_channels * self.joints * self.persons), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        return lax.collapse(jnp.transpose(x, (0, 4, 3, 1, 2)), 1, 4)


class ChannelsToJoints(TimeLocal):
    """Reshapes ``(B, persons * joints * C, T)`` to ``(B, C, T, persons * joints)``.

    Persons stay in one row of the batch, one after another, so that a state has one row for each
    stream.

    Attributes:
      in_channels, joints, persons: the sizes of a step.
    """

    in_channels: int
    joints: int
    persons: int

    def output_spec(self, x: Spec) -> Spec:
        return Spec((x.shape[0], self.in_channels, self.persons * self.joints), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        width = self.persons * self.joints
        y = x.reshape(x.shape[0], width, self.in_channels, x.shape[2])
        return jnp.transpose(y, (0, 2, 3, 1))


@register_macs(JointsToChannels, ChannelsToJoints)
def _(layer: CoModule, x: Spec, y: Spec) -> int:
    return 0
