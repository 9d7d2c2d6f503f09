"""Dense convolutions over one or two axes: XLA's own and, on a CPU, those it passes to Eigen."""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from cojax.ops.fast_fir import convolve_by_phases
from cojax.ops.gradient import bilinear, recomputed, transposed
from cojax.ops.precision import accumulated, widened
from cojax.ops.windows import exceeds, lengths, output_like, padded, padded_axis, strided
from cojax.timing import Axis

_SPACE = "HW"
# Up to this many numbers in a column of what an output sees, rows are joined, see _by_eigen.
_FEW_NUMBERS = 32
# Up to this fraction of additional outputs, they are computed and discarded, see _by_eigen.
_MORE = 1 / 6
# From so many taps, channels and products on, convolutions along time are split, see _on_cpu.
_FEWEST_TAPS = 4
_MANY_CHANNELS = 64
_MANY_PRODUCTS = 2**28


def convolution(x: Array, kernel: Array, axes: Sequence[Axis], groups: int = 1) -> Array:
    """Convolves ``(B, *S, C)`` with ``(*K, C / groups, C')`` in the way best for the platform.

    Eigen convolves in float32 alone, which is faster than XLA's other ways in half precision too: a
    step of CoX3D-S in bfloat16 takes 0.83 of the time with it, one of CoI3D 0.94.
    """
    as_it_stands = functools.partial(_native, axes=axes, groups=groups)
    if groups > 1 or len(axes) != 2 or accumulated(x.dtype) != jnp.float32:
        return as_it_stands(x, kernel)
    rows, columns = axes

    def on_cpu(x: Array, kernel: Array) -> Array:
        return _on_cpu(widened(x), widened(kernel), (rows, columns)).astype(x.dtype)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=as_it_stands)


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
    """Returns dimension numbers with the channels last.

    In other orders, XLA cannot pass a convolution inside a scan to Eigen.
    """
    space = _SPACE[:axes]
    return "N" + space + "C", space + "IO", "N" + space + "C"


