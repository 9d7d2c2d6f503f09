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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from cojax.ops.gradient import recomputed
from cojax.ops.precision import widened
from cojax.ops.product import product, times
from cojax.timing import Axis

_SPACE = "HW"
# Up to so many outputs, see _spatial.
_FEW_PLACES = 2 * 14 * 14
# Up to so many numbers in a column of what an output sees, see _by_eigen.
_FEW_NUMBERS = 32
# Up to so many more outputs, in proportion, see _by_eigen.
_MORE = 1 / 6
# From so many numbers in all windows on, see _over_time.
_MANY_NUMBERS = 2**18

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_space(x: Array, space: Sequence[Axis], mode: str, first: int = 1) -> Array:
    """Pads the spatial axes from ``first`` on, in torch's ``padding_mode``."""
    widths = [(0, 0)] * first + [axis.pads for axis in space]
    widths += [(0, 0)] * (x.ndim - len(widths))
    return jnp.pad(x, widths, mode=_PAD_MODES[mode]) if any(map(any, widths)) else x


def convolve_clip(x: Array, kernel: Array, axes: Sequence[Axis], groups: int) -> Array:
    """``(B, T, *S, C)`` with ``(k, *K, C / groups, C')`` to ``(B, T', *S', C')``."""
    time, *space = axes
    steps = time.length(x.shape[1])
    over_time = all(axis.kernel_size == 1 for axis in space)
    if over_time and groups == 1 and time.kernel_size > 1:
        return _over_time(_thinned(x, space), kernel.reshape(-1, *kernel.shape[-2:]), time)
    depthwise = groups == x.shape[-1] > 1
    x = _padded(x, axes if depthwise else [time])
    taps = [
        _strided(x, 1, tap * time.dilation, steps, time.stride) for tap in range(time.kernel_size)
    ]
    if depthwise:
        return _depthwise(taps, kernel, [axis.unpadded for axis in space], first=2)
    windows = jnp.stack(taps, axis=-2)
    y = convolve_window(windows.reshape(-1, *windows.shape[2:]), kernel, space, groups)
    return y.reshape(*windows.shape[:2], *y.shape[1:])


def convolve_window(window: Array, kernel: Array, space: Sequence[Axis], groups: int) -> Array:
    """``(B, *S, k, C)`` with ``(k, *K, C / groups, C')`` to ``(B, *S', C')``."""
    *_, taps, channels = window.shape
    if groups == channels > 1:
        window, axes = _padded(window, space), [axis.unpadded for axis in space]
        return _depthwise([window[..., tap, :] for tap in range(taps)], kernel, axes, first=1)
    if any(axis.kernel_size > 1 for axis in space):
        return _spatial(window, kernel, space, groups)
    window = _thinned(window, space, first=1)
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
        return _of_all_taps(x, kernel[..., 0, :], tuple(space))
    x, kernel = _thinned(x, space, first=1), kernel.reshape(len(kernel), *kernel.shape[-2:])
    if x.size // x.shape[-1] > kernel.shape[-1]:
        kernel = jnp.take(kernel, taps, axis=0, mode="clip")
        return jnp.stack([product(x, tap) for tap in kernel], axis=1)
    flat = x.reshape(-1, x.shape[-1])
    products = times(jnp.broadcast_to(flat, (len(kernel), *flat.shape)), kernel)
    products = jnp.take(products, taps, axis=0, mode="clip")
    return jnp.moveaxis(products.reshape(-1, *x.shape[:-1], kernel.shape[-1]), 0, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_all_taps(x: Array, kernel: Array, space: tuple[Axis, ...]) -> Array:
    """``(B, *S, C)`` with ``(n, *K, C')`` to ``(B, n, *S', C')``, depthwise.

    All at once, which compiles in less time than one by one, and for a batch of 8 CoX3D-M's step
    takes 0.9 times as long.
    """
    at_once = jnp.moveaxis(kernel, 0, -2)
    at_once = jnp.expand_dims(at_once, range(kernel.ndim - 1, kernel.ndim - 1 + len(space)))
    return _multiply_adds([x[:, None]], at_once[None], space, first=2)


@_of_all_taps.defjvp
def _of_all_taps_jvp(space: tuple[Axis, ...], primals: Any, tangents: Any) -> tuple[Array, Array]:
    """One by one: the gradient with regard to a kernel that is broadcast is 15 times slower."""

    def one_by_one(x: Array, kernel: Array) -> Array:
        parts = [_multiply_adds([x], one[None], space, first=1) for one in kernel]
        return jnp.stack(parts, axis=1)

    _, change = jax.jvp(one_by_one, primals, tangents)
    return _of_all_taps(*primals, space), change


def _pointwise(window: Array, kernel: Array, groups: int) -> Array:
    """A matrix product over taps and channels (365 GFLOP/s where a convolution ran at 205)."""
    if groups == 1:
        window = window.reshape(*window.shape[:-2], -1)
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
        products = (_padded(product(x, kernel[tap]), [time]) for tap in range(taps))
        return functools.reduce(
            jnp.add,
            (_strided(y, 1, tap * time.dilation, steps, 1) for tap, y in enumerate(products)),
        )
    if time.stride == 1 and taps * x.size > _MANY_NUMBERS:
        flat = x.reshape(*x.shape[:2], -1, channels)
        y = convolution(flat, kernel[:, None], [time, Axis(1, 1, 0)])
        return y.reshape(*y.shape[:2], *x.shape[2:-1], out)
    x = _padded(x, [time])
    parts = [_strided(x, 1, tap * time.dilation, steps, time.stride) for tap in range(taps)]
    return product(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, out))


