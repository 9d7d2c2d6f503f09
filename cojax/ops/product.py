"""Products of activations and kernels."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType
from jax.typing import DTypeLike

from cojax.ops.windows import exceeds

# Left to XLA, see _by_eigen: products of up to so many multiply-accumulates, and those of more than
# the few, but less than the many rows.
_FEW_PRODUCTS = 2**21
_FEW_ROWS, _MANY_ROWS = 32, 512
# Above this many kernels, products are not differentiated one by one, see product_with_each.
_MANY_KERNELS = 16


def times(a: Array, b: Array) -> Array:
    """Computes ``a @ b`` of two matrices, or of two batches of matrices of equal size.

    Large matrices of float32 may be multiplied by Eigen, see :func:`_by_eigen`.
    """
    return _by_eigen(a, b) if _suit_eigen(a, b) else _left_to_xla(a, b)


def times_transposed(a: Array, b: Array, dtype: DTypeLike | None = None) -> Array:
    """Computes ``a @ b.mT`` of two matrices, or of two batches of matrices of equal size.

    As a convolution, a large one would first transpose ``b``, on one core, each time (8 rows by
    1024x1024 would take 0.37 ms instead of 0.25, and 512 rows 5.2 ms instead of 4.5).
    """
    return _left_to_xla(a, b, transposed=True, dtype=dtype)


def _left_to_xla(
    a: Array, b: Array, transposed: bool = False, dtype: DTypeLike | None = None
) -> Array:
    """Computes ``a @ b`` or ``a @ b.mT`` as XLA does, in this dtype; by default, in that of ``a``.

    A CPU would first convert bfloat16 to float32, on a single core. It multiplies bfloat16 as it is
    if sums are requested in float32, there is more than one row and column, and the axes of both
    operands are in order. A step of CoOadTR-b1 then takes 3.1 ms instead of 16.5 and one of CoSlow
    59 ms instead of 114; without the order of axes, CoOadTR-b1 at batch 8 takes 1.9 ms instead of
    1.3.
    """
    batch = tuple(range(a.ndim - 2))
    across, along = (-2, -1) if transposed else (-1, -2)  # The axes of b: kept, and summed over.
    dims = ((a.ndim - 1,), (b.ndim + along,)), (batch, batch)
    dtype = a.dtype if dtype is None else dtype
    multiplied = functools.partial(lax.dot_general, dimension_numbers=dims)

    def at_once(a: Array, b: Array) -> Array:
        return multiplied(a, b, preferred_element_type=dtype)

    if a.dtype != jnp.bfloat16:
        return at_once(a, b)

    def as_they_are(a: Array, b: Array) -> Array:
        rows, columns = a.shape[-2], b.shape[across]
        a, b = _at_least_two(a, -2), _at_least_two(b, across)
        y = multiplied(_in_order(a), _in_order(b), preferred_element_type=jnp.float32)
        return y[..., :rows, :columns].astype(dtype)

    return lax.platform_dependent(a, b, cpu=as_they_are, default=at_once)


@jax.custom_jvp
def _in_order(x: Array) -> Array:
    """Returns the same array, of which XLA assumes that its axes are in order in memory.

    Of a transposed array, it assumes that only its axes are renamed. It assumes order for the
    result of a reduction, and removes one along a single number later. The barrier keeps it from
    renaming the axes of the operand again, for it then compiles a product that it cannot run.
    """
    return lax.optimization_barrier(jnp.max(x[None], axis=0))


@_in_order.defjvp
def _in_order_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _in_order(*primals), tangents[0]


def _suit_eigen(a: Array, b: Array) -> bool:
    """Returns whether these are two matrices of float32 of sizes that Eigen multiplies faster.

    Sizes that ``jax.export`` does not know are left to XLA. So are matrices of an explicit
    sharding, which a convolution would need to be told.
    """
    if a.ndim != 2 or a.dtype != jnp.float32 or b.dtype != jnp.float32:
        return False
    if any(AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types for x in (a, b)):
        return False
    rows, columns = a.shape[0], b.shape[1]
    vectors = exceeds(2, rows) or exceeds(2, columns)
    between = exceeds(rows, _FEW_ROWS) and exceeds(_MANY_ROWS, rows)
    return not (vectors or between or exceeds(_FEW_PRODUCTS + 1, rows * b.size))


@custom_vmap
def _convolved(a: Array, b: Array) -> Array:
    """Computes ``(n, R, C) @ (C, C')`` as a convolution along the rows, with a kernel of one."""
    return lax.conv_general_dilated(
        a, b[None], (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
    )


@_convolved.def_vmap
def _all_convolved(size: int, batched: Sequence[bool], a: Array, b: Array) -> tuple[Array, bool]:
    """Adds a batch to the images; a batch of kernels would make a slow, grouped convolution."""
    if batched[1]:
        return jnp.matmul(a, b[:, None]), True
    y = _convolved(lax.collapse(a, 0, 2), b)
    return y.reshape(*a.shape[:2], *y.shape[1:]), True


@jax.custom_jvp
def _by_eigen(a: Array, b: Array) -> Array:
    """Computes ``a @ b`` in a form that, on a CPU, XLA passes to Eigen.

    XLA passes products to another library, which lays out the kernel in memory each time. As
    convolutions along one axis, they go to Eigen. Without AVX-512, all large products are faster
    this way: 49 rows by 2048x512 take 1.3 ms instead of 1.8. With AVX-512 they take 1.2 times as
    long, and only products of few rows, which hardly use the kernel, and of many are faster. A step
    of CoOadTR-b1 in a batch of 8 takes 0.9 of the time (0.64 without AVX-512), and one of CoX3D-M
    0.95. Small products are slower: a step of an LSTM of 128 channels in a batch of 8 would take
    1.12 times as long.
    """
    return lax.platform_dependent(
        a, b, cpu=lambda a, b: _convolved(a[None], b)[0], default=jnp.matmul
    )


@_by_eigen.defjvp
def _by_eigen_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates as a plain product."""
    _, change = jax.jvp(jnp.matmul, primals, tangents)
    return _by_eigen(*primals), change


def _at_least_two(x: Array, axis: int) -> Array:
    """Appends zeros to a single row or column, and to as many as ``jax.export`` does not know."""
    few = exceeds(2, x.shape[axis])
    return jnp.concatenate([x, jnp.zeros_like(x)], axis) if few else x


def product(x: Array, kernel: Array) -> Array:
    """Computes ``(..., C) @ (C, C')`` as a product of two matrices.

    With more axes, XLA transposes the gradient of the output for that of the kernel, channels
    first, on one core (which takes 4.5 ms for 3600 rows of 256 channels, as much as the product).
    """
    y = times(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def product_transposed(x: Array, kernel: Array) -> Array:
    """Computes ``(..., C) @ (C', C).T`` as a product of two matrices."""
    y = times_transposed(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[0])


def _with_each(x: Array, kernels: Array) -> Array:
    return times(jnp.broadcast_to(x, (len(kernels), *x.shape)), kernels)


@jax.custom_jvp
def product_with_each(x: Array, kernels: Array) -> Array:
    """Multiplies ``(n, C)`` by each of ``(k, C, C')`` to ``(k, n, C')``."""
    return _with_each(x, kernels)


@product_with_each.defjvp
def _product_with_each_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates products one by one, unless there are many.

    The gradient of a repeated input takes four times as long (196 rows of 1024 channels, 3 kernels
    of 256).
    """

    def one_by_one(x: Array, kernels: Array) -> Array:
        return jnp.stack([times(x, kernel) for kernel in kernels])

    few = len(primals[1]) <= _MANY_KERNELS
    _, change = jax.jvp(one_by_one if few else _with_each, primals, tangents)
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