def _by_eigen(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """Convolves in two dimensions, in a form that XLA passes to Eigen.

    XLA passes other convolutions to a library that materializes what every output sees, which is up
    to five times slower (54 ms instead of 11: 8 images of 64 channels of 56x56, 3x3). That library
    accepts neither convolutions whose output is larger than their input along some axis, nor those
    over a single axis. So some additional outputs are computed and discarded; or, with strides, the
    rows of the kernel are convolved along the columns, one by one or, if they are thin, together.
    """
    rows, columns = axes
    windows = lengths(x.shape[1:3], axes)
    more = [max(size + 1 - length, 0) for size, length in zip(x.shape[1:3], windows, strict=True)]
    share, longest = min(
        (more[i] / windows[i], i) if axis.stride == 1 else (math.inf, i)
        for i, axis in enumerate(axes)
    )
    if share <= _MORE:
        larger = list(axes)
        larger[longest] = axes[longest]._replace(uneven=axes[longest].uneven + more[longest])
        y = _native(x, kernel, larger)
        return lax.slice_in_dim(y, 0, windows[longest], axis=1 + longest)
    length, width, channels = windows[0], x.shape[2], x.shape[-1]
    if rows.kernel_size > 3 and rows.kernel_size * channels > _FEW_NUMBERS:
        return _native(x, kernel, axes)
    x = padded(x, [rows])
    parts = [
        strided(x, 1, row * rows.dilation, length, rows.stride).reshape(-1, width, channels)
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


def _by_input(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """Convolves such that the transpose with respect to the input is computed by Eigen too.

    The transpose takes 6.4 ms instead of 12 (16 images of 64 channels of 28x28, 3x3).
    """
    mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    # The padding around the outputs; if there is a stride, they are also dilated.
    pads = []
    for axis, size in zip(axes, x.shape[1:3], strict=True):
        front, behind = axis.pads_over(size)
        pads.append((axis.extent - 1 - front, axis.extent - 1 - behind))

    def of_output(y: Array) -> Array:
        if all(axis.stride == 1 for axis in axes):
            rows, columns = (
                axis._replace(padding=low, uneven=high - low)
                for axis, (low, high) in zip(axes, pads, strict=True)
            )
            return _by_eigen(y, mirrored, (rows, columns))
        return lax.conv_general_dilated(
            y,
            mirrored,
            window_strides=(1, 1),
            padding=pads,
            lhs_dilation=[axis.stride for axis in axes],
            rhs_dilation=[axis.dilation for axis in axes],
            dimension_numbers=_dimensions(2),
        )

    return transposed(of_output, output_like(x, kernel, axes))(x)


def _by_kernel(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """Convolves such that the transpose with respect to the kernel is computed by Eigen too.

    The transpose convolves the channels one by one, with the output as the kernel. XLA would not
    pass such a convolution over two axes to Eigen. So it is done along the axis on which the kernel
    is longer, for one position on the other axis after another, with the images and their positions
    on that axis as channels: 44 ms instead of 120 (16 images of 128 channels of 28x28, 3x3). Along
    time, it takes 25 ms, and 34 as a product for each tap (2 clips of 48 steps of 50 joints, 256
    channels, 9 taps). In a scan, JAX's own transpose, which has its axes in another order, takes 15
    times as long.
    """
    along = int(axes[0].kernel_size <= axes[1].kernel_size)
    other = 1 - along
    windows = lengths(x.shape[1:3], axes)
    whole = padded_axis(x, 1 + other, axes[other].pads_over(x.shape[1 + other]))

    def of_output(y: Array) -> Array:
        images = jnp.moveaxis(y, 1 + along, 0).reshape(windows[along], -1, y.shape[-1])
        found = []
        for tap in range(axes[other].kernel_size):
            start = tap * axes[other].dilation
            seen = strided(whole, 1 + other, start, windows[other], axes[other].stride)
            channels = jnp.transpose(seen, (3, 1 + along, 0, 1 + other))
            found.append(
                lax.conv_general_dilated(
                    lax.collapse(channels, 2),
                    images,
                    window_strides=[axes[along].dilation],
                    padding=[axes[along].pads_over(x.shape[1 + along])],
                    rhs_dilation=[axes[along].stride],
                    dimension_numbers=_dimensions(1),
                )
            )
        # Each is (C, taps, C'), with the taps along one axis of the kernel.
        return jnp.moveaxis(jnp.stack(found, 1 + other), 0, 2)

    return transposed(of_output, output_like(x, kernel, axes))(kernel)


# A convolution in two dimensions whose gradients are computed by Eigen too.
_direct = bilinear(_by_eigen, _by_input, _by_kernel)


def _on_cpu(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> Array:
    """Convolves in two dimensions in the fastest way on a CPU.

    One along time is split into shorter ones as long as it is large: 36 ms instead of 56 (2 clips
    of 92 outputs of 50 joints, 256 channels, 9 taps). With fewer channels or products, the parts
    take as long as the whole, and each takes time to compile.
    """
    if not _is_large(x, kernel, axes):
        return _direct(x, kernel, axes)
    by_phases = functools.partial(convolve_by_phases, axes=axes, convolve=_on_cpu)
    return recomputed(by_phases)(x, kernel)


def _is_large(x: Array, kernel: Array, axes: tuple[Axis, Axis]) -> bool:
    """Returns whether a convolution is along time and large enough to split it."""
    rows, columns = axes
    length = rows.length(x.shape[1])
    return (
        columns == Axis(1, 1, 0)
        and (rows.stride, rows.dilation) == (1, 1)
        and _FEWEST_TAPS <= rows.kernel_size <= length
        and min(kernel.shape[2:]) >= _MANY_CHANNELS
        and exceeds(x.shape[0] * length * x.shape[2] * kernel.size, _MANY_PRODUCTS - 1)
    )