def _depthwise(taps: Sequence[Array], kernel: Array, space: Sequence[Axis], first: int) -> Array:
    """A depthwise convolution over the spatial axes from ``first`` on, and over taps of time.

    These are padded before they are cut out of a clip: each by itself would be laid out anew, and
    a clip of CoX3D-M take 267 ms instead of 200.
    """
    return _multiply_adds(taps, kernel[..., 0, :], space, first)


def _multiply_adds(
    taps: Sequence[Array], kernel: Array, space: Sequence[Axis], first: int
) -> Array:
    """The sum of what each place ``(k, *K)`` of the kernel makes of a tap's shifted slices.

    In float32 at least: a CPU rounds every product and sum of half precision by itself (CoX3D-S in
    bfloat16: 18.6 ms a step, and 11.3 so).

    Args:
      taps: the steps, or clips, that a window sees.
      kernel: ``(k, *K, ..., C')``; what it has for a place is broadcast.
      space: the spatial axes, from ``first`` on.
      first: the first of them.
    """
    sizes = taps[0].shape[first:-1]
    lengths = [axis.length(size) for size, axis in zip(sizes, space, strict=True)]
    dtype, kernel = taps[0].dtype, widened(kernel)
    taps = [widened(_padded(tap, space, first)) for tap in taps]
    multiplier = kernel.shape[-1] // taps[0].shape[-1]
    total: Array | None = None
    for place in np.ndindex(*kernel.shape[: 1 + len(space)]):
        part = _shifted(taps[place[0]], place[1:], space, lengths, first)
        if multiplier > 1:
            part = jnp.repeat(part, multiplier, axis=-1)
        part = part * kernel[place]
        total = part if total is None else total + part
    assert total is not None
    return total.astype(dtype)


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
    lengths = [axis.length(size) for size, axis in zip(extent, axes, strict=True)]
    if groups == 1 and batch * math.prod(lengths) <= _FEW_PLACES:

        @recomputed
        def of_each(window: Array, kernel: Array) -> Array:
            window = _padded(window, axes)
            shifted = (_shifted(window, place, axes, lengths) for place in np.ndindex(*size))
            seen_by_each = jnp.concatenate(list(shifted), axis=-1)
            return product(seen_by_each, kernel.reshape(-1, kernel.shape[-1]))

        return of_each(window, kernel)
    return convolution(window, kernel, axes, groups)


