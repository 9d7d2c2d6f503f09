"""How convolutions are lowered.

A clip is convolved as it stands, ``(B, C, T, *S)``. A step sees a window of its last inputs,
channels last, ``(B, k, *S, C)``, and never needs a convolution over time: the window's steps are
further input channels of a spatial one. Inside ``lax.scan`` XLA:CPU runs channels-first
convolutions 20 to 40 times slower than these.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from cojax.timing import Axis

_SPACE = "HW"
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_space(x: Array, space: Sequence[Axis], mode: str, first_axis: int) -> Array:
    """Pads the spatial axes from ``first_axis`` on, in torch's ``padding_mode``."""
    widths = [(0, 0)] * first_axis + [axis.pads for axis in space]
    widths += [(0, 0)] * (x.ndim - len(widths))
    if not any(map(any, widths)):
        return x
    if mode == "zeros":
        return jnp.pad(x, widths)
    return jnp.pad(x, widths, mode=_PAD_MODES[mode])


def convolve_clip(x: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """``(B, C, T, *S)`` with a kernel ``(k, *K, C / groups, C')``, zero padded."""
    space = "T" + _SPACE[: x.ndim - 3]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[axis.stride for axis in axes],
        padding=[axis.pads for axis in axes],
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=("NC" + space, space + "IO", "NC" + space),
        feature_group_count=groups,
    )


def convolve_window(window: Array, kernel: Array, space: Sequence[Axis], groups: int) -> Array:
    """``(B, k, *S, C)``, padded, with a kernel ``(k, *K, C / groups, C')`` to ``(B, *S', C')``."""
    if all(axis.kernel_size == 1 for axis in space):
        strides = (1, 1, *(axis.stride for axis in space), 1)
        every = lax.slice(window, (0,) * window.ndim, window.shape, strides)
        return _pointwise(every, kernel, groups)
    if groups == window.shape[-1] > 1:
        return _depthwise(window, kernel, space)
    return _spatial(window, kernel, space, groups)


def _pointwise(window: Array, kernel: Array, groups: int) -> Array:
    """A matrix product over taps and channels (365 GFLOP/s where a convolution ran at 205)."""
    kernel = kernel.reshape(kernel.shape[0], *kernel.shape[-2:])
    if groups == 1:
        # Not as an einsum, for which XLA:CPU lays the kernel out anew in every step.
        window = jnp.moveaxis(window, 1, -2)
        return window.reshape(*window.shape[:-2], -1) @ kernel.reshape(-1, kernel.shape[-1])
    window = window.reshape(*window.shape[:-1], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    out = jnp.einsum("bk...gc,kcgo->b...go", window, kernel)
    return out.reshape(*out.shape[:-2], -1)


def _depthwise(window: Array, kernel: Array, space: Sequence[Axis]) -> Array:
    """Shifted multiply-adds (54 channels, 56x56, 27 taps: 0.37 ms; grouped 2-D convs: 10.2)."""
    channels = window.shape[-1]
    multiplier = kernel.shape[-1] // channels
    lengths = [
        axis.unpadded.length(size) for size, axis in zip(window.shape[2:-1], space, strict=True)
    ]
    total = None
    for tap, *offset in itertools.product(*map(range, kernel.shape[:-2])):
        index = []
        for place, length, axis in zip(offset, lengths, space, strict=True):
            start = place * axis.dilation
            index.append(slice(start, start + (length - 1) * axis.stride + 1, axis.stride))
        weight = kernel[(tap, *offset, 0)].reshape(channels, multiplier)
        part = window[(slice(None), tap, *index)][..., None] * weight
        total = part if total is None else total + part
    assert total is not None
    return total.reshape(*total.shape[:-2], -1)


def _spatial(window: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """A spatial convolution whose input channels are those of every step in the window."""
    taps, *size = kernel.shape[:-2]
    space = _SPACE[: len(size)]
    batch, _, *extent, channels = window.shape
    per_group = channels // groups
    window = window.reshape(batch, taps, *extent, groups, per_group)
    window = jnp.moveaxis(window, 1, -2).reshape(batch, *extent, groups * taps * per_group)
    kernel = jnp.moveaxis(kernel, 0, -3).reshape(*size, taps * per_group, -1)
    return lax.conv_general_dilated(
        window,
        kernel,
        window_strides=[axis.stride for axis in axes],
        padding="VALID",
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=("N" + space + "C", space + "IO", "N" + space + "C"),
        feature_group_count=groups,
    )
