"""How activations are multiplied by a kernel."""

from jax import Array


def product(x: Array, kernel: Array) -> Array:
    """``(..., C) @ (C, C')``, as a product of two matrices.

    With more axes XLA lays the gradient of the output out anew for that of the kernel, channels
    first, on one core (3600 rows of 256 channels: 4.5 ms, as much as the product).
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
