"""What gradients keep of what was computed, and how they are."""

import functools
from collections.abc import Callable

import jax
from jax import Array

# A function whose gradient keeps its arguments, and computes anew what it needs of what was made of
# them. Else that is kept, which within a scan is written in every step: nine shifted copies of what
# a depthwise 3x3 sees.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def transposed(
    linear: Callable[[Array], Array], x: Array | jax.ShapeDtypeStruct
) -> Callable[[Array], Array]:
    """The transposed of a function that is linear in an array like ``x``."""
    pull = jax.linear_transpose(linear, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return lambda cotangent: pull(cotangent)[0]