def convolution(x: Array, kernel: Array, axes: Sequence[Axis], groups: int = 1) -> Array:
    """``(B, *S, C)`` with ``(*K, C / groups, C')``, as the platform does it best."""
    as_it_stands = functools.partial(_native, axes=axes, groups=groups)
    if groups > 1 or len(axes) != 2 or x.dtype != jnp.float32:
        return as_it_stands(x, kernel)
    rows, columns = axes
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _on_cpu(x, kernel, (rows, columns)),
        default=as_it_stands,
    )


def _native(x: Array, kernel: Array, axes: Sequence[Axis], groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[axis.stride for axis in axes],
        padding=[axis.pads for axis in axes],
        rhs_dilation=[axis.dilation for axis in axes],
        dimension_numbers=_dimensions(len(axes)),
        feature_group_count=groups,
    )


def _dimensions(axes: int) -> tuple[str, str, str]:
    """Channels last: in other orders XLA cannot give a convolution to Eigen within a scan."""
    space = _SPACE[:axes]
    return "N" + space + "C", space + "IO", "N" + space + "C"


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _on_cpu(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """A convolution in two dimensions that is fast on a CPU, and so are its gradients."""
    return _by_eigen(x, kernel, axes)


def _by_eigen(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """A convolution in two dimensions that XLA gives to Eigen.

    Others it gives to a library that lays out in memory what every output sees, which is up to
    five times slower (8 images of 64 channels of 56x56, 3x3: 54 ms instead of 11). That one takes
    no convolution whose output is larger than its input along some axis, nor one over a single
    axis. So there are some more outputs, not to be kept; and of one with strides the rows of the
    kernel are convolved along the columns one by one, or, where they are thin, together.
    """
    rows, columns = axes
    lengths = [axis.length(size) for axis, size in zip(axes, x.shape[1:3], strict=True)]
    more = [max(size + 1 - length, 0) for size, length in zip(x.shape[1:3], lengths, strict=True)]
    share, longest = min(
        (more[i] / lengths[i], i) if axis.stride == 1 else (math.inf, i)
        for i, axis in enumerate(axes)
    )
    if share <= _MORE:
        larger = list(axes)
        larger[longest] = axes[longest]._replace(uneven=axes[longest].uneven + more[longest])
        y = _native(x, kernel, larger)
        return lax.slice_in_dim(y, 0, lengths[longest], axis=1 + longest)
    length, width, channels = lengths[0], x.shape[2], x.shape[-1]
    if rows.kernel_size > 3 and rows.kernel_size * channels > _FEW_NUMBERS:
        return _native(x, kernel, axes)
    x = _padded(x, [rows])
    parts = [
        _strided(x, 1, row * rows.dilation, length, rows.stride).reshape(-1, width, channels)
        for row in range(rows.kernel_size)
    ]
    if rows.kernel_size * channels <= _FEW_NUMBERS:
        flat = jnp.moveaxis(kernel, 0, 1).reshape(kernel.shape[1], -1, kernel.shape[-1])
        y = _native(jnp.concatenate(parts, axis=-1), flat, [columns])
    else:
        y = functools.reduce(
            jnp.add, [_native(part, kernel[row], [columns]) for row, part in enumerate(parts)]
        )
    return y.reshape(-1, length, *y.shape[1:])


@functools.partial(_on_cpu.defjvp, symbolic_zeros=True)
def _on_cpu_jvp(axes: tuple[Axis, Axis], primals: Any, tangents: Any) -> tuple[Array, Any]:
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    changes = []
    if not isinstance(x_dot, SymbolicZero):
        changes.append(_of_input(x_dot, kernel, axes))
    if not isinstance(kernel_dot, SymbolicZero):
        changes.append(_of_kernel(x, kernel_dot, axes))
    return _on_cpu(x, kernel, axes), functools.reduce(jnp.add, changes)


def _of_input(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """The convolution, transposed (with regard to its input) to one that Eigen computes too.

    16 images of 64 channels of 28x28, 3x3: 6.4 ms instead of 12.
    """
    mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    # What lies between the outputs' places, if there is a stride, and around them.
    front = [axis.extent - 1 - axis.padding for axis in axes]
    lengths = [axis.length(size) for axis, size in zip(axes, x.shape[1:3], strict=True)]
    behind = [
        size - 1 - (length - 1) * axis.stride + axis.padding
        for axis, size, length in zip(axes, x.shape[1:3], lengths, strict=True)
    ]

    def of_output(y: Array) -> Array:
        if all(axis.stride == 1 for axis in axes):
            rows, columns = (
                axis._replace(padding=low, uneven=high - low)
                for axis, low, high in zip(axes, front, behind, strict=True)
            )
            return _by_eigen(y, mirrored, (rows, columns))
        return lax.conv_general_dilated(
            y,
            mirrored,
            window_strides=(1, 1),
            padding=list(zip(front, behind, strict=True)),
            lhs_dilation=[axis.stride for axis in axes],
            rhs_dilation=[axis.dilation for axis in axes],
            dimension_numbers=_dimensions(2),
        )

    return _transposed(of_output, x, kernel, axes)(x)


def _of_kernel(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """The convolution, transposed (with regard to its kernel) to one that Eigen computes too.

    That is of the channels, one by one, with the output as a kernel, and images as channels. Along
    time alone places are channels too: 2 clips of 48 steps of 50 joints, 256 channels, 9 taps take
    25 ms, and as products of each tap 34. In a scan JAX's own, which has its axes in another order,
    takes 15 times as long.
    """
    along = axes[:1] if axes[1] == Axis(1, 1, 0) else axes
    channels = jnp.moveaxis(jnp.moveaxis(x, -1, 0), 1, -1)
    channels = channels.reshape(*channels.shape[: 1 + len(along)], -1)
    size = kernel.shape[: len(along)]

    def of_output(y: Array) -> Array:
        images = jnp.moveaxis(y, 0, -2)
        images = images.reshape(*images.shape[: len(along)], -1, images.shape[-1])
        found = lax.conv_general_dilated(
            channels,
            images,
            window_strides=[axis.dilation for axis in along],
            padding=[axis.pads for axis in along],
            rhs_dilation=[axis.stride for axis in along],
            dimension_numbers=_dimensions(len(along)),
        )
        # Behind the last place of the kernel lies what no output saw, if there is a stride.
        found = lax.slice(found, (0,) * found.ndim, (len(found), *size, found.shape[-1]))
        return jnp.moveaxis(found, 0, -2).reshape(kernel.shape)

    return _transposed(of_output, x, kernel, axes)(kernel)


def _transposed(
    of_output: Callable[[Array], Array], x: Array, kernel: Array, axes: Sequence[Axis]
) -> Callable[[Array], Array]:
    """The transposed of a linear function of the convolution's output."""
    lengths = [axis.length(size) for axis, size in zip(axes, x.shape[1:], strict=False)]
    y = jax.ShapeDtypeStruct((x.shape[0], *lengths, kernel.shape[-1]), x.dtype)
    transposed = jax.linear_transpose(of_output, y)
    return lambda cotangent: transposed(cotangent)[0]


def _padded(x: Array, axes: Sequence[Axis], first: int = 1) -> Array:
    """With the zeros around the axes from ``first`` on."""
    return pad_space(x, axes, "zeros", first)


def _thinned(x: Array, axes: Sequence[Axis], first: int = 2) -> Array:
    """What windows of size 1 see of the axes from ``first`` on."""
    lengths = [axis.length(size) for size, axis in zip(x.shape[first:], axes, strict=False)]
    return _shifted(_padded(x, axes, first), (0,) * len(axes), axes, lengths, first)


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
