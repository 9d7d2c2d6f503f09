"""Graph convolutions: each joint aggregates the joints that it is connected to."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cojax.analysis.macs import Macs, register_macs
from cojax.combinators.parallel import Parallel
from cojax.combinators.sequential import Sequential
from cojax.folding import Variables, fold, within
from cojax.frames import Spec
from cojax.interop.names import Leaf, name_variables
from cojax.layers.conv import Conv2d
from cojax.layers.norm import BatchNorm2d
from cojax.layout import channels_last, channels_second
from cojax.models.joints import JointUnit, Run, side_by_side
from cojax.module import CoModule

PARTITIONS = 3  # The joints that a joint is connected to: itself, inward, outward.

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def he_normal_fan_out(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Initialises a kernel with ``N(0, 2 / fan_out)``. (Flax's own function cannot be pickled.)"""
    return _he_normal(key, shape, dtype)


def he_normal_summed(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Initialises the kernels of the convolutions of all partitions, whose outputs are summed."""
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / (PARTITIONS * math.prod(shape)))


def almost_zero(_key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Initialises the scale of a norm next to a residual, which then dominates at first."""
    return jnp.full(shape, 1e-6, dtype)


class GraphConvolution(JointUnit):
    """A graph convolution with learnt weights of the bones, and a residual connection.

    It computes ``relu(norm(sum_i convolution_i(x @ (A_i * graph_attn_i))) + residual(x))``, where
    ``A_i`` are the adjacency matrices of the skeleton's partitions, and ``graph_attn`` are learnt
    weights of its bones. The residual is the input, convolved and normalised if the channels
    change.

    Source: Yan, Xiong and Lin, "Spatial Temporal Graph Convolutional Networks for Skeleton-Based
    Action Recognition", AAAI 2018, https://arxiv.org/abs/1801.07455.

    Attributes, shapes and errors are those of :class:`~cojax.models.joints.JointUnit`. Variables:
    ``graph_attn`` in ``params`` and ``A``, which is not trained, in ``constants``; both ``(3,
    joints, joints)``.
    """

    names = ("g_conv", "a_conv", "b_conv", "gcn_residual", "bn")

    @nn.nowrap
    def modules(self) -> dict[str, CoModule]:
        norm = BatchNorm2d(self.out_channels, scale_init=almost_zero)
        modules: dict[str, CoModule] = {"g_conv": self._convolutions(self.out_channels), "bn": norm}
        if self.in_channels != self.out_channels:
            modules["gcn_residual"] = Sequential(
                _pointwise(self.in_channels, self.out_channels, he_normal_fan_out),
                BatchNorm2d(self.out_channels),
            )
        return modules

    @nn.nowrap
    def _convolutions(self, channels: int, init: Any = he_normal_summed) -> Parallel:
        return Parallel([_pointwise(self.in_channels, channels, init) for _ in range(PARTITIONS)])

    def setup(self) -> None:
        graph = self.graph.adjacency()
        self.graph_attention = self.param("graph_attn", nn.initializers.ones, graph.shape)
        self.adjacency = self.variable("constants", "A", jnp.asarray, graph).value

    def compute(self, x: Array, run: Run, train: bool) -> Array:
        connected = tuple(map(side_by_side, self.connected(self.by_person(x), run)))
        convolved = map(channels_last, run("g_conv", connected))
        y = run("bn", channels_second(functools.reduce(jnp.add, convolved)))
        residual = run("gcn_residual", x) if "gcn_residual" in self.layers else x
        return channels_second(jax.nn.relu(channels_last(y) + channels_last(residual)))

    def connected(self, x: Array, run: Run) -> Iterator[Array]:
        """Yields the input of each partition: ``(B, T, persons, joints, C)``, as ``x``."""
        adjacency = self.adjacency * self.graph_attention
        for partition in adjacency.astype(x.dtype):
            yield partition.T @ x


class AdaptiveGraphConvolution(GraphConvolution):
    """A graph convolution in which each joint also attends to all joints of its person and frame.

    Its matrices are ``A_i + graph_attn_i + softmax(a_i(x)^T b_i(x) / channels)``, where ``a_i`` and
    ``b_i`` are convolutions to ``channels = out_channels // 4``, and the softmax is over the joints
    attended to.

    Source: Shi, Zhang, Cheng and Lu, "Two-Stream Adaptive Graph Convolutional Networks for
    Skeleton-Based Action Recognition", CVPR 2019, https://arxiv.org/abs/1805.07694. (There,
    attention between joints uses all frames of a clip at once, which no stream can; here, it is
    computed frame by frame in all modes, as in the steps of CoA-GCN.)

    Attributes, shapes, errors and variables are those of :class:`GraphConvolution`.
    """

    @nn.nowrap
    def modules(self) -> dict[str, CoModule]:
        embeddings = (
            self._convolutions(self.out_channels // 4, he_normal_fan_out) for _ in range(2)
        )
        return {**super().modules(), **dict(zip(("a_conv", "b_conv"), embeddings, strict=True))}

    def connected(self, x: Array, run: Run) -> Iterator[Array]:
        adjacency = self.adjacency + self.graph_attention
        copies = (side_by_side(x),) * PARTITIONS
        embedded = zip(run("a_conv", copies), run("b_conv", copies), strict=True)
        for partition, embeddings in zip(adjacency.astype(x.dtype), embedded, strict=True):
            a, b = map(self.by_person, embeddings)
            likeness = jnp.einsum("...vc,...wc->...vw", a, b) / a.shape[-1]
            weights = jax.nn.softmax(likeness, axis=-2) + partition
            yield jnp.einsum("...vw,...vc->...wc", weights, x)


class RowSumGraphConvolution(AdaptiveGraphConvolution):
    """The graph convolution of CoA-GCN*, as its published weights were trained.

    The published code multiplies each joint by the sum of its row of the matrices, instead of
    multiplying by the matrices themselves, and a row of the attention adds up to one. So joints are
    not mixed: each is weighted by ``1 + sum_w (A_i + graph_attn_i)[v, w]``, and ``a_conv`` and
    ``b_conv`` have no effect. They are variables nevertheless, because checkpoints hold them.

    Source: ``AdaptiveGraphConvolutionMod`` of Hedegaard, Heidari and Iosifidis, "Continual
    Spatio-Temporal Graph Convolutional Networks", Pattern Recognition 2023,
    https://arxiv.org/abs/2203.11009.

    Attributes, shapes, errors and variables are those of :class:`GraphConvolution`.
    """

    def connected(self, x: Array, run: Run) -> Iterator[Array]:
        if self.is_initializing():
            self.declare()
        weights = 1 + jnp.sum(self.adjacency + self.graph_attention, axis=-1)
        for partition in weights.astype(x.dtype):
            yield x * partition[:, None]


def _pointwise(in_channels: int, out_channels: int, kernel_init: Any) -> Conv2d:
    zeros = nn.initializers.zeros
    return Conv2d(in_channels, out_channels, 1, kernel_init=kernel_init, bias_init=zeros)


name_variables(
    GraphConvolution,
    (Leaf("params", "graph_attn", "graph_attn"), Leaf("constants", "A", "A")),
)


@fold.register
def _(module: GraphConvolution, variables: Variables) -> tuple[CoModule, Variables]:
    return within(module, variables, [("g_conv", "bn")])


@register_macs(GraphConvolution)
def _(layer: GraphConvolution, x: Spec, y: Spec) -> Macs:
    return Macs(matmul=PARTITIONS * math.prod(x.shape) * layer.graph.joints)


@register_macs(AdaptiveGraphConvolution)
def _(layer: AdaptiveGraphConvolution, x: Spec, y: Spec) -> Macs:
    likeness, mixing = math.prod(y.shape) // 4, math.prod(x.shape)
    return Macs(matmul=PARTITIONS * layer.graph.joints * (likeness + mixing))


@register_macs(RowSumGraphConvolution)
def _(layer: RowSumGraphConvolution, x: Spec, y: Spec) -> int:
    return 0
