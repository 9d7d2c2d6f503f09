"""Depthwise convolutions, which are sums of shifted products, as are their gradients.

Sums are in float32 at least: in half precision, a CPU rounds every product and every sum separately
(a step of CoX3D-S in bfloat16 takes 18.6 ms then, and 11.3 ms with sums in float32).
"""

import collections
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cojax.ops.gradient import bilinear, recomputed, transposed
from cojax.ops.precision import widened
from cojax.ops.windows import lengths, output_like, padded, shifted, strided
from cojax.timing import Axis

# How many products are added up before they are summed, see _by_kernel.
_TERMS = 8


def depthwise(x: Array, kernel: Array, axes: Sequence[Axis]) -> Array:
    """Convolves ``(B, *A, C)`` with ``(*K, C')`` to ``(B, *A', C')``.

    All axes are padded at once: if each step of a clip were padded separately, it would be copied,
    and a clip of CoX3D-M would take 267 ms instead of 200.
    """
    dtype, axes = x.dtype, tuple(axes)
    x, kernel, axes = _prepared(x, kernel, axes)
    return _summed(x, kernel, axes).astype(dtype)


def depthwise_by_each(x: Array, kernels: Array, axes: Sequence[Axis]) -> Array:
    """Convolves ``(B, *A, C)`` with each of ``(n, *K, C')`` to ``(B, n, *A', C')``.

    All kernels are applied at once, which compiles in less time than one by one; a step of CoX3D-M
    with a batch of 8 takes 0.9 times as long.
    """
    dtype = x.dtype
    x, kernels, axes = _prepared(x, kernels, axes)
    return _summed_by_each(x, kernels, axes).astype(dtype)


def _prepared(
    x: Array, kernel: Array, axes: Sequence[Axis]
) -> tuple[Array, Array, tuple[Axis, ...]]:
    """Returns what is summed: in a wide dtype, padded, and with a channel for each of the kernel's.

    The axes are returned without their padding.
    """
    x = padded(widened(x), axes)
    if x.shape[-1] < kernel.shape[-1]:
        x = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    return x, widened(kernel), tuple(axis.unpadded for axis in axes)


def _sum_of_products(x: Array, kernel: Array, axes: Sequence[Axis], first: int = 1) -> Array:
    """Sums the products of each position of the kernel ``(*K, ..., C)`` and a shifted slice."""
    windows = lengths(x.shape[first : first + len(axes)], axes)
    return functools.reduce(
        jnp.add,
        (
            shifted(x, place, axes, windows, first) * kernel[place]
            for place in np.ndindex(*kernel.shape[: len(axes)])
        ),
    )


