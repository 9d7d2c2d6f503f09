"""What windows over some axes see of an array, channels last."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from cojax.timing import Axis

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def padded(x: Array, axes: Sequence[Axis], first: int = 1, mode: str = "zeros") -> Array:
    """With what is padded around the axes from ``first`` on, in torch's ``padding_mode``."""
    widths = [(0, 0)] * first + [axis.pads for axis in axes]
    widths += [(0, 0)] * (x.ndim - len(widths))
    return jnp.pad(x, widths, mode=_PAD_MODES[mode]) if any(map(any, widths)) else x


def lengths(sizes: Sequence[int], axes: Sequence[Axis]) -> list[int]:
    """How many windows there are over axes of these sizes."""
    return [axis.length(size) for size, axis in zip(sizes, axes, strict=True)]


def thinned(x: Array, axes: Sequence[Axis], first: int = 2) -> Array:
    """What windows of size 1 see of the axes from ``first`` on."""
    windows = lengths(x.shape[first : first + len(axes)], axes)
    return shifted(padded(x, axes, first), (0,) * len(axes), axes, windows, first)


def shifted(
    x: Array, place: Sequence[int], axes: Sequence[Axis], windows: Sequence[int], first: int = 1
) -> Array:
    """What every window over the axes from ``first`` on has in this place."""
    for index, (tap, axis, length) in enumerate(zip(place, axes, windows, strict=True), first):
        x = strided(x, index, tap * axis.dilation, length, axis.stride)
    return x


def strided(x: Array, axis: int, start: int, length: int, stride: int) -> Array:
    """So many entries along an axis, a stride apart."""
    return lax.slice_in_dim(x, start, start + (length - 1) * stride + 1, stride, axis)
