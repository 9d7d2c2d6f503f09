"""Axis arguments, which are counted in the clip ``(B, C, T, *S)`` in every mode."""

from cojax.errors import InputError
from cojax.module import CoModule

TIME = 2


def non_temporal(axis: int, rank: int, name: str, module: CoModule) -> int:
    """Returns an axis of a clip of this rank as a non-negative index.

    Raises:
      InputError: if there is no such axis, or if it is the time axis.
    """
    if not -rank <= axis < rank:
        raise InputError(f"{name}={axis} is no axis of a clip with {rank} axes")
    axis %= rank
    if axis == TIME:
        raise InputError(
            f"{name} of {type(module).__name__} is the time axis of a clip with {rank} axes "
            "(batch, channel, time, *space), of which a step has only one entry; "
            f"name another axis, e.g. {name}=1 for the channels"
        )
    return axis
