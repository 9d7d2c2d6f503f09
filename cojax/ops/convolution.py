"""How convolutions are lowered: channels last, and never over time.

What a convolution sees of time is stacked in front of the channels, ``(B, *S, k, C)``: a step's
window, or the windows of all steps of a clip, folded into the batch. So a convolution is spatial,
with ``k C`` input channels, and one that does not look around in space is a matrix product. On a
CPU, 3-D convolutions are up to a hundred times slower (54 channels, 56x56, 3x3x3 taps, depthwise:
58.8 ms as such, 10.2 as 2-D grouped convolutions, 0.25 as multiply-adds), and channels-first ones
inside ``lax.scan`` 20 to 40 times.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cojax.ops.dense import convolution
from cojax.ops.depthwise import depthwise, depthwise_by_each
from cojax.ops.gradient import recomputed
from cojax.ops.product import product, times
from cojax.ops.windows import lengths, padded, shifted, strided, thinned
from cojax.timing import Axis

# Up to so many outputs, see _spatial.
_FEW_PLACES = 2 * 14 * 14
# From so many numbers in all windows on, see _over_time.
_MANY_NUMBERS = 2**18


def convolve_clip(x: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """``(B, T, *S, C)`` with ``(k, *K, C / groups, C')`` to ``(B, T', *S', C')``."""
    time, *space = axes
    steps = time.length(x.shape[1])
    over_time = all(axis.kernel_size == 1 for axis in space)
    if over_time and groups == 1 and time.kernel_size > 1:
        return _over_time(thinned(x, space), kernel.reshape(-1, *kernel.shape[-2:]), time)
    if groups == x.shape[-1] > 1:
        return depthwise(x, kernel[..., 0, :], axes)
    x = padded(x, [time])
    taps = [
        strided(x, 1, tap * time.dilation, steps, time.stride) for tap in range(time.kernel_size)
    ]
    windows = jnp.stack(taps, axis=-2)
    y = convolve_window(windows.reshape(-1, *windows.shape[2:]), kernel, space, groups)
    return y.reshape(*windows.shape[:2], *y.shape[1:])


def convolve_window(window: Array, kernel: Array, space: Sequence[Axis], groups: int) -> Array:
    """``(B, *S, k, C)`` with ``(k, *K, C / groups, C')`` to ``(B, *S', C')``."""
    *_, taps, channels = window.shape
    if groups == channels > 1:
        kernel = jnp.moveaxis(kernel[..., 0, :], 0, -2)
        return depthwise(window, kernel, [*space, Axis(taps, 1, 0)])[..., 0, :]
    if any(axis.kernel_size > 1 for axis in space):
        return _spatial(window, kernel, space, groups)
    window = thinned(window, space, first=1)
    return _pointwise(window, kernel.reshape(taps, *kernel.shape[-2:]), groups)


def contributions(
    x: Array, kernel: Array, taps: Array, space: Sequence[Axis], groups: int
) -> Array:
    """What a step ``(B, *S, C)`` adds to the output that sees it with each of these taps of time.

    A pointwise step is multiplied by one tap after another, each cut out of the kernel; or, where
    it is smaller than such a tap, it is repeated for a product with the whole kernel (3 taps, 256
    to 64 channels of 56x56, 8 streams: 20 ms, repeated 67; 2048 to 512 of 7x7: 5.2 ms, repeated
    3.4).

    Args:
      x: the step.
      kernel: depthwise, ``(k, *K, 1, C')``, or pointwise, ``(k, *1, C, C')``.
      taps: places in the kernel, ``(n,)``.
      space: the spatial axes.
      groups: ``C``, or 1.

    Returns:
      ``(B, n, *S', C')``.
    """
    if groups > 1:
        kernel = jnp.take(kernel, taps, axis=0, mode="clip")
        return depthwise_by_each(x, kernel[..., 0, :], space)
    x, kernel = thinned(x, space, first=1), kernel.reshape(len(kernel), *kernel.shape[-2:])
    if x.size // x.shape[-1] > kernel.shape[-1]:
        kernel = jnp.take(kernel, taps, axis=0, mode="clip")
        return jnp.stack([product(x, tap) for tap in kernel], axis=1)
    flat = x.reshape(-1, x.shape[-1])
    products = times(jnp.broadcast_to(flat, (len(kernel), *flat.shape)), kernel)
    products = jnp.take(products, taps, axis=0, mode="clip")
    return jnp.moveaxis(products.reshape(len(taps), *x.shape[:-1], kernel.shape[-1]), 0, 1)


def _pointwise(window: Array, kernel: Array, groups: int) -> Array:
    """A matrix product over taps and channels (365 GFLOP/s where a convolution ran at 205)."""
    if groups == 1:
        window = lax.collapse(window, window.ndim - 2)
        return product(window, kernel.reshape(-1, kernel.shape[-1]))
    window = window.reshape(*window.shape[:-1], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    out = jnp.einsum("...kgc,kcgo->...go", window, kernel)
    return out.reshape(*out.shape[:-2], -1)


def _over_time(x: Array, kernel: Array, time: Axis) -> Array:
    """Convolves ``(B, T, *S, C)`` along time alone, with ``(k, C, C')``.

    * To fewer channels: a matrix product for each tap, and their sum, steps apart (8 steps of
      14x14, 1024 to 256 channels, 3 taps: 12.4 ms; one product over windows, 22.9; a convolution,
      15.1).
    * Else a convolution (236 steps of 50 joints, 256 channels, 9 taps: 81 ms; products for each
      tap, 108; one product over windows, 169, most of it for fresh memory),
    * or where the windows are small one product over them (61 steps of 64 channels, 5 taps: 0.13 ms
      instead of 0.26).
    """
    taps, channels, out = kernel.shape
    steps = time.length(x.shape[1])
    if out < channels and time.stride == 1:
        products = (padded(product(x, kernel[tap]), [time]) for tap in range(taps))
        return functools.reduce(
            jnp.add,
            (strided(y, 1, tap * time.dilation, steps, 1) for tap, y in enumerate(products)),
        )
    if time.stride == 1 and taps * x.size > _MANY_NUMBERS:
        flat = x.reshape(*x.shape[:2], -1, channels)
        y = convolution(flat, kernel[:, None], [time, Axis(1, 1, 0)])
        return y.reshape(*y.shape[:2], *x.shape[2:-1], out)
    x = padded(x, [time])
    parts = [strided(x, 1, tap * time.dilation, steps, time.stride) for tap in range(taps)]
    return product(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, out))


def _spatial(window: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """A spatial convolution whose input channels are those of every step in the window.

    Where there are few outputs, a matrix product with what each sees, laid out in a row, is faster:
    256 channels, 3x3 of 14x14 in 1.6 ms instead of 2.3. Of more it would fill the memory.
    """
    taps, *size = kernel.shape[:-2]
    batch, *extent, _, channels = window.shape
    if groups > 1:
        window = window.reshape(batch, *extent, taps, groups, channels // groups)
        window = jnp.moveaxis(window, -3, -2)
    window = window.reshape(batch, *extent, taps * channels)
    kernel = jnp.moveaxis(kernel, 0, -3).reshape(*size, taps * channels // groups, -1)
    windows = lengths(extent, axes)
    if groups == 1 and batch * math.prod(windows) <= _FEW_PLACES:

        @recomputed
        def of_each(window: Array, kernel: Array) -> Array:
            window = padded(window, axes)
            places = (shifted(window, place, axes, windows) for place in np.ndindex(*size))
            seen_by_each = jnp.concatenate(list(places), axis=-1)
            return product(seen_by_each, kernel.reshape(-1, kernel.shape[-1]))

        return of_each(window, kernel)
    return convolution(window, kernel, axes, groups)
