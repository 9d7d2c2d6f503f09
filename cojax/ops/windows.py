"""Padding and slicing of arrays, channels last, for windows over some of their axes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.errors import InconclusiveDimensionOperation

from cojax.ops.gradient import transposed
from cojax.timing import Axis

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def exceeds(size: int, limit: int) -> bool:
    """Returns whether a size is above a limit, or may be: ``jax.export`` has symbolic sizes."""
    try:
        return size > limit
    except InconclusiveDimensionOperation:
        return True


def padded(x: Array, axes: Sequence[Axis], first: int = 1, mode: str = "zeros") -> Array:
    """Pads the axes from ``first`` on, in a ``padding_mode`` of torch."""
    widths = [(0, 0)] * first + [axis.pads for axis in axes]
    widths += [(0, 0)] * (x.ndim - len(widths))
    return jnp.pad(x, widths, mode=_PAD_MODES[mode]) if any(map(any, widths)) else x


def padded_axis(x: Array, index: int, pads: tuple[int, int], value: float = 0) -> Array:
    """Pads one axis before and after with a value, or crops it where a padding is negative."""
    padding = [(0, 0, 0)] * x.ndim
    padding[index] = (*pads, 0)
    return lax.pad(x, jnp.array(value, x.dtype), padding)


def lengths(sizes: Sequence[int], axes: Sequence[Axis]) -> list[int]:
    """Returns the number of windows over each axis of these sizes."""
    return [axis.length(size) for size, axis in zip(sizes, axes, strict=True)]


def output_like(x: Array, kernel: Array, axes: Sequence[Axis]) -> Array:
    """Returns zeros in the shape of ``(B, *A, C)`` convolved with ``(*K, ..., C')``.

    In ``jax.shard_map``, they vary along the mesh axes along which one of the two does.
    """
    shape = (x.shape[0], *lengths(x.shape[1:-1], axes), kernel.shape[-1])
    zero = lax.full_like(x, 0, shape=()) + lax.full_like(kernel, 0, x.dtype, shape=())
    return lax.full_like(zero, 0, shape=shape)


def thinned(x: Array, axes: Sequence[Axis], first: int = 2) -> Array:
    """Returns the entries that windows of size 1 see along the axes from ``first`` on."""
    windows = lengths(x.shape[first : first + len(axes)], axes)
    return shifted(padded(x, axes, first), (0,) * len(axes), axes, windows, first)


def shifted(
    x: Array, place: Sequence[int], axes: Sequence[Axis], windows: Sequence[int], first: int = 1
) -> Array:
    """Returns the entry at this position of every window over the axes from ``first`` on."""
    for index, (tap, axis, length) in enumerate(zip(place, axes, windows, strict=True), first):
        x = strided(x, index, tap * axis.dilation, length, axis.stride)
    return x


def gathered(x: Array, axis: Axis) -> Array:
    """Returns the windows over the axis after the batch, ``(B, T, ...)`` to ``(B, T', k, ...)``.

    They are gathered at once; the axis is not padded.
    """
    begins = axis.stride * np.arange(axis.unpadded.length(x.shape[1]))
    places = begins[:, None] + axis.dilation * np.arange(axis.kernel_size)
    return jnp.take(x, places, axis=1, mode="clip")


def _counted_back(x: Array, count: Array) -> Array:
    return jnp.take(x, (count - np.arange(len(x))) % len(x), axis=0, mode="clip")


@jax.custom_jvp
def counted_back(x: Array, count: Array) -> Array:
    """Returns the entries of ``(n, ...)`` at ``(count - i) % n``, for each ``i`` below ``n``.

    It is its own transpose. That of a gather would be a scatter, which took half of the time of the
    gradient of a step (1024 to 256 channels of 14x14, 3 taps). In forward mode it is a scatter.
    """
    return _counted_back(x, count)


@counted_back.defjvp
def _counted_back_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, count = primals
    # In jax.shard_map, the entries vary along the mesh axes of the count too.
    like = x + lax.full_like(count, 0, x.dtype)
    change = transposed(lambda y: _counted_back(y, count), like)(tangents[0])
    return counted_back(x, count), change


def strided(x: Array, axis: int, start: int, length: int, stride: int) -> Array:
    """Returns ``length`` entries along an axis, from ``start`` on, a stride apart."""
    return lax.slice_in_dim(x, start, start + (length - 1) * stride + 1, stride, axis)
