"""How activations are multiplied by a kernel."""

import jax.numpy as jnp
from jax import Array, lax


def times(a: Array, b: Array) -> Array:
    """``a @ b`` of matrices, or of as many matrices each.

    Of bfloat16 a CPU would first make float32, by a single core. Asked for sums in float32, it
    multiplies what there is, though not by a single row or column. So a step of CoOadTR-b1 takes
    3.1 ms instead of 16.5, and one of CoSlow 59 instead of 114.
    """
    if a.dtype != jnp.bfloat16:
        return a @ b

    def with_more(a: Array, b: Array) -> Array:
        rows, columns = a.shape[-2], b.shape[-1]
        a, b = _at_least_two(a, -2), _at_least_two(b, -1)
        y = jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)
        return y[..., :rows, :columns]

    return lax.platform_dependent(a, b, cpu=with_more, default=jnp.matmul)


def _at_least_two(x: Array, axis: int) -> Array:
    """With zeros behind a single row or column."""
    return x if x.shape[axis] > 1 else jnp.concatenate([x, jnp.zeros_like(x)], axis)


def product(x: Array, kernel: Array) -> Array:
    """``(..., C) @ (C, C')``, as a product of two matrices.

    With more axes XLA lays the gradient of the output out anew for that of the kernel, channels
    first, on one core (3600 rows of 256 channels: 4.5 ms, as much as the product).
    """
    y = times(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def from_heads(x: Array, kernels: Array) -> Array:
    """``(..., H, D)`` with ``(H, D, C)`` to ``(..., H, C)``: each head by a kernel of its own."""
    rows = jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, 1)
    y = jnp.moveaxis(times(rows, kernels), 0, 1)
    return y.reshape(*x.shape[:-1], -1)


def to_heads(x: Array, kernels: Array) -> Array:
    """``(..., H, C)`` with ``(H, D, C)`` to ``(..., H, D)``: each head by a kernel of its own.

    The kernels in front (8 streams, 8 heads of 128, 1024 channels: 0.2 ms instead of 0.37).
    """
    rows = jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, -1)
    y = jnp.moveaxis(times(kernels, rows), -1, 0)
    return y.reshape(*x.shape[:-1], -1)
