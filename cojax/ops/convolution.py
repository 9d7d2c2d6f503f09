"""The lowering of convolutions: with the channels last, and never to 3-D convolutions.

The steps that a convolution sees are stacked before the channels, ``(B, *S, k, C)``: the window of
a step, or the windows of all steps of a clip, folded into the batch. A convolution then becomes a
spatial one with ``k C`` input channels, or a matrix product if its kernel has no spatial extent. On
a CPU, 3-D convolutions are up to a hundred times slower (54 channels, 56x56, 3x3x3 taps, depthwise:
58.8 ms as a 3-D convolution, 10.2 as 2-D grouped convolutions, 0.25 as multiply-adds), and
channels-first ones inside ``lax.scan`` are 20 to 40 times slower.
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
from cojax.ops.product import product, product_with_each
from cojax.ops.windows import (
    counted_back,
    exceeds,
    gathered,
    lengths,
    padded,
    shifted,
    strided,
    thinned,
)
from cojax.timing import Axis

# Up to this many outputs, a matrix product is used, see _spatial.
_FEW_PLACES = 2 * 14 * 14
# Above this many taps, they are not handled one by one, see _over_time.
_MANY_TAPS = 16
# Above this many numbers in all windows, a convolution is used, see _over_time.
_MANY_NUMBERS = 2**18


def convolve_clip(x: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Convolves ``(B, T, *S, C)`` with ``(k, *K, C / groups, C')`` to ``(B, T', *S', C')``."""
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
    # Stacked before the steps join the batch, XLA would lay the windows out again for the gradient.
    windows = jnp.concatenate([tap.reshape(-1, *tap.shape[2:]) for tap in taps], axis=-1)
    windows = windows.reshape(*windows.shape[:-1], len(taps), x.shape[-1])
    y = convolve_window(windows, kernel, space, groups)
    return y.reshape(x.shape[0], steps, *y.shape[1:])


def convolve_window(window: Array, kernel: Array, space: Sequence[Axis], groups: int) -> Array:
    """Convolves ``(B, *S, k, C)`` with ``(k, *K, C / groups, C')`` to ``(B, *S', C')``."""
    *_, taps, channels = window.shape
    if groups == channels > 1:
        kernel = jnp.moveaxis(kernel[..., 0, :], 0, -2)
        return depthwise(window, kernel, [*space, Axis(taps, 1, 0)])[..., 0, :]
    if any(axis.kernel_size > 1 for axis in space):
        return _spatial(window, kernel, space, groups)
    window = thinned(window, space, first=1)
    return _pointwise(window, kernel.reshape(taps, *kernel.shape[-2:]), groups)


