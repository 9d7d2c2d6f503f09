"""Constructor arguments as ``torch.nn`` takes them: an int, or one for each axis."""

from collections.abc import Sequence

import numpy as np

IntOrTuple = int | Sequence[int]


def per_axis(name: str, value: IntOrTuple, axes: int, minimum: int = 0) -> tuple[int, ...]:
    """The value for each axis, temporal first.

    Raises:
      ValueError: unless it is an int or a sequence of ``axes`` ints, none below ``minimum``.
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


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises a ValueError unless the value is among those allowed."""
    if not any(value is option or value == option for option in allowed):
        choices = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
