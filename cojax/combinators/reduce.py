"""Reductions of several streams to one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from cojax.errors import InputError
from cojax.frames import with_time, without_time
from cojax.layout import channels_last, channels_second
from cojax.module import TimeLocal

Reduction = str | Callable[[Sequence[Array]], Array]

_REDUCTIONS: dict[str, Callable[[Sequence[Array]], Array]] = {
    "sum": functools.partial(functools.reduce, jnp.add),
    "mul": functools.partial(functools.reduce, jnp.multiply),
    "max": functools.partial(functools.reduce, jnp.maximum),
    "concat": functools.partial(jnp.concatenate, axis=-1),
}


class Reduce(TimeLocal):
    """Reduces several streams to one.

    Source: ``continual.Reduce``.

    Example::

        x = jnp.ones((1, 3, 5))
        assert co.Reduce("sum").apply({}, (x, x)).max() == 2
        assert co.Reduce("concat").apply({}, (x, x)).shape == (1, 6, 5)

    Attributes:
      reduce: "sum", "mul", "max", "concat" (of channels), or a function of a sequence of clips
        ``(B, C, T, *S)`` (of length 1 while stepping).

    Shapes:
      a tuple of streams of broadcastable shapes to a stream.

    Raises:
      ValueError: at construction, for an unknown reduction.
      InputError: for a single stream, or streams that cannot be reduced.
    """

    reduce: Reduction = "sum"

    def __post_init__(self) -> None:
        reduction(self.reduce)
        super().__post_init__()

    def output_spec(self, x: Any) -> Any:
        return reduced_spec(self.reduce, x)

    def clip(self, x: Any, train: bool = False) -> Any:
        require_one_length([clip.shape[2] for clip in x])
        return reduction(self.reduce)(x)


def reduction(reduce: Reduction) -> Callable[[Sequence[Array]], Array]:
    """Returns the function of clips that performs a reduction, given by name or as a function."""
    if callable(reduce):
        return reduce
    if reduce not in _REDUCTIONS:
        choices = ", ".join(map(repr, _REDUCTIONS))
        raise ValueError(f"reduce must be a function or one of {choices}, got {reduce!r}")
    return functools.partial(_reduced, _REDUCTIONS[reduce])


def _reduced(function: Callable[[Sequence[Array]], Array], xs: Sequence[Array]) -> Array:
    if len({x.ndim for x in xs}) > 1:
        return function(xs)
    return channels_second(function([channels_last(x) for x in xs]))


def reduced_spec(reduce: Reduction, streams: Any) -> Any:
    """Returns the spec of the reduction of streams of these specs."""
    if not isinstance(streams, tuple) or any(isinstance(s, tuple) for s in streams):
        raise InputError("a reduction takes several streams, none of them grouped; Broadcast first")
    try:
        y = jax.eval_shape(lambda *xs: reduction(reduce)(xs), *map(with_time, streams))
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(stream.shape) for stream in streams)
        raise InputError(
            f"steps of shapes {shapes} cannot be reduced by {reduce!r}: {error}"
        ) from error
    return without_time(y)


def require_one_length(lengths: Sequence[int]) -> None:
    """Raises an InputError unless the clips to reduce have these lengths in common."""
    if len(set(lengths)) > 1:
        raise InputError(
            f"the streams to reduce have {list(lengths)} steps; pad the branches alike, or crop "
            "with Delay(auto_shrink=...) or residual_shrink"
        )
