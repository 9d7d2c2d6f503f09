"""Products of activations and kernels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from cojax.ops.gradient import bilinear
from cojax.ops.windows import exceeds

# Up to this many multiply-accumulates, a product is left to XLA's choice, see _by_eigen.
_FEW_PRODUCTS = 2**21


def times(a: Array, b: Array) -> Array:
    """Computes ``a @ b`` of two matrices, or of two batches of matrices of equal size.

    A CPU would first convert bfloat16 to float32, on a single core. If the sums are requested in
    float32, it multiplies bfloat16 as it is, though not by a single row or column. A step of
    CoOadTR-b1 then takes 3.1 ms instead of 16.5, and one of CoSlow 59 ms instead of 114.
    """
    if a.dtype != jnp.bfloat16:
        return _by_eigen(a, b, ()) if _is_large(a, b) else a @ b

    def with_more(a: Array, b: Array) -> Array:
        rows, columns = a.shape[-2], b.shape[-1]
        a, b = _at_least_two(a, -2), _at_least_two(b, -1)
        y = jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)
        return y[..., :rows, :columns]

    return lax.platform_dependent(a, b, cpu=with_more, default=jnp.matmul)


def _is_large(a: Array, b: Array) -> bool:
    """Returns whether matrices of float32 are large, and neither of them a vector."""
    return (
        a.ndim == 2
        and a.dtype == b.dtype == jnp.float32
        and exceeds(a.shape[0], 1)
        and exceeds(b.shape[1], 1)
        and exceeds(a.shape[0] * b.size, _FEW_PRODUCTS)
    )


@custom_vmap
def _as_convolution(a: Array, b: Array) -> Array:
    """Computes ``a @ b`` as a convolution along the rows, with a kernel of one row."""
    dimensions = ("NHC", "HIO", "NHC")
    return lax.conv_general_dilated(a[None], b[None], (1,), "VALID", dimension_numbers=dimensions)[
        0
    ]


@_as_convolution.def_vmap
def _as_convolutions(size: int, batched: Sequence[bool], a: Array, b: Array) -> tuple[Array, bool]:
    """Joins the rows of a batch; a batch of kernels would make a slow grouped convolution."""
    if batched[1]:
        return jnp.matmul(a, b), True
    return _as_convolution(lax.collapse(a, 0, 2), b).reshape(size, -1, b.shape[-1]), True


def _product(a: Array, b: Array, _: tuple[()] = ()) -> Array:
    return a @ b


def _on_cpu_by_eigen(a: Array, b: Array, _: tuple[()] = ()) -> Array:
    """Computes ``a @ b`` in a form that XLA passes to Eigen.

    XLA passes large products to another library, which lays out the kernel in memory each time. As
    convolutions along one axis, they go to Eigen: with 8 rows, one by a kernel of 1024x1024 takes
    0.44 ms instead of 0.62, and one of 49 rows by 2048x512 1.3 ms instead of 1.8. A step of
    CoX3D-M takes 0.71 of the time (0.82 in a batch of 8), one of CoSlow 0.91, one of CoST-GCN*
    0.84, and one of CoOadTR-b1 in a batch of 8 0.64. Smaller products are slower this way: a step
    of an LSTM of 128 channels in a batch of 8 would take 1.12 of the time.
    """
    return lax.platform_dependent(a, b, cpu=_as_convolution, default=_product)


# A product whose gradients are plain products.
_by_eigen = bilinear(_on_cpu_by_eigen, _product, _product)


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


@jax.custom_jvp
def product_with_each(x: Array, kernels: Array) -> Array:
    """Multiplies ``(n, C)`` by each of ``(k, C, C')`` to ``(k, n, C')``."""
    return times(jnp.broadcast_to(x, (len(kernels), *x.shape)), kernels)


@product_with_each.defjvp
def _product_with_each_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates products one by one: the gradient of a repeated input is four times slower.

    (196 rows of 1024 channels, 3 kernels of 256.)
    """

    def one_by_one(x: Array, kernels: Array) -> Array:
        return jnp.stack([times(x, kernel) for kernel in kernels])

    _, change = jax.jvp(one_by_one, primals, tangents)
    return product_with_each(*primals), change


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
