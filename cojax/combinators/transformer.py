"""Transformer encoders that process a stream of tokens, one at a time."""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from cojax.chunks import met
from cojax.combinators.sequential import Sequential
from cojax.container import Container, keep, named
from cojax.frames import Spec, State
from cojax.layers.activation import GELU, ReLU
from cojax.layers.arguments import require_one_of, require_positive
from cojax.layers.attention import (
    RetroactiveMultiheadAttention,
    SingleOutputMultiheadAttention,
    WindowMultiheadAttention,
)
from cojax.layers.closure import Identity, Lambda
from cojax.layers.delay import Delay, Window
from cojax.layers.dropout import Dropout
from cojax.layers.linear import Linear
from cojax.layers.norm import LayerNorm
from cojax.module import CoModule
from cojax.timing import Timing

Activation = str | CoModule | Callable[[Array], Array]

_NETWORK = ("linear1", "activation", "dropout", "linear2")
_ACTIVATIONS: dict[str, type[CoModule]] = {"relu": ReLU, "gelu": GELU}
_TYPES = (
    "single_output",
    "single_output_forward",
    "retroactive",
    "regular",
    "regular_single_output",
)


class TransformerEncoderLayer(Container):
    """Attention and a feed-forward network for each token, each with a residual and a norm::

        y = norm1(x + attention(x))       # x + attention(norm1(x)), with norm_first
        z = norm2(y + network(y))         # y + network(norm2(y)), with norm_first
        network(y) = linear2(activation(linear1(y)))

    Built by :class:`TransformerEncoderLayerFactory`, :func:`SingleOutputTransformerEncoderLayer`
    and :func:`RetroactiveTransformerEncoderLayer`, which determine what attends to what. Its
    variables have the same paths as in ``torch.nn.TransformerEncoderLayer``.

    Source: ``torch.nn.TransformerEncoderLayer``; Vaswani et al., 2017,
    https://arxiv.org/abs/1706.03762.

    Example::

        layer = co.SingleOutputTransformerEncoderLayer(32, 4, sequence_len=8)
        assert isinstance(layer, co.TransformerEncoderLayer)
        assert (layer.receptive_field, layer.delay) == (8, 7)

    Attributes:
      layers: ``residual`` (the tokens to which the outputs belong), ``self_attn``, ``linear1``,
        ``activation``, ``dropout``, ``linear2``, ``norm1``, ``norm2``, ``dropout1``, ``dropout2``.
      norm_first: whether norms come before attention and the network, instead of after.

    Shapes:
      those of its attention.

    Raises:
      InputError: as raised by its attention.
    """

    norm_first: bool = False

    @property
    def timing(self) -> Timing:
        return self.layers["self_attn"].timing

    def output_spec(self, x: Any) -> Spec:
        return self.child_spec("self_attn", x)

    def clip(self, x: Any, train: bool = False) -> Any:
        def run(x: Any, *names: str) -> Any:
            for name in names:
                x = self.child_clip(name, x, train)
            return x

        return self._encoded(x, run, operator.add)

    def fresh_state(self, x: Any) -> State:
        return keep({name: self.child_state(name, x) for name in ("residual", "self_attn")})

    @nn.nowrap
    def flow_through(self, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        states: dict[str, State] = {}

        def run(flow: Any, *names: str) -> Any:
            for name in names:
                flow, states[name] = self.child_step(name, state, flow, train)
            return flow

        def plus(one: Any, other: Any) -> Any:
            return met([one, other], one.clean() + other.clean())

        return self._encoded(flow, run, plus), keep(states)

    @nn.nowrap
    def _encoded(self, x: Any, run: Callable[..., Any], plus: Callable[[Any, Any], Any]) -> Any:
        """Returns the output for a clip or for what flows; ``run`` runs modules by their names."""
        attention, network = ("self_attn", "dropout1"), (*_NETWORK, "dropout2")
        if self.norm_first:
            y = plus(run(x, "residual"), run(x, "norm1", *attention))
            return plus(y, run(y, "norm2", *network))
        y = run(plus(run(x, "residual"), run(x, *attention)), "norm1")
        return run(plus(y, run(y, *network)), "norm2")


@dataclasses.dataclass(frozen=True)
class _Token:
    """A function of clips that selects one of their steps; equal to others of the same place."""

    place: int

    def __call__(self, x: Array) -> Array:
        return x[..., self.place]


@dataclasses.dataclass(frozen=True)
class TransformerEncoderLayerFactory:
    """A factory of encoder layers that share hyper-parameters.

    Called with a type of attention, it returns a :class:`TransformerEncoderLayer`:

    * ``"single_output"``: the newest of the last ``sequence_len`` tokens attends to all of them.
      ``forward`` is that of ``torch.nn.TransformerEncoderLayer``, in which all tokens of a clip
      attend.
    * ``"single_output_forward"``: the same, but ``forward`` has the same outputs as the steps.
    * ``"retroactive"``: each of the last tokens attends to all, and a step emits an output for each
      of them.
    * ``"regular"``: for steps that are whole windows of tokens, all of which attend to all.
    * ``"regular_single_output"``: the same, but only the newest attends.

    Source: ``continual.TransformerEncoderLayerFactory``; Vaswani et al., 2017,
    https://arxiv.org/abs/1706.03762; Hedegaard et al., "Continual Transformers: Redundancy-Free
    Attention for Online Inference", ICLR 2023, https://arxiv.org/abs/2201.06268.

    Example::

        factory = co.TransformerEncoderLayerFactory(d_model=32, nhead=4, sequence_len=8)
        encoder = co.TransformerEncoder(factory, num_layers=2)

    Attributes:
      d_model: the channels of a token.
      nhead: the heads of attention.
      dim_feedforward: the channels within the feed-forward network.
      dropout: the probability of a zero, in training, within attention and the network and after
        both.
      activation: "relu", "gelu", a module, or a function of arrays.
      layer_norm_eps: added to the variance in norms.
      norm_first: whether norms come before attention and the network, instead of after.
      bias: whether attention, linear maps and norms have biases.
      sequence_len: the number of tokens that attend to each other.
      attention_bias: whether attention has biases, if that differs from ``bias``.
      param_dtype: the dtype of the parameters.

    Raises:
      ValueError: at construction or when called, for arguments that cannot be combined.
    """

    d_model: int
    nhead: int
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: Activation = "relu"
    layer_norm_eps: float = 1e-5
    norm_first: bool = False
    bias: bool = True
    sequence_len: int | None = None
    attention_bias: bool | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if isinstance(self.activation, str):
            require_one_of("activation", self.activation, tuple(_ACTIVATIONS))

    def __call__(self, mha_type: str, query_index: int = -1) -> TransformerEncoderLayer:
        """Returns the encoder layer with this type of attention.

        Args:
          mha_type: the type, one of the above.
          query_index: the token that attends, by its position, for types in which only one does.

        Raises:
          ValueError: for another type, or arguments that cannot be combined.
        """
        require_one_of("mha_type", mha_type, _TYPES)
        if mha_type == "regular":
            return self._around(self._attention(WindowMultiheadAttention), Identity())
        if mha_type == "regular_single_output":
            attention = self._attention(WindowMultiheadAttention, query_index=query_index)
            newest = Lambda(_Token(query_index), takes_time=True)
            return self._around(attention, newest)
        if mha_type == "retroactive":
            return self._around(
                self._attention(RetroactiveMultiheadAttention, sequence_len=self.sequence_len),
                Window(self.sequence_len or 1),
            )
        answers_as_steps = mha_type == "single_output_forward"
        single = self._attention(
            SingleOutputMultiheadAttention,
            sequence_len=self.sequence_len,
            query_index=query_index,
            single_output_forward=answers_as_steps,
        )
        # The number of steps from the token that attends to the newest.
        held = single.delay - single.query_place
        crop = (single.query_place, held) if answers_as_steps else False
        return self._around(single, Delay(held, auto_shrink=crop))

    def _attention(self, kind: Any, **own: Any) -> Any:
        bias = self.bias if self.attention_bias is None else self.attention_bias
        common = {"dropout": self.dropout, "bias": bias, "param_dtype": self.param_dtype}
        return kind(self.d_model, self.nhead, **common, **own)

    def _around(self, attention: CoModule, residual: CoModule) -> TransformerEncoderLayer:
        """Returns the layer with this attention, whose outputs belong to the residual's tokens."""
        across: dict[str, Any] = {
            "channel_dim": 1,
            "bias": self.bias,
            "param_dtype": self.param_dtype,
        }
        children = {
            "residual": residual,
            "self_attn": attention,
            "linear1": Linear(self.d_model, self.dim_feedforward, **across),
            "dropout": Dropout(self.dropout),
            "linear2": Linear(self.dim_feedforward, self.d_model, **across),
            "norm1": LayerNorm(self.d_model, self.layer_norm_eps, **across),
            "norm2": LayerNorm(self.d_model, self.layer_norm_eps, **across),
            "dropout1": Dropout(self.dropout),
            "dropout2": Dropout(self.dropout),
            "activation": _as_module(self.activation),
        }
        return TransformerEncoderLayer(**named([children], None, None), norm_first=self.norm_first)


def _as_module(activation: Activation) -> CoModule:
    if isinstance(activation, str):
        return _ACTIVATIONS[activation]()
    if isinstance(activation, CoModule):
        return activation.clone()  # each layer learns its own
    return Lambda(activation, takes_time=True)


def SingleOutputTransformerEncoderLayer(  # noqa: N802 - a module by its name in continual
    *hyperparameters: Any,
    single_output_forward: bool = False,
    query_index: int = -1,
    **more: Any,
) -> TransformerEncoderLayer:
    """An encoder layer for streams in which one token attends to the last ``sequence_len`` tokens.

    Source: ``continual.SingleOutputTransformerEncoderLayer``, with the weights of
    ``torch.nn.TransformerEncoderLayer``.

    Example::

        layer = co.SingleOutputTransformerEncoderLayer(32, 4, sequence_len=8)
        variables = layer.init(jax.random.key(0), method="declare")
        frame, state = layer.apply(
            variables, layer.init_state((1, 32)), jnp.ones((1, 32)), method="forward_step"
        )
        assert frame.value.shape == (1, 32)

    Args:
      *hyperparameters: those of :class:`TransformerEncoderLayerFactory`, by position.
      single_output_forward: whether ``forward`` has the same outputs as the steps, one for every
        window of the clip. Otherwise all tokens of a clip attend to all, and each has an output, as
        in ``torch.nn.TransformerEncoderLayer``.
      query_index: the token that attends, by its position among the last; -1 is the newest.
      **more: those of the factory, by name.

    Shapes:
      clip ``(B, d_model, T)`` to ``(B, d_model, T - sequence_len + 1)`` (``T`` without
      ``single_output_forward``); step ``(B, d_model)`` to the same.

    Raises:
      ValueError: for arguments that cannot be combined.
    """
    factory = TransformerEncoderLayerFactory(*hyperparameters, **more)
    return factory(
        "single_output_forward" if single_output_forward else "single_output", query_index
    )


def RetroactiveTransformerEncoderLayer(  # noqa: N802 - a module by its name in continual
    *hyperparameters: Any, **more: Any
) -> TransformerEncoderLayer:
    """An encoder layer for streams whose steps emit outputs for the last ``sequence_len`` tokens.

    Source: ``continual.RetroactiveTransformerEncoderLayer``, with the weights of
    ``torch.nn.TransformerEncoderLayer``.

    Example::

        layer = co.RetroactiveTransformerEncoderLayer(32, 4, sequence_len=8)
        variables = layer.init(jax.random.key(0), method="declare")
        assert layer.apply(variables, jnp.ones((1, 32, 8))).shape == (1, 32, 1, 8)

    Args:
      *hyperparameters: those of :class:`TransformerEncoderLayerFactory`, by position.
      **more: the same, by name.

    Shapes:
      clip ``(B, d_model, T)`` to ``(B, d_model, T - sequence_len + 1, sequence_len)``; step ``(B,
      d_model)`` to ``(B, d_model, sequence_len)``, oldest first.

    Raises:
      ValueError: for arguments that cannot be combined.
    """
    return TransformerEncoderLayerFactory(*hyperparameters, **more)("retroactive")


class TransformerEncoder(Sequential):
    """A stack of encoder layers over the last ``sequence_len`` tokens of a stream.

    Every step emits the output of ``torch.nn.TransformerEncoder`` for the newest token of the
    window. The first of several layers is retroactive, those in between see all tokens of the
    window, and the last emits the output of the newest token. A step therefore costs the attention
    of the first layer, which projects only one token, and all of the other layers: a few wide
    layers gain most from streaming.

    Source: ``continual.TransformerEncoder`` (there with one or two layers), with the weights of
    ``torch.nn.TransformerEncoder``. ``forward`` has the same outputs as the steps, also with one
    layer.

    Example::

        factory = co.TransformerEncoderLayerFactory(d_model=32, nhead=4, sequence_len=8)
        encoder = co.TransformerEncoder(factory, num_layers=3)
        variables = encoder.init(jax.random.key(0), method="declare")
        assert encoder.apply(variables, jnp.ones((1, 32, 10))).shape == (1, 32, 3)

    Attributes:
      layers, order: the stack, named "layers", and the norm, named "norm". The constructor takes
        the following instead.
      encoder_layer: a :class:`TransformerEncoderLayerFactory`, or a function that returns a module
        for each type of attention.
      num_layers: the number of layers.
      norm: a module after the last layer, such as ``co.LayerNorm(d_model, channel_dim=1)``.

    Shapes:
      clip ``(B, d_model, T)`` to ``(B, d_model, T - sequence_len + 1)``; step ``(B, d_model)`` to
      the same.

    Raises:
      ValueError: at construction, without a factory or layers.
    """

    def __init__(
        self,
        encoder_layer: Callable[[str], CoModule] | None = None,
        num_layers: int = 1,
        norm: CoModule | None = None,
        *,
        layers: Mapping[str, CoModule] | None = None,
        order: tuple[str, ...] | None = None,
        **linen: Any,
    ):
        if layers is not None:  # Flax rebuilds it from its fields.
            super().__init__(layers=layers, order=order, **linen)
            return
        if encoder_layer is None:
            raise ValueError("TransformerEncoder takes a TransformerEncoderLayerFactory")
        require_positive(num_layers=num_layers)
        types = ["single_output_forward"]
        if num_layers > 1:
            types = ["retroactive", *["regular"] * (num_layers - 2), "regular_single_output"]
        children: dict[str, CoModule] = {"layers": Sequential(*map(encoder_layer, types))}
        if norm is not None:
            children["norm"] = norm
        super().__init__(children, **linen)
