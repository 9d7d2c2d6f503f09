"""Gradients: the recomputation of intermediate values, and transposes."""

import functools
from collections.abc import Callable

import jax
from jax import Array

# Makes a function whose gradient keeps only the arguments, and recomputes the intermediate values
# that it needs. Otherwise these are kept, and within a scan they are written in every step: nine
# shifted copies of what a depthwise 3x3 sees.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def transposed(
    linear: Callable[[Array], Array], x: Array | jax.ShapeDtypeStruct
) -> Callable[[Array], Array]:
    """Returns the transpose of a function that is linear in an array like ``x``."""
    pull = jax.linear_transpose(linear, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return lambda cotangent: pull(cotangent)[0]
