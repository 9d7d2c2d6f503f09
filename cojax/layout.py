"""Channels last, inside.

To the user the channels come second. Convolutions, pools and sums over space are faster where they
come last (1.3 to 1.8 times on a CPU), so whatever computes along axes takes the channels to the
end, and what it returns back. Between two such layers the transpositions cancel: in a compiled
network nothing is ever transposed but its input and its output.
"""

import jax
import jax.numpy as jnp
from jax import Array


def channels_last(x: Array) -> Array:
    """``(B, C, ...)`` as ``(B, ..., C)``."""
    return jnp.moveaxis(x, 1, -1)


def channels_second(x: Array) -> Array:
    """``(B, ..., C)`` as ``(B, C, ...)``."""
    return jnp.moveaxis(x, -1, 1)


def spec_last(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The spec of a step ``(B, C, *S)``, as that of ``(B, *S, C)``."""
    return jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:], x.shape[1]), x.dtype)


def as_clip(x: Array) -> Array:
    """A step ``(B, C, *S)`` as a clip of one step, ``(B, C, 1, *S)``."""
    return channels_second(jnp.expand_dims(channels_last(x), 1))


def as_step(x: Array) -> Array:
    """A clip of one step, ``(B, C, 1, *S)``, as that step, ``(B, C, *S)``."""
    return channels_second(jnp.squeeze(channels_last(x), 1))
