"""Multiply-accumulates (MACs) by type of layer: those of its formula, however it is computed.

A MAC is one multiplication with its addition. (Papers and model zoos often give the same number as
"FLOPs"; where additions are counted separately, FLOPs are twice the MACs.)

* ``linear``: convolutions, linear maps and the matrices of recurrent layers. Every entry of an
  output costs as many MACs as there are weights in it, including those applied to padding.
* ``matmul``: matrix products of activations with each other or with a graph: attention and graph
  convolutions. Most counters omit them, so they are kept separate. Attention is counted with the
  projections of all tokens, although it is computed in fewer products where few tokens attend.
* Not counted: biases, norms, activations, pools, elementwise sums and products, delays, and
  functions (of :class:`cojax.Lambda`) that multiply no matrices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
from jax.extend.core import Jaxpr, subjaxprs

from cojax.analysis.observe import Call
from cojax.combinators.conditional import Conditional
from cojax.combinators.parallel import (
    Broadcast,
    BroadcastReduce,
    Parallel,
    ParallelDispatch,
)
from cojax.combinators.reduce import Reduce
from cojax.combinators.sequential import Sequential
from cojax.combinators.transformer import TransformerEncoderLayer
from cojax.frames import Signal, Spec, flat_streams
from cojax.layers.activation import _Activation
from cojax.layers.arguments import require_one_of
from cojax.layers.attention import (
    RetroactiveMultiheadAttention,
    WindowMultiheadAttention,
    _StreamAttention,
)
from cojax.layers.closure import Identity, Lambda, _WithConstant
from cojax.layers.conv import _Conv
from cojax.layers.delay import Window, _Held
from cojax.layers.dropout import Dropout
from cojax.layers.linear import Linear
from cojax.layers.multihead import MultiheadAttention
from cojax.layers.norm import _InputNorm, _RunningNorm
from cojax.layers.pooling import _TemporalPool
from cojax.layers.positional import RecyclingPositionalEncoding
from cojax.layers.recurrent import _Recurrent
from cojax.layers.shape import Reshape
from cojax.module import CoModule


@dataclasses.dataclass(frozen=True)
class Macs:
    """A number of multiply-accumulates; a fraction if it is an average over steps.

    Example::

        conv, attention = co.analysis.Macs(linear=300), co.analysis.Macs(matmul=200)
        assert (conv + attention).total == 500

    Attributes:
      linear: those of convolutions, linear maps and recurrent layers.
      matmul: those of the matrix products in attention and graph convolutions.
    """

    linear: int | Fraction = 0
    matmul: int | Fraction = 0

    @property
    def total(self) -> int | Fraction:
        return self.linear + self.matmul

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.linear + other.linear, self.matmul + other.matmul)

    def __mul__(self, times: int | Fraction) -> "Macs":
        return Macs(self.linear * times, self.matmul * times)


Count = Callable[[Any, Any, Any], Macs | int | None]


def register_macs(*types: type[CoModule], mode: str | None = None) -> Callable[[Count], Count]:
    """Registers the MACs of types of layers, and of the types derived from them.

    The decorated function is called with the layer and with the specs ``x`` and ``y`` of its input
    and output: a step ``(B, C, *S)`` or a clip ``(B, C, T, *S)``. It returns the cost of such an
    output ``y``: :class:`Macs`, an int (counted as ``linear``), or None if it is unknown. The cost
    of the modules within the layer is counted separately.

    Args:
      *types: the types of layers.
      mode: "forward_step" or "forward", for a function that handles only steps or only clips.

    Raises:
      ValueError: for any other mode.

    Example::

        class Neighbours(co.TimeLocal):
            joints: int

            def clip(self, x, train=False):
                graph = jnp.eye(self.joints)
                return x @ graph

        @co.analysis.register_macs(Neighbours)
        def _(layer, x, y):
            return co.analysis.Macs(matmul=y.size * layer.joints)

        assert co.flops(Neighbours(joints=5), (1, 8, 5)).macs.matmul == 8 * 5 * 5
    """
    require_one_of("mode", mode, (None, *_REGISTERED))

    def register(function: Count) -> Count:
        for kind in types:
            for known in _REGISTERED if mode is None else (mode,):
                _REGISTERED[known].register(kind, function)
        return function

    return register


def macs_of(call: Call) -> Macs | None:
    """The cost of one output of a module, without the modules within. None if it is unknown."""
    count = _REGISTERED["forward" if call.is_clip else "forward_step"]
    macs = count(call.module, call.x, call.y)
    return Macs(macs) if isinstance(macs, int) else macs


def _unknown(layer: CoModule, x: Any, y: Any) -> Macs | int | None:
    return None


_REGISTERED = {mode: functools.singledispatch(_unknown) for mode in ("forward_step", "forward")}


@register_macs(_Conv)
def _(layer: _Conv, x: Spec, y: Spec) -> int:
    taps = math.prod(axis.kernel_size for axis in layer._axes)
    return math.prod(y.shape) * taps * (layer.in_channels // layer.groups)


@register_macs(Linear)
def _(layer: Linear, x: Spec, y: Spec) -> int:
    return math.prod(y.shape) * layer.in_features


@register_macs(_Recurrent)
def _(layer: _Recurrent, x: Spec, y: Spec) -> int:
    output, hidden = layer._sizes["hidden"], layer.hidden_size
    inputs = layer.input_size + (layer.num_layers - 1) * output
    each = layer.gates * hidden * (inputs + layer.num_layers * output)
    if output != hidden:
        each += layer.num_layers * hidden * output
    return math.prod(y.shape) // output * each


@register_macs(_StreamAttention, mode="forward_step")
def _(layer: _StreamAttention, x: Any, y: Spec) -> Macs:
    answered = math.prod(y.shape[2:])
    return _attending(layer, y.shape[0], asked=1, kept=1, answered=answered, among=layer._length)


@register_macs(_StreamAttention, mode="forward")
def _(layer: _StreamAttention, x: Any, y: Spec) -> Macs:
    batch, steps = y.shape[0], flat_streams(x)[0].shape[2]
    answered = math.prod(y.shape[2:])
    everything = y.shape[2] == steps  # as in torch: all tokens attend to the whole clip
    among = steps if everything else layer._length
    every = isinstance(layer, RetroactiveMultiheadAttention)
    asked = steps if every else y.shape[2]
    return _attending(layer, batch, asked=asked, kept=steps, answered=answered, among=among)


@register_macs(WindowMultiheadAttention)
def _(layer: WindowMultiheadAttention, x: Any, y: Spec) -> Macs:
    tokens = flat_streams(x)[0]
    answered = math.prod(y.shape[2:])
    return _attending(
        layer,
        batch=y.shape[0],
        asked=answered,
        kept=math.prod(tokens.shape[2:]),
        answered=answered,
        among=tokens.shape[-1],
    )


def _attending(
    layer: MultiheadAttention, batch: int, asked: int, kept: int, answered: int, among: int
) -> Macs:
    """The cost of attention with ``asked`` queries, and ``kept`` keys and values.

    It gives outputs for ``answered`` tokens, each of which attends to ``among`` tokens.
    """
    query, key, value = layer._dims
    linear = asked * query + kept * (key + value) + answered * layer.embed_dim
    among += layer.add_bias_kv + layer.add_zero_attn
    return Macs(batch * layer.embed_dim * linear, batch * layer.embed_dim * 2 * answered * among)


@register_macs(Reduce, BroadcastReduce)
def _(layer: Reduce | BroadcastReduce, x: Any, y: Any) -> int | None:
    return 0 if isinstance(layer.reduce, str) else None


@register_macs(_Activation, _Held, _InputNorm, _RunningNorm, _TemporalPool, _WithConstant, Dropout)
@register_macs(Identity, RecyclingPositionalEncoding, Reshape, Window)
@register_macs(Broadcast, Conditional, Parallel, ParallelDispatch, Sequential)
@register_macs(TransformerEncoderLayer)
def _(layer: CoModule, x: Any, y: Any) -> int:
    return 0


# A function costs nothing if it multiplies no matrices; otherwise its cost is unknown.


@register_macs(Lambda, mode="forward_step")
def _(layer: Lambda, x: Spec, y: Spec) -> int | None:
    alone = layer.clone(parent=None)
    return _free(lambda x: alone.step({}, Signal(x))[0].value, x)


@register_macs(Lambda, mode="forward")
def _(layer: Lambda, x: Spec, y: Spec) -> int | None:
    return _free(layer.clone(parent=None).clip, x)


def _free(function: Callable[..., Any], x: Spec) -> int | None:
    return None if _multiplies_matrices(jax.make_jaxpr(function)(x).jaxpr) else 0


def _multiplies_matrices(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in ("dot_general", "ragged_dot_general", "conv_general_dilated")
        for equation in jaxpr.eqns
    ) or any(map(_multiplies_matrices, subjaxprs(jaxpr)))
