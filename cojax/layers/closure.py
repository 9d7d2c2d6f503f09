"""Modules that wrap functions and constants."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax import Array
from jax.typing import ArrayLike

from cojax.chunks import Chunk
from cojax.errors import InputError
from cojax.frames import Signal, Spec, State, with_time, without_time
from cojax.layout import as_clip, as_step
from cojax.module import CoModule, TimeLocal

Function = Callable[[Array], Array]


class Lambda(TimeLocal):
    """Wraps a function of arrays that is local in time.

    Source: ``continual.Lambda``.

    Example::

        mean = co.Lambda(lambda x: x.mean(1, keepdims=True))
        assert mean.apply({}, jnp.ones((1, 3, 5))).shape == (1, 1, 5)

    Attributes:
      fn: the function, called with a step ``(B, C, *S)``.
      forward_only_fn: called by ``forward`` instead, with the whole clip ``(B, C, T, *S)``.
      forward_step_only_fn: called by ``forward_step`` instead, with a step ``(B, C, *S)``.
      forward_steps_only_fn: called by ``forward_steps`` instead, with each step as a clip of
        length 1, since a stream may be divided into chunks anywhere.
      takes_time: whether ``fn`` takes clips ``(B, C, T, *S)`` (of length 1 while stepping).

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B', C', T, *S')``; step ``(B, C, *S)`` to ``(B', C', *S')``.

    Raises:
      ValueError: at construction, unless there is a function for every mode.
      InputError: if the function fails on its input, or changes the length of a clip.
    """

    fn: Function | None = None
    forward_only_fn: Function | None = None
    forward_step_only_fn: Function | None = None
    forward_steps_only_fn: Function | None = None
    takes_time: bool = False

    def __post_init__(self) -> None:
        by_mode = (self.forward_only_fn, self.forward_step_only_fn, self.forward_steps_only_fn)
        if self.fn is None and None in by_mode:
            raise ValueError(
                "Lambda needs fn, or all of forward_only_fn, forward_step_only_fn and "
                "forward_steps_only_fn"
            )
        for fn in (self.fn, *by_mode):
            if fn is not None and not callable(fn):
                raise ValueError(f"Lambda wraps functions, got {fn!r}")
        super().__post_init__()

    def output_spec(self, x: Spec) -> Spec:
        if self.forward_only_fn is not None:
            return without_time(_spec_of(self.forward_only_fn, with_time(x)))
        return local_spec(self._clip, x)

    def clip(self, x: Array, train: bool = False) -> Array:
        return (self.forward_only_fn or self._clip)(x)

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        x = signal.clean()
        by_mode = self.forward_steps_only_fn if signal.chunked else self.forward_step_only_fn
        if by_mode is not None and not signal.chunked:
            return signal.becomes(by_mode(x)), state
        whole = by_mode or self._clip
        return signal.becomes(as_step(whole(as_clip(x)))), state

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        if self.forward_steps_only_fn is not None:  # takes a step at a time
            return CoModule.chunk(self, state, chunk)
        return chunk.becomes(self._clip(chunk.clean())), state

    def _clip(self, x: Array) -> Array:
        if self.fn is None:
            return cast(Function, self.forward_only_fn)(x)
        return self.fn(x) if self.takes_time else jax.vmap(self.fn, in_axes=2, out_axes=2)(x)


def local_spec(function: Function, x: Spec, what: str = "the function") -> Spec:
    """Returns the spec of a step after a function of clips has been applied.

    Raises:
      InputError: if the function fails on such steps or changes the length of a clip.
    """
    for steps in (2, 1):
        y = _spec_of(function, with_time(x, steps), what)
        if y.shape[2:3] != (steps,):
            raise InputError(
                f"{what} is not local in time: of a clip of shape {with_time(x, steps).shape} it "
                f"makes one of shape {y.shape}"
            )
    return without_time(y)


def _spec_of(function: Function, clip: Spec, what: str = "the function") -> Spec:
    try:
        y = jax.eval_shape(function, clip)
    except (TypeError, ValueError, FlaxError) as error:
        raise InputError(
            f"{what} failed on a step of shape {without_time(clip).shape}: {error}"
        ) from error
    if not isinstance(y, jax.ShapeDtypeStruct):
        raise InputError(f"{what} must return one array, got a {type(y).__name__}")
    return y


class Identity(TimeLocal):
    """Returns its input unchanged.

    Source: ``torch.nn.Identity``; arguments are ignored, as in torch.

    Example::

        x = jnp.ones((1, 3, 5))
        assert co.Identity(54, unused=True).apply({}, x) is x

    Shapes:
      any, kept.
    """

    def __init__(self, *_: Any, **arguments: Any):
        fields = {field.name for field in dataclasses.fields(self)}
        self._construct(**{name: arguments[name] for name in fields & arguments.keys()})

    def clip(self, x: Array, train: bool = False) -> Array:
        return x


class _WithConstant(TimeLocal):
    """Base class for functions of a clip and a constant that broadcasts against it."""

    @property
    def _value(self) -> ArrayLike:
        raise NotImplementedError

    def output_spec(self, x: Spec) -> Spec:
        clip, constant = with_time(x).shape, jnp.shape(self._value)
        try:
            shape = jnp.broadcast_shapes(clip, constant)
        except ValueError:
            shape = ()
        value = jnp.result_type(self._value)
        if jnp.issubdtype(value, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(
                f"a constant of {value} would be truncated to {x.dtype}; cast the frames"
            )
        if shape[2:3] != (1,):
            raise InputError(
                f"the constant of shape {constant} does not broadcast against a clip "
                f"(batch, channel, time, *space) of steps of shape {x.shape}"
            )
        return without_time(Spec(shape, x.dtype))


class Add(_WithConstant):
    """Adds a number, or an array that broadcasts against clips.

    Source: ``continual.Add``.

    Example::

        add = co.Add(np.array([1.0, 2.0]).reshape(1, 2, 1))  # a number for each channel
        y = add.apply({}, jnp.zeros((1, 2, 3)))
        assert y[0, :, 0].tolist() == [1, 2]

    Attributes:
      constant: the number or array to add.

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, broadcast against the constant.

    Raises:
      InputError: if the constant does not broadcast against clips, or is floating where the input
        is not, so that its fraction would be lost.
    """

    constant: ArrayLike

    @property
    def _value(self) -> ArrayLike:
        return self.constant

    def clip(self, x: Array, train: bool = False) -> Array:
        return x + jnp.asarray(self.constant, x.dtype)


class Multiply(_WithConstant):
    """Multiplies by a number, or an array that broadcasts against clips.

    Source: ``continual.Multiply``.

    Example::

        half = co.Multiply(0.5)
        assert half.apply({}, jnp.ones((1, 2, 3))).max() == 0.5

    Attributes:
      factor: the number or array to multiply by.

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, broadcast against the factor.

    Raises:
      InputError: as for :class:`Add`.
    """

    factor: ArrayLike

    @property
    def _value(self) -> ArrayLike:
        return self.factor

    def clip(self, x: Array, train: bool = False) -> Array:
        return x * jnp.asarray(self.factor, x.dtype)


class Constant(_WithConstant):
    """Returns a constant, broadcast against its input.

    Source: ``continual.Constant``.

    Example::

        seven = co.Constant(7)
        assert seven.apply({}, jnp.zeros((1, 2, 3))).tolist() == [[[7, 7, 7], [7, 7, 7]]]

    Attributes:
      constant: the number or array to return, in the dtype of the input.

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, broadcast against the constant.

    Raises:
      InputError: as for :class:`Add`.
    """

    constant: ArrayLike

    @property
    def _value(self) -> ArrayLike:
        return self.constant

    def clip(self, x: Array, train: bool = False) -> Array:
        constant = jnp.asarray(self.constant, x.dtype)
        return jnp.broadcast_to(constant, jnp.broadcast_shapes(x.shape, constant.shape))


def Zero() -> Constant:  # noqa: N802 - named like the module in continual
    """Returns a module that outputs zeros in the shape of its input.

    Source: ``continual.Zero``.

    Example::

        assert not co.Zero().apply({}, jnp.ones((1, 2, 3))).any()

    Shapes:
      any, kept.
    """
    return Constant(0)


def One() -> Constant:  # noqa: N802 - named like the module in continual
    """Returns a module that outputs ones in the shape of its input.

    Source: ``continual.One``.

    Example::

        assert co.One().apply({}, jnp.zeros((1, 2, 3))).all()

    Shapes:
      any, kept.
    """
    return Constant(1)
