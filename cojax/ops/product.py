"""Products of activations and kernels."""

import jax.numpy as jnp
from jax import Array, lax


def times(a: Array, b: Array) -> Array:
    """Computes ``a @ b`` of two matrices, or of two batches of matrices of equal size.

    A CPU would first convert bfloat16 to float32, on a single core. If the sums are requested in
    float32, it multiplies bfloat16 as it is, though not by a single row or column. A step of
    CoOadTR-b1 then takes 3.1 ms instead of 16.5, and one of CoSlow 59 ms instead of 114.
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
    """Appends zeros to a single row or column."""
    return x if x.shape[axis] > 1 else jnp.concatenate([x, jnp.zeros_like(x)], axis)


def product(x: Array, kernel: Array) -> Array:
    """Computes ``(..., C) @ (C, C')`` as a product of two matrices.

    With more axes, XLA transposes the gradient of the output for that of the kernel, channels
    first, on one core (which takes 4.5 ms for 3600 rows of 256 channels, as much as the product).
    """
    y = times(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def from_heads(x: Array, kernels: Array) -> Array:
    """Multiplies each head by its own kernel.

    ``(..., H, D)`` with ``(H, D, C)`` to ``(..., H, C)``.
    """
    rows = jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, 1)
    y = jnp.moveaxis(times(rows, kernels), 0, 1)
    return y.reshape(*x.shape[:-1], kernels.shape[-1])


def to_heads(x: Array, kernels: Array) -> Array:
    """Multiplies each head by its own kernel.

    ``(..., H, C)`` with ``(H, D, C)`` to ``(..., H, D)``. The kernels are the left operand, which
    takes 0.2 ms instead of 0.37 (8 streams, 8 heads of 128, 1024 channels).
    """
    rows = jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, -1)
    y = jnp.moveaxis(times(kernels, rows), -1, 0)
    return y.reshape(*x.shape[:-1], kernels.shape[1])
