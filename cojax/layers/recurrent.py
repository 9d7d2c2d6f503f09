"""Recurrent layers, which keep a hidden state of the stream."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from cojax.checks import require_clips, require_step
from cojax.errors import InputError
from cojax.frames import Signal, Spec, State, select, spec_of, varying_like, without_time
from cojax.layers.arguments import require_one_of, require_positive, require_probability
from cojax.layers.dropout import Dropout
from cojax.layers.initializers import fan_in_uniform
from cojax.modes import current
from cojax.module import CoModule
from cojax.ops.product import product, times

Weights = dict[str, Array]
# What a layer keeps from step to step, with its hidden state first.
Memory = tuple[Array, ...]


class _Recurrent(CoModule):
    """Base class of stacked recurrent layers; a subclass defines what their cell computes.

    The subclass also declares the fields ``bias``, ``dropout`` and ``param_dtype``, since their
    positions differ among the constructors of torch.
    """

    gates: ClassVar[int]

    input_size: int
    hidden_size: int
    num_layers: int = 1

    def __post_init__(self) -> None:
        require_positive(
            input_size=self.input_size, hidden_size=self.hidden_size, num_layers=self.num_layers
        )
        require_probability(dropout=self.dropout)
        super().__post_init__()

    @property
    def _sizes(self) -> dict[str, int]:
        """The name and size of what each layer keeps; its output, the hidden state, comes first."""
        return {"hidden": self.hidden_size}

    @nn.nowrap
    def _cell(self, x: Array, h: Array, memory: Memory) -> Memory:
        """Returns the memory after one step, with the hidden state not yet projected.

        Args:
          x: the contribution of the input to the gates, ``(B, gates * hidden_size)``.
          h: the contribution of the hidden state, of the same shape.
          memory: the memory before the step.
        """
        raise NotImplementedError

    def setup(self) -> None:
        self.weights = [self._weights(layer) for layer in range(self.num_layers)]
        self.between = Dropout(self.dropout)

    def _weights(self, layer: int) -> Weights:
        gates, output = self.gates * self.hidden_size, self._sizes["hidden"]
        shapes: dict[str, tuple[int, ...]] = {
            "kernel_ih": (output if layer else self.input_size, gates),
            "kernel_hh": (output, gates),
        }
        if self.bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if output != self.hidden_size:
            shapes["kernel_hr"] = (self.hidden_size, output)
        uniform = fan_in_uniform(self.hidden_size)
        return {
            name: self.param(f"{name}_l{layer}", uniform, shape, self.param_dtype)
            for name, shape in shapes.items()
        }

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, 0, self.input_size)
        return Spec((x.shape[0], self._sizes["hidden"]), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        y, _ = self._over_time(x, self.fresh_state(without_time(spec_of(x))), train)
        return y

    def fresh_state(self, x: Spec) -> State:
        return {
            name: jnp.zeros((x.shape[0], self.num_layers, size), x.dtype)
            for name, size in self._sizes.items()
        }

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        y, after = self._layers(_once, signal.clean(), state, train)
        after = {name: select(signal.valid, after[name], state[name]) for name in after}
        return signal.becomes(y), after

    def _over_time(self, x: Array, state: State, train: bool) -> tuple[Array, State]:
        self.require_length(x.shape[2])
        state = varying_like(state, x)
        y, state = self._layers(lax.scan, jnp.moveaxis(x, 2, 0), state, train)
        return jnp.moveaxis(y, 0, 2), state

    def _layers(
        self, run: Callable[..., tuple[Memory, Array]], x: Array, state: State, train: bool
    ) -> tuple[Array, State]:
        """Runs each layer over all its input: ``(T, B, C)`` with ``lax.scan``, or ``(B, C)``."""
        memories = []
        for layer, weights in enumerate(self.weights):
            weights = {name: weight.astype(x.dtype) for name, weight in weights.items()}
            memory = tuple(state[name][:, layer] for name in self._sizes)
            # The contribution of the input needs no memory: one product computes it for all steps.
            memory, x = run(partial(self._advance, weights), memory, _affine(weights, "ih", x))
            memories.append(memory)
            if layer + 1 < self.num_layers:
                x = self.between.clip(x, train=train)
        stacked = (jnp.stack(each, axis=1) for each in zip(*memories, strict=True))
        return x, dict(zip(self._sizes, stacked, strict=True))

    @nn.nowrap
    def _advance(self, weights: Weights, memory: Memory, x: Array) -> tuple[Memory, Array]:
        """Runs one step of one layer."""
        hidden, *others = self._cell(x, _affine(weights, "hh", memory[0]), memory)
        if "kernel_hr" in weights:
            hidden = times(hidden, weights["kernel_hr"])
        return (hidden, *others), hidden

    # The hidden state, in the layout of torch.

    def __call__(
        self, *inputs: Any, hx: Any = None, return_hidden: bool = False, **arguments: Any
    ) -> Any:
        """Runs the method of the call mode; ``forward`` can also take and return a hidden state.

        Args:
          *inputs: the inputs of that method; for ``forward``, a clip ``(B, input_size, T)``.
          **arguments: further arguments of that method, such as ``train``.
          hx: the hidden state to start from, zeros by default: ``h_0`` ``(num_layers, B, H_out)``;
            for an LSTM ``(h_0, c_0)``.
          return_hidden: whether to return the last hidden state too.

        Returns:
          What that method returns; for ``forward``, the outputs ``(B, H_out, T)``, and with
          ``return_hidden`` a tuple of these and ``h_n``, for an LSTM ``(h_n, c_n)``, shaped like
          ``hx``.

        Raises:
          InputError: if the clip does not fit the layer, or the hidden state does not fit the clip;
            for ``hx`` or ``return_hidden`` in another mode than ``forward``.
        """
        if hx is None and not return_hidden:
            return super().__call__(*inputs, **arguments)
        if (mode := current(self.call_mode)) != "forward":
            raise InputError(
                f"hx and return_hidden are of forward, not of {mode}: a stream starts from "
                "initial_state(hx), and hidden(state) is its hidden state"
            )
        return self._from_hidden(*inputs, hx=hx, return_hidden=return_hidden, **arguments)

    def _from_hidden(self, x: Any, train: bool = False, *, hx: Any, return_hidden: bool) -> Any:
        require_clips("forward", x)
        x = jnp.asarray(x)
        state = self.init_state(without_time(spec_of(x)))
        if hx is not None:
            state = self.initial_state(*(hx if isinstance(hx, tuple | list) else (hx,)))
            batch, dtype = len(state["hidden"]), state["hidden"].dtype
            if (batch, dtype) != (len(x), x.dtype):
                raise InputError(
                    f"the hidden state is of {dtype}, for a batch of {batch}, but the clip of "
                    f"{x.dtype}, for a batch of {len(x)}: they must agree"
                )
        y, state = self._over_time(x, state, train)
        return (y, self.hidden(state)) if return_hidden else y

    @nn.nowrap
    def initial_state(self, *hx: ArrayLike) -> State:
        """Returns the state of a stream that starts from a hidden state instead of zeros.

        In a network, this is the state of this layer alone.

        Args:
          *hx: ``h_0`` ``(num_layers, B, H_out)``, and for an LSTM ``c_0`` ``(num_layers, B,
            hidden_size)`` too.

        Returns:
          A state for ``forward_step`` and ``forward_steps``.

        Raises:
          InputError: for wrong shapes, unequal batch sizes or dtypes, or a dtype that is not
            floating.
        """
        specs = [spec_of(h) for h in hx]
        shapes = [spec.shape[:1] + spec.shape[2:] for spec in specs]
        if (
            shapes != [(self.num_layers, size) for size in self._sizes.values()]
            or len({(spec.shape[1], spec.dtype) for spec in specs}) > 1
            or not jnp.issubdtype(specs[0].dtype, jnp.floating)
        ):
            expected = [f"{name} ({self.num_layers}, B, {n})" for name, n in self._sizes.items()]
            given = [f"{spec.dtype}{list(spec.shape)}" for spec in specs]
            raise InputError(
                f"{type(self).__name__} starts from {' and '.join(expected)}, of one batch and one "
                f"floating dtype; got {' and '.join(given) or 'nothing'}"
            )
        arrays = (jnp.swapaxes(jnp.asarray(h), 0, 1) for h in hx)
        return dict(zip(self._sizes, arrays, strict=True))

    @nn.nowrap
    def hidden(self, state: State) -> Any:
        """Returns the hidden state in a stream's state: the inverse of :meth:`initial_state`.

        Args:
          state: the state of this layer.

        Returns:
          ``h_n`` ``(num_layers, B, H_out)``; for an LSTM ``(h_n, c_n)``, the latter ``(num_layers,
          B, hidden_size)``.

        Raises:
          InputError: for the state of another module.
        """
        given = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        if given != sorted(self._sizes):
            raise InputError(
                f"the state of {type(self).__name__} is a dict of {sorted(self._sizes)}, got "
                f"{given}; from the state of a network, give the part of this layer"
            )
        arrays = tuple(jnp.swapaxes(state[name], 0, 1) for name in self._sizes)
        return arrays if len(arrays) > 1 else arrays[0]


def _once(body: Callable[..., Any], memory: Memory, x: Array) -> Any:
    """Does for one step what ``lax.scan`` does for many."""
    return body(memory, x)


def _affine(weights: Weights, name: str, x: Array) -> Array:
    y = product(x, weights[f"kernel_{name}"])
    return y + weights[f"bias_{name}"] if f"bias_{name}" in weights else y


class RNN(_Recurrent):
    """Elman recurrent layers: ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``.

    The layers are unidirectional, as streaming requires. An output depends on every step up to its
    own; the receptive field is declared as 1.

    Source: ``torch.nn.RNN``; Elman, "Finding structure in time", 1990. Here, ``forward`` returns
    the output alone, so that the layer composes with others; see :meth:`__call__`.

    Example::

        rnn = co.RNN(input_size=10, hidden_size=20)
        x = jnp.ones((1, 10, 16))
        variables = rnn.init(jax.random.key(0), x)
        y, h_n = rnn.apply(variables, x, return_hidden=True)
        assert y.shape == (1, 20, 16) and h_n.shape == (1, 1, 20)

    Attributes:
      input_size: the number of channels of the input.
      hidden_size: the number of channels of the hidden state, and of the output.
      num_layers: the number of stacked layers, each of which takes the output of the one before.
      nonlinearity: "tanh" or "relu".
      bias: whether there are biases.
      dropout: the probability, in training, of zeroing an entry that a layer passes to the next.
      param_dtype: the dtype of the parameters. Computation is in the dtype of the input.

    Shapes:
      clip ``(B, input_size, T)`` to ``(B, hidden_size, T)``; step ``(B, input_size)`` to ``(B,
      hidden_size)``; state ``hidden`` ``(B, num_layers, hidden_size)``. Parameters of layer ``k``:
      ``kernel_ih_l{k}`` (in, hidden), ``kernel_hh_l{k}`` (hidden, hidden), ``bias_ih_l{k}``,
      ``bias_hh_l{k}``.

    Raises:
      ValueError: at construction, for sizes that are not positive, a dropout that is not a
        probability, or an unknown nonlinearity.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    gates = 1

    nonlinearity: str = "tanh"
    bias: bool = True
    dropout: float = 0.0
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        require_one_of("nonlinearity", self.nonlinearity, ("tanh", "relu"))
        super().__post_init__()

    @nn.nowrap
    def _cell(self, x: Array, h: Array, memory: Memory) -> Memory:
        return (jnp.tanh(x + h) if self.nonlinearity == "tanh" else jax.nn.relu(x + h),)


