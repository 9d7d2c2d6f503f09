"""Gradients: the recomputation of intermediate values, and transposes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from cojax.timing import Axis

# Makes a function whose gradient keeps only the arguments, and recomputes the intermediate values
# that it needs. Otherwise these are kept, and within a scan they are written in every step: nine
# shifted copies of what a depthwise 3x3 sees.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


# Of an input, a kernel and axes.
Bilinear = Callable[..., Array]


def bilinear(compute: Bilinear, by_input: Bilinear, by_kernel: Bilinear) -> Bilinear:
    """Makes a function of an input, a kernel and axes whose gradients are computed as given.

    Args:
      compute: the function, which is linear in the input and in the kernel.
      by_input: the same function, whose transpose with respect to the input is fast.
      by_kernel: the same function, whose transpose with respect to the kernel is fast.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
    def function(x: Array, kernel: Array, axes: tuple[Axis, ...]) -> Array:
        return compute(x, kernel, axes)

    @functools.partial(function.defjvp, symbolic_zeros=True)
    def jvp(axes: tuple[Axis, ...], primals: Any, tangents: Any) -> tuple[Array, Array]:
        (x, kernel), (x_dot, kernel_dot) = primals, tangents
        changes = []
        if not isinstance(x_dot, SymbolicZero):
            changes.append(by_input(x_dot, kernel, axes))
        if not isinstance(kernel_dot, SymbolicZero):
            changes.append(by_kernel(x, kernel_dot, axes))
        return function(x, kernel, axes), functools.reduce(jnp.add, changes)

    return function


def transposed(linear: Callable[[Array], Array], x: Array) -> Callable[[Array], Array]:
    """Returns the transpose of a function that is linear in an array like ``x``.

    In ``jax.shard_map``, the array that it is given need not vary along the mesh axes of ``x``.
    """
    pull = jax.linear_transpose(linear, x)
    return lambda cotangent: pull(cotangent + lax.full_like(x, 0, shape=()))[0]