def contributions(
    x: Array, kernel: Array, count: Array, space: Sequence[Axis], groups: int
) -> tuple[Array, Array]:
    """Returns what a step adds to the output that it completes, and to the sums of later ones.

    For a pointwise kernel, the step is multiplied by one tap after another, each sliced from the
    kernel; or, if it is smaller than a tap, it is repeated for a product with the whole kernel. For
    3 taps from 256 to 64 channels of 56x56 and 8 streams, one tap after another takes 20 ms and
    repeating the step 67; from 2048 to 512 channels of 7x7, they take 5.2 ms and 3.4.

    Args:
      x: the step, ``(B, *S, C)``.
      kernel: depthwise, ``(k, *K, 1, C')``, or pointwise, ``(k, *1, C, C')``.
      count: the number of steps before. The output whose sum is in slot ``i`` began
        ``(count - i) % (k - 1)`` steps ago; with this step, if that is 0.
      space: the spatial axes.
      groups: ``C`` if depthwise, 1 if pointwise.

    Returns:
      ``(B, *S', C')`` and ``(B, k - 1, *S', C')``.
    """
    if groups > 1:
        kernel = kernel[..., 0, :]
        last = depthwise_by_each(x, kernel[-1:], space)
        return last[:, 0], depthwise_by_each(x, counted_back(kernel[:-1], count), space)
    x, kernel = thinned(x, space, first=1), kernel.reshape(len(kernel), *kernel.shape[-2:])
    if len(kernel) <= _MANY_TAPS and exceeds(x.size // x.shape[-1], kernel.shape[-1]):
        earlier = [product(x, tap) for tap in counted_back(kernel[:-1], count)]
        return product(x, kernel[-1]), jnp.stack(earlier, axis=1)
    products = product_with_each(x.reshape(-1, x.shape[-1]), kernel)
    products = products.reshape(len(kernel), *x.shape[:-1], kernel.shape[-1])
    return products[-1], jnp.moveaxis(counted_back(products[:-1], count), 0, 1)


def _pointwise(window: Array, kernel: Array, groups: int) -> Array:
    """Computes a matrix product over taps and channels (365 GFLOP/s; one in space ran at 205)."""
    if groups == 1:
        window = lax.collapse(window, window.ndim - 2)
        return product(window, kernel.reshape(-1, kernel.shape[-1]))
    window = window.reshape(*window.shape[:-1], groups, window.shape[-1] // groups)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    out = jnp.einsum("...kgc,kcgo->...go", window, kernel)
    return lax.collapse(out, out.ndim - 2)


def _over_time(x: Array, kernel: Array, time: Axis) -> Array:
    """Convolves ``(B, T, *S, C)`` along time only, with ``(k, C, C')``.

    * To fewer channels, it is a matrix product for each tap, summed with shifts in time: 12.4 ms,
      instead of 22.9 as one product over windows and 15.1 as a convolution (8 steps of 14x14, 1024
      to 256 channels, 3 taps).
    * Otherwise, it is a convolution: 81 ms, instead of 108 as a product for each tap and 169 as one
      product over windows, most of it for allocating memory (236 steps of 50 joints, 256 channels,
      9 taps).
    * If the windows are small, it is one product over them: 0.13 ms instead of 0.26 (61 steps of 64
      channels, 5 taps). The windows are gathered if there are many taps: slicing a tap at a time
      takes 3 s to compile instead of 0.06, and 0.12 ms instead of 0.04 (16000 samples, 400 taps, a
      stride of 160).
    """
    taps, channels, out = kernel.shape
    steps = time.length(x.shape[1])
    if out < channels and time.stride == 1 and taps <= _MANY_TAPS:
        products = (padded(product(x, kernel[tap]), [time]) for tap in range(taps))
        return functools.reduce(
            jnp.add,
            (strided(y, 1, tap * time.dilation, steps, 1) for tap, y in enumerate(products)),
        )
    if time.stride == 1 and exceeds(taps * x.size, _MANY_NUMBERS):
        flat = x.reshape(*x.shape[:2], -1, channels)
        y = convolution(flat, kernel[:, None], [time, Axis(1, 1, 0)])
        return y.reshape(*y.shape[:2], *x.shape[2:-1], out)
    x = padded(x, [time])
    if taps > _MANY_TAPS:
        windows = jnp.moveaxis(gathered(x, time), 2, -2)
        return product(lax.collapse(windows, windows.ndim - 2), kernel.reshape(-1, out))
    parts = [strided(x, 1, tap * time.dilation, steps, time.stride) for tap in range(taps)]
    return product(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, out))


def _spatial(window: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Convolves in space, with the channels of all steps in the window as input channels.

    For few outputs, a matrix product with rows of what each output sees is faster: it takes 1.6 ms
    instead of 2.3 (256 channels, 3x3 of 14x14). For more outputs, the rows would take too much
    memory.
    """
    taps, *size = kernel.shape[:-2]
    batch, *extent, _, channels = window.shape
    if groups > 1:
        window = window.reshape(batch, *extent, taps, groups, channels // groups)
        window = jnp.moveaxis(window, -3, -2)
    window = window.reshape(batch, *extent, taps * channels)
    kernel = jnp.moveaxis(kernel, 0, -3).reshape(*size, taps * channels // groups, -1)
    windows = lengths(extent, axes)
    if groups == 1 and not exceeds(batch * math.prod(windows), _FEW_PLACES):

        @recomputed
        def of_each(window: Array, kernel: Array) -> Array:
            window = padded(window, axes)
            places = (shifted(window, place, axes, windows) for place in np.ndindex(*size))
            seen_by_each = jnp.concatenate(list(places), axis=-1)
            return product(seen_by_each, kernel.reshape(-1, kernel.shape[-1]))

        return of_each(window, kernel)
    return convolution(window, kernel, axes, groups)