class LSTM(_Recurrent):
    """Long short-term memory, with an optional projection of the hidden state::

        i, f, o = sigmoid(W_i* x + b_i* + W_h* h + b_h*)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        c' = f * c + i * g
        h' = o * tanh(c')        # W_hr (o * tanh(c')), with proj_size

    The layers are unidirectional, as streaming requires. An output depends on every step up to its
    own; the receptive field is declared as 1.

    Source: ``torch.nn.LSTM``; Hochreiter and Schmidhuber, 1997; projections: Sak et al., 2014,
    https://arxiv.org/abs/1402.1128. Here, ``forward`` returns the output alone, so that the layer
    composes with others.

    Example::

        lstm = co.LSTM(input_size=10, hidden_size=20, num_layers=2)
        x = jnp.ones((1, 10, 16))
        variables = lstm.init(jax.random.key(0), x)
        h_0 = c_0 = jnp.zeros((2, 1, 20))

        # A clip, with its first and last hidden states, as in torch
        y, (h_n, c_n) = lstm.apply(variables, x, hx=(h_0, c_0), return_hidden=True)

        # The same as a stream
        state = lstm.initial_state(h_0, c_0)
        frames, state = lstm.apply(variables, state, x, method="forward_steps")
        h_n, c_n = lstm.hidden(state)

    Attributes:
      input_size: the number of channels of the input.
      hidden_size: the number of channels of the cell state, and of the hidden state if it is not
        projected.
      num_layers: the number of stacked layers, each of which takes the output of the one before.
      bias: whether there are biases.
      dropout: the probability, in training, of zeroing an entry that a layer passes to the next.
      proj_size: the number of channels of the projected hidden state; 0 for no projection.
      param_dtype: the dtype of the parameters. Computation is in the dtype of the input.

    Shapes:
      clip ``(B, input_size, T)`` to ``(B, H_out, T)``, where ``H_out`` is ``proj_size``, or
      ``hidden_size`` if it is 0; step ``(B, input_size)`` to ``(B, H_out)``; state ``hidden`` ``(B,
      num_layers, H_out)`` and ``cell`` ``(B, num_layers, hidden_size)``. Parameters of layer ``k``,
      the gates in the order i, f, g, o: ``kernel_ih_l{k}`` (in, 4 * hidden), ``kernel_hh_l{k}``
      (H_out, 4 * hidden), ``bias_ih_l{k}``, ``bias_hh_l{k}`` and, with ``proj_size``,
      ``kernel_hr_l{k}`` (hidden, H_out).

    Raises:
      ValueError: at construction, for sizes that are not positive, a dropout that is not a
        probability, or a ``proj_size`` that is not below ``hidden_size``.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    gates = 4

    bias: bool = True
    dropout: float = 0.0
    proj_size: int = 0
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.proj_size, int | np.integer)
        if not whole or not 0 <= self.proj_size < self.hidden_size:
            raise ValueError(f"{self.proj_size=} must be whole, and below {self.hidden_size=}")

    @property
    def _sizes(self) -> dict[str, int]:
        return {"hidden": self.proj_size or self.hidden_size, "cell": self.hidden_size}

    @nn.nowrap
    def _cell(self, x: Array, h: Array, memory: Memory) -> Memory:
        _, c = memory
        i, f, g, o = jnp.split(x + h, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c


class GRU(_Recurrent):
    """Gated recurrent units::

        r, z = sigmoid(W_i* x + b_i* + W_h* h + b_h*)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    The layers are unidirectional, as streaming requires. An output depends on every step up to its
    own; the receptive field is declared as 1.

    Source: ``torch.nn.GRU``; Cho et al., 2014, https://arxiv.org/abs/1406.1078. Here, ``forward``
    returns the output alone, so that the layer composes with others.

    Example::

        net = co.Sequential(co.GRU(10, 20), co.Linear(20, 4, channel_dim=1))
        variables = net.init(jax.random.key(0), method="declare")
        frame, state = net.apply(
            variables, net.init_state((1, 10)), jnp.ones((1, 10)), method="forward_step"
        )
        assert frame.value.shape == (1, 4) and frame.valid

    Attributes:
      input_size: the number of channels of the input.
      hidden_size: the number of channels of the hidden state, and of the output.
      num_layers: the number of stacked layers, each of which takes the output of the one before.
      bias: whether there are biases.
      dropout: the probability, in training, of zeroing an entry that a layer passes to the next.
      param_dtype: the dtype of the parameters. Computation is in the dtype of the input.

    Shapes:
      clip ``(B, input_size, T)`` to ``(B, hidden_size, T)``; step ``(B, input_size)`` to ``(B,
      hidden_size)``; state ``hidden`` ``(B, num_layers, hidden_size)``. Parameters of layer ``k``,
      the gates in the order r, z, n: ``kernel_ih_l{k}`` (in, 3 * hidden), ``kernel_hh_l{k}``
      (hidden, 3 * hidden), ``bias_ih_l{k}``, ``bias_hh_l{k}``.

    Raises:
      ValueError: at construction, for sizes that are not positive or a dropout that is not a
        probability.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    gates = 3

    bias: bool = True
    dropout: float = 0.0
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def _cell(self, x: Array, h: Array, memory: Memory) -> Memory:
        (before,) = memory
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, axis=-1), jnp.split(h, 3, axis=-1)
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n)
        return ((1 - z) * n + z * before,)
