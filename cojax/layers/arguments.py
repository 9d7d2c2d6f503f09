"""Constructor arguments in the style of ``torch.nn``: an int, or one for each axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cojax.errors import InputError
from cojax.frames import Spec
from cojax.timing import Axis

IntOrTuple = int | Sequence[int]
# An int, or one entry for each axis: an int (the same before and after) or a pair of the two; or
# "valid" or "same", as in torch.
Padding = int | str | Sequence[int | Sequence[int]]


def per_axis(name: str, value: IntOrTuple, axes: int, minimum: int = 0) -> tuple[int, ...]:
    """Returns the value for each axis, time first.

    Raises:
      ValueError: unless ``value`` is an int or a sequence of ``axes`` ints, none of them below
        ``minimum``.
    """
    values = (value,) * axes if isinstance(value, int | np.integer) else value
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or len(values) != axes
        or not all(isinstance(v, int | np.integer) and v >= minimum for v in values)
    ):
        raise ValueError(
            f"{name} must be an int, or {axes} ints (time first), each at least {minimum}, "
            f"got {name}={value!r}"
        )
    return tuple(int(v) for v in values)


def windows(
    axes: int,
    kernel_size: IntOrTuple,
    stride: IntOrTuple,
    padding: IntOrTuple,
    dilation: IntOrTuple,
    ceil_mode: bool = False,
) -> tuple[Axis, ...]:
    """Returns the windows along each axis, time first; raises as :func:`per_axis` does."""
    return tuple(
        Axis(*each, ceil_mode)
        for each in zip(
            per_axis("kernel_size", kernel_size, axes, minimum=1),
            per_axis("stride", stride, axes, minimum=1),
            per_axis("padding", padding, axes),
            per_axis("dilation", dilation, axes, minimum=1),
            strict=True,
        )
    )


def padded_windows(
    axes: int,
    kernel_size: IntOrTuple,
    stride: IntOrTuple,
    padding: Padding,
    dilation: IntOrTuple,
) -> tuple[Axis, ...]:
    """Like :func:`windows`, but the padding before and after an axis may differ, or have a name.

    Raises:
      ValueError: as :func:`windows`, for other names, and for "same" with a stride.
    """
    if isinstance(padding, str):
        require_one_of("padding", padding, ("valid", "same"))
        unpadded = windows(axes, kernel_size, stride, 0, dilation)
        if padding == "valid":
            return unpadded
        if any(axis.stride > 1 for axis in unpadded):
            raise ValueError(
                f"padding='same' is for windows without a stride, got {stride=}; give numbers"
            )
        return tuple(
            axis._replace(padding=(axis.extent - 1) // 2, uneven=(axis.extent - 1) % 2)
            for axis in unpadded
        )
    if not isinstance(padding, Sequence):
        return windows(axes, kernel_size, stride, padding, dilation)
    pairs: list[Any] = [each if isinstance(each, Sequence) else (each, each) for each in padding]
    flat = [pad for pair in pairs for pad in pair]
    if (
        len(pairs) != axes
        or any(len(pair) != 2 for pair in pairs)
        or not all(isinstance(pad, int | np.integer) and pad >= 0 for pad in flat)
    ):
        example = ((2, 0), *(1,) * (axes - 1))
        raise ValueError(
            f"padding must be 'valid', 'same', an int, or an entry for each of {axes} axes (time "
            f"first), an int or a pair of ints before and after it, as in {example}; got {padding=}"
        )
    even = windows(axes, kernel_size, stride, [int(front) for front, _ in pairs], dilation)
    return tuple(
        axis._replace(uneven=int(back) - axis.padding)
        for axis, (_, back) in zip(even, pairs, strict=True)
    )


def spatial_lengths(x: Spec, space: Sequence[Axis]) -> tuple[int, ...]:
    """Returns the lengths of a step's spatial axes after these windows have been applied.

    Raises:
      InputError: if a window is longer than its padded axis.
    """
    lengths = tuple(axis.length(size) for size, axis in zip(x.shape[2:], space, strict=True))
    if min(lengths, default=1) < 1:
        raise InputError(
            f"windows of {[axis.extent for axis in space]} do not fit into the spatial axes of a "
            f"step of shape {x.shape}, padded by {[axis.pads for axis in space]}"
        )
    return lengths


def require_positive(**sizes: object) -> None:
    """Raises a ValueError unless all sizes are positive integers."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}={size!r} must be positive and whole")


def require_probability(**shares: float) -> None:
    """Raises a ValueError unless all shares are between 0 and 1, inclusive."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share!r} must be a probability")


def require_one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises a ValueError unless the value is one of those allowed."""
    if not any(value is option or value == option for option in allowed):
        choices = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