def _summed(x: Array, kernel: Array, axes: tuple[Axis, ...]) -> Array:
    """``_sum_of_products``, whose gradients keep only the input and the kernel."""
    if not axes:
        return x * kernel
    return recomputed(functools.partial(_along, axes=axes))(x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _summed_by_each(x: Array, kernels: Array, axes: tuple[Axis, ...]) -> Array:
    at_once = jnp.moveaxis(kernels, 0, -2)
    at_once = jnp.expand_dims(at_once, range(kernels.ndim - 1, kernels.ndim - 1 + len(axes)))
    return _sum_of_products(x[:, None], at_once, axes, first=2)


@_summed_by_each.defjvp
def _summed_by_each_jvp(axes: tuple[Axis, ...], primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates kernels one by one: the gradient of a broadcast kernel is 15 times slower."""

    def one_by_one(x: Array, kernels: Array) -> Array:
        return jnp.stack([_summed(x, kernel, axes) for kernel in kernels], axis=1)

    _, change = jax.jvp(one_by_one, primals, tangents)
    return _summed_by_each(*primals, axes), change


def _of_input(y: Array, kernel: Array, sizes: Sequence[int], axes: Sequence[Axis]) -> Array:
    """Returns the gradient with respect to an input of these sizes, given that of the output.

    Along an axis with a stride, entries that are a stride apart are seen by the same positions of
    the kernel: they are summed together, and the sums are then interleaved.
    """
    strides = [axis.stride for axis in axes]
    entries = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    reach = [(axis.extent - 1) // axis.stride for axis in axes]
    behind = [count - length for count, length in zip(entries, y.shape[1:-1], strict=True)]
    y = jnp.pad(y, [(0, 0), *zip(reach, behind, strict=True), (0, 0)])
    products: dict[tuple[int, ...], list[Array]] = collections.defaultdict(list)
    for place in np.ndindex(*kernel.shape[:-1]):
        taps = [tap * axis.dilation for tap, axis in zip(place, axes, strict=True)]
        seen = y
        for index, (tap, stride) in enumerate(zip(taps, strides, strict=True)):
            start = reach[index] - tap // stride
            seen = strided(seen, 1 + index, start, entries[index], 1)
        products[tuple(map(operator.mod, taps, strides))].append(seen * kernel[place])
    zeros = jnp.zeros((y.shape[0], *entries, y.shape[-1]), y.dtype)
    parts = [
        functools.reduce(jnp.add, products.get(part) or [zeros]) for part in np.ndindex(*strides)
    ]
    x = jnp.stack(parts).reshape(*strides, *zeros.shape)
    n = len(axes)
    x = x.transpose(n, *(i for axis in range(n) for i in (n + 1 + axis, axis)), 2 * n + 1)
    x = x.reshape(y.shape[0], *map(operator.mul, entries, strides), y.shape[-1])
    return x[:, *map(slice, sizes)]


def _by_input(x: Array, kernel: Array, axes: Sequence[Axis]) -> Array:
    """Computes the same convolution, with a gradient with respect to the input that is as fast."""
    of_output = functools.partial(_of_input, kernel=kernel, sizes=x.shape[1:-1], axes=axes)
    return transposed(of_output, output_like(x, kernel, axes))(x)


def _by_kernel(x: Array, kernel: Array, axes: Sequence[Axis]) -> Array:
    """Computes the same convolution, with a gradient with respect to the kernel that is as fast.

    The gradient is computed for one position of the kernel after another (in a loop, which compiles
    in a third of the time). The products of several blocks of steps are added up, and then summed
    by a matrix product: for a sum, XLA would copy what the position sees. (The matrix product has
    two rows, since one with a single row is fused into a loop with its operand, and takes ten times
    as long.)
    """
    places = jnp.asarray(list(np.ndindex(*kernel.shape[:-1])))
    output = output_like(x, kernel, axes)
    steps, *windows = output.shape[1:-1]
    block = -(-steps // _TERMS)

    def of_block(y: Array, x: Array, place: Array, start: int) -> Array:
        lengths = min(block, steps - start), *windows
        begins = [tap * axis.dilation for tap, axis in zip(place, axes, strict=True)]
        begins[0] += start * axes[0].stride
        sizes = [(n - 1) * axis.stride + 1 for n, axis in zip(lengths, axes, strict=True)]
        seen = lax.dynamic_slice(x, (0, *begins, 0), (x.shape[0], *sizes, x.shape[-1]))
        seen = seen[:, *(slice(None, None, axis.stride) for axis in axes)]
        missing = [(0, 0)] * y.ndim
        missing[1] = (0, block - lengths[0])
        return jnp.pad(seen * y[:, start : start + lengths[0]], missing)

    @recomputed
    def added(x: Array, place: Array, factor: Array) -> Array:
        def of_output(y: Array) -> Array:
            blocks = (of_block(y, x, place, start) for start in range(0, steps, block))
            total = functools.reduce(jnp.add, blocks).reshape(-1, y.shape[-1])
            ones = jnp.ones((2, len(total)), total.dtype)
            return jnp.matmul(ones, total, precision=lax.Precision.HIGHEST)[0]

        return transposed(of_output, output)(factor)

    def add(y: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        return y + added(x, *given), None

    flat = kernel.reshape(len(places), -1)
    y, _ = lax.scan(add, output, (places, flat))
    return y


# Over at least one axis, with gradients that are sums of shifted products too: with respect to the
# input they take 4 ms instead of 28, and with respect to the kernel 5 ms instead of 85 (16 steps of
# 39x39, 54 channels, 3x3x3).
_along = bilinear(_sum_of_products, _by_input, _by_kernel)
