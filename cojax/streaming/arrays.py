"""Reads recordings in ``.npy`` files as the steps of a network."""

import os
from collections.abc import Sequence

import numpy as np

from cojax.streaming.lines import MalformedLineError


def load(path: str | os.PathLike[str]) -> np.ndarray:
    """Loads the array in a file, time first.

    Raises:
      ValueError: unless it is an array of real numbers with at least the axis of time.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError(f"{path} is no .npy file of real numbers")
    if array.ndim == 0:
        raise ValueError(f"{path} must be of shape (T, ...), time first, got {array.shape}")
    return array


def as_steps(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The steps ``(T, *shape)`` of a recording.

    Args:
      array: these steps; or a signal ``(T,)``, for steps of one number; or, if ``shape`` is
        (coordinates, joints, persons), skeletons ``(T, joints, coordinates)`` or ``(T, persons,
        joints, coordinates)``. Missing persons are filled with zeros, as in the data sets.
      shape: the shape of a step.

    Raises:
      ValueError: if the array has none of these shapes.
    """
    if array.shape[1:] == tuple(shape):
        return array
    if array.ndim == 1 and tuple(shape) == (1,):
        return array[:, None]
    expected = [("T", *shape)]
    if len(shape) == 3:
        coordinates, joints, persons = shape
        people = array[:, None] if array.ndim == 3 else array
        if people.shape[2:] == (joints, coordinates) and people.shape[1] <= persons:
            absent = persons - people.shape[1]
            return np.pad(np.transpose(people, (0, 3, 2, 1)), [(0, 0)] * 3 + [(0, absent)])
        expected += [("T", joints, coordinates), ("T", persons, joints, coordinates)]
    shapes = " or ".join(f"({', '.join(map(str, each))})" for each in expected)
    raise ValueError(f"the recording must be of shape {shapes}, got {array.shape}")


def parse(step: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Makes a sample ``(1, *shape)`` of a step of an array.

    Raises:
      MalformedLineError: unless all its numbers are finite.
    """
    with np.errstate(over="ignore"):
        sample = np.asarray(step).astype(np.float32)
    if not np.isfinite(sample).all():
        raise MalformedLineError("holds numbers that are not finite (in float32)")
    return sample.reshape(1, *shape)
