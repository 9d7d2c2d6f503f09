"""The lowering of pools: space by windows, time by the slices that make up a window.

The two are reduced separately, in clips as in steps, so that both treat ties and rounding alike.
Sums of half precision are computed in float32.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cojax.ops.gradient import recomputed
from cojax.ops.precision import accumulated, widened
from cojax.ops.windows import exceeds, padded_axis, strided
from cojax.timing import Axis

# Up to so many entries, their maximum is taken one by one, see _largest.
_FEW_ENTRIES = 16


def pads(axis: Axis, size: int) -> tuple[int, int]:
    """Returns the padding before and after into which the windows reach."""
    before, after = axis.pads_over(size)
    return before, max(after, 0)


def counts(axis: Axis, size: int, include_pad: bool) -> np.ndarray:
    """Returns the number of entries that each window averages over."""
    starts = np.arange(axis.length(size)) * axis.stride - axis.padding
    taps = starts[:, None] + np.arange(axis.kernel_size) * axis.dilation
    low, high = (-axis.padding, size + axis.padding) if include_pad else (0, size)
    return ((taps >= low) & (taps < high)).sum(axis=1)


def sum_axes(x: Array, axes: Sequence[Axis], first: int) -> Array:
    """Sums windows over the axes of ``x`` from ``first`` on, half precision in float32."""
    if all(axis == Axis(1, 1, 0, axis.dilation, axis.ceil_mode) for axis in axes):
        return widened(x)
    around = (1,) * first, (1,) * (x.ndim - first - len(axes))
    padding = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes, first):
        padding[i] = pads(axis, x.shape[i])
    return lax.reduce_window(
        widened(x),
        np.zeros((), accumulated(x.dtype)),
        lax.add,
        (*around[0], *(a.kernel_size for a in axes), *around[1]),
        (*around[0], *(a.stride for a in axes), *around[1]),
        padding,
        window_dilation=(*around[0], *(a.dilation for a in axes), *around[1]),
    )


def max_axes(x: Array, axes: Sequence[Axis], first: int) -> Array:
    """Returns the maxima of windows over the axes of ``x`` from ``first`` on."""
    for i, axis in enumerate(axes, first):
        x = max_axis(x, axis, i)
    return x


def max_axis(x: Array, axis: Axis, index: int) -> Array:
    """Returns the maxima of windows along one axis, as the maximum of strided slices.

    ``reduce_window`` with a dilation has no gradient.
    """
    if axis.kernel_size == 1 and axis.stride == 1 and not axis.padding:
        return x
    windows = axis.length(x.shape[index])
    x = padded_axis(x, index, pads(axis, x.shape[index]), -jnp.inf)
    taps = [
        strided(x, index, tap * axis.dilation, windows, axis.stride)
        for tap in range(axis.kernel_size)
    ]
    return maximum(jnp.stack(taps), 0, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def maximum(x: Array, first: Array | int, axis: int) -> Array:
    """Returns the maximum along an axis; its gradient goes to the first maximal entry, as in torch.

    Entries are in the order of a ring, of which the first is at index ``first``.

    The derivative of ``jnp.max`` compares every entry with the maximum. That goes wrong if XLA
    recomputes the pooled values for the comparison and rounds them differently.
    """
    return _largest(x, axis)


def _largest(x: Array, axis: int) -> Array:
    """Returns the maximum along an axis; of few entries, as the larger of one after another.

    On a CPU, XLA passes a reduction to another library, after which a step of CoI3D takes 1.09
    times as long, and 1.3 times in bfloat16.
    """
    if exceeds(x.shape[axis], _FEW_ENTRIES):
        return jnp.max(x, axis)
    return functools.reduce(
        jnp.maximum, (lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis]))
    )


@maximum.defjvp
def _maximum_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, first = primals
    entries = x.shape[axis]
    order = (first + jnp.arange(entries)) % entries
    place = (first + jnp.argmax(jnp.take(x, order, axis), axis)) % entries
    place = place.astype(np.min_scalar_type(entries))  # small, since the gradient keeps it

    @recomputed
    def taken(x: Array, place: Array) -> Array:
        # By a mask, since the gradient of a gather is a scatter, which is slow.
        there = lax.broadcasted_iota(place.dtype, x.shape, axis) == jnp.expand_dims(place, axis)
        return jnp.sum(jnp.where(there, x, 0), axis)

    return _largest(x, axis), taken(tangents[0], place)


def mean_divisor(sizes: Sequence[int], axes: Sequence[Axis], include_pad: bool) -> Array:
    """Returns the divisors of sums over windows: the number of entries in each, at least 1."""
    divisor = np.ones(())
    for size, axis in zip(sizes, axes, strict=True):
        divisor = np.multiply.outer(divisor, counts(axis, size, include_pad))
    return jnp.asarray(np.maximum(divisor, 1), jnp.int32)


def adaptive(x: Array, output_size: Sequence[int | None], first: int, largest: bool) -> Array:
    """Pools the axes from ``first`` on to the given sizes, as torch's adaptive pools do.

    Window ``i`` of ``n`` over ``size`` entries spans ``floor(i size / n)`` to
    ``ceil((i + 1) size / n)``; None leaves an axis as it is.
    """
    reduce = _kept_maximum if largest else _kept_mean
    for i, windows in enumerate(output_size, first):
        size = x.shape[i]
        if windows is None or windows == size:
            continue
        parts = [
            reduce(
                lax.slice_in_dim(x, w * size // windows, math.ceil((w + 1) * size / windows), 1, i),
                i,
            )
            for w in range(windows)
        ]
        x = jnp.concatenate(parts, axis=i)
    return x


def _kept_maximum(x: Array, axis: int) -> Array:
    return jnp.expand_dims(maximum(x, 0, axis), axis)


def _kept_mean(x: Array, axis: int) -> Array:
    return jnp.mean(x, axis, keepdims=True)
