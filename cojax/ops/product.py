"""How activations are multiplied by a kernel."""

import jax.numpy as jnp
from jax import Array


def product(x: Array, kernel: Array) -> Array:
    """``(..., C) @ (C, C')``, as a product of two matrices.

    With more axes XLA lays the gradient of the output out anew for that of the kernel, channels
    first, on one core (3600 rows of 256 channels: 4.5 ms, as much as the product).
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def from_heads(x: Array, kernels: Array) -> Array:
    """``(..., H, D)`` with ``(H, D, C)`` to ``(..., H, C)``: each head by a kernel of its own."""
    rows = jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, 1)
    y = jnp.moveaxis(rows @ kernels, 0, 1)
    return y.reshape(*x.shape[:-1], -1)


def to_heads(x: Array, kernels: Array) -> Array:
    """``(..., H, C)`` with ``(H, D, C)`` to ``(..., H, D)``: each head by a kernel of its own.

    The kernels in front (8 streams, 8 heads of 128, 1024 channels: 0.2 ms instead of 0.37).
    """
    rows = jnp.moveaxis(x.reshape(-1, *x.shape[-2:]), 0, -1)
    y = jnp.moveaxis(kernels @ rows, -1, 0)
    return y.reshape(*x.shape[:-1], -1)
