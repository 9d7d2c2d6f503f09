"""How convolutions are lowered: channels last, and never over time.

What a convolution sees of time is stacked in front of the channels, ``(B, *S, k, C)``: a step's
window, or the windows of all steps of a clip, folded into the batch. So a convolution is spatial,
with ``k C`` input channels, and one that does not look around in space is a matrix product. On a
CPU, 3-D convolutions are up to a hundred times slower (54 channels, 56x56, 3x3x3 taps, depthwise:
58.8 ms as such, 10.2 as 2-D grouped convolutions, 0.25 as multiply-adds), and channels-first ones
inside ``lax.scan`` 20 to 40 times.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cojax.timing import Axis

_SPACE = "HW"
# Up to so many numbers that an output sees, and so many outputs of a frame, see _spatial.
_FEW_NUMBERS = 32
_FEW_PLACES = 14 * 14

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_space(x: Array, space: Sequence[Axis], mode: str, first: int = 1) -> Array:
    """Pads the spatial axes from ``first`` on, in torch's ``padding_mode``."""
    widths = [(0, 0)] * first + [axis.pads for axis in space]
    widths += [(0, 0)] * (x.ndim - len(widths))
    return jnp.pad(x, widths, mode=_PAD_MODES[mode]) if any(map(any, widths)) else x


def convolve_clip(x: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """``(B, T, *S, C)``, padded, with ``(k, *K, C / groups, C')`` to ``(B, T', *S', C')``."""
    time, *space = axes
    steps = time.length(x.shape[1])
    taps = [
        _strided(x, 1, tap * time.dilation, steps, time.stride) for tap in range(time.kernel_size)
    ]
    if groups == x.shape[-1] > 1:
        return _depthwise(taps, kernel, space, first=2)
    windows = jnp.stack(taps, axis=-2)
    y = convolve_window(windows.reshape(-1, *windows.shape[2:]), kernel, space, groups)
    return y.reshape(*windows.shape[:2], *y.shape[1:])


def convolve_window(window: Array, kernel: Array, space: Sequence[Axis], groups: int) -> Array:
    """``(B, *S, k, C)``, padded, with ``(k, *K, C / groups, C')`` to ``(B, *S', C')``."""
    *_, taps, channels = window.shape
    if groups == channels > 1:
        return _depthwise([window[..., tap, :] for tap in range(taps)], kernel, space, first=1)
    if any(axis.kernel_size > 1 for axis in space):
        return _spatial(window, kernel, space, groups)
    lengths = [axis.length(size) for size, axis in zip(window.shape[1:-2], space, strict=True)]
    window = _shifted(window, (0,) * len(space), space, lengths)
    return _pointwise(window, kernel.reshape(taps, *kernel.shape[-2:]), groups)


def _pointwise(window: Array, kernel: Array, groups: int) -> Array:
    """A matrix product over taps and channels (365 GFLOP/s where a convolution ran at 205)."""
    if groups == 1:
        window = window.reshape(*window.shape[:-2], -1)
        return window @ kernel.reshape(-1, kernel.shape[-1])
    window = window.reshape(*window.shape[:-1], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    out = jnp.einsum("...kgc,kcgo->...go", window, kernel)
    return out.reshape(*out.shape[:-2], -1)


def _depthwise(taps: Sequence[Array], kernel: Array, space: Sequence[Axis], first: int) -> Array:
    """Multiply-adds of shifted slices of each tap, over the spatial axes from ``first`` on."""
    sizes = taps[0].shape[first:-1]
    lengths = [axis.length(size) for size, axis in zip(sizes, space, strict=True)]
    multiplier = kernel.shape[-1] // taps[0].shape[-1]
    total: Array | None = None
    for place in np.ndindex(*kernel.shape[:-2]):
        part = _shifted(taps[place[0]], place[1:], space, lengths, first)
        if multiplier > 1:
            part = jnp.repeat(part, multiplier, axis=-1)
        part = part * kernel[(*place, 0)]
        total = part if total is None else total + part
    assert total is not None
    return total


def _spatial(window: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """A spatial convolution whose input channels are those of every step in the window.

    Where an output sees few numbers, or there are few outputs, a matrix product with what each
    sees, laid out in a row, is faster: 3 to 24 channels, 3x3 of 226x226 in 0.58 ms instead of 2.69;
    512 channels, 3x3 of 9x9 in 1.55 ms instead of 2.67. In between (64 channels of 58x58, and
    above) it is not, and of batches it would fill the memory.
    """
    taps, *size = kernel.shape[:-2]
    batch, *extent, _, channels = window.shape
    if groups > 1:
        window = window.reshape(batch, *extent, taps, groups, channels // groups)
        window = jnp.moveaxis(window, -3, -2)
    window = window.reshape(batch, *extent, taps * channels)
    kernel = jnp.moveaxis(kernel, 0, -3).reshape(*size, taps * channels // groups, -1)
    lengths = [axis.length(size) for size, axis in zip(extent, axes, strict=True)]
    seen, places = math.prod(kernel.shape[:-1]), math.prod(lengths)
    if groups == 1 and (seen <= _FEW_NUMBERS or places <= _FEW_PLACES):
        shifted = (_shifted(window, place, axes, lengths) for place in np.ndindex(*size))
        return jnp.concatenate(list(shifted), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
    space = _SPACE[: len(size)]
    return lax.conv_general_dilated(
        window,
        kernel,
        window_strides=[axis.stride for axis in axes],
        padding="VALID",
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=("N" + space + "C", space + "IO", "N" + space + "C"),
        feature_group_count=groups,
    )


def _shifted(
    x: Array, place: Sequence[int], axes: Sequence[Axis], lengths: Sequence[int], first: int = 1
) -> Array:
    """What every window over the axes from ``first`` on has in this place."""
    for index, (tap, axis, length) in enumerate(zip(place, axes, lengths, strict=True), first):
        x = _strided(x, index, tap * axis.dilation, length, axis.stride)
    return x


def _strided(x: Array, axis: int, start: int, length: int, stride: int) -> Array:
    """So many entries along an axis, a stride apart."""
    return lax.slice_in_dim(x, start, start + (length - 1) * stride + 1, stride, axis)
