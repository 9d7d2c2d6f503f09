"""Layers that change shapes."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.errors import InputError
from cojax.frames import Spec
from cojax.module import TimeLocal


class Reshape(TimeLocal):
    """Reshapes all axes but time: each step gets the given shape, batch included.

    ``Reshape(-1, 6)`` and ``Reshape((-1, 6))`` are equivalent; one entry may be -1.

    Source: ``continual.Reshape``; ``contiguous`` is accepted and has no effect.

    Example::

        reshape = co.Reshape(-1, 6)  # flattens the spatial axis
        assert reshape.apply({}, jnp.ones((2, 3, 5, 2))).shape == (2, 6, 5)

    Attributes:
      shape: the shape of a step, batch included.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(shape[0], shape[1], T, *shape[2:])``; step ``(B, C, *S)`` to
      ``shape``.

    Raises:
      ValueError: at construction, for a shape of fewer than two axes or with more than one -1.
      InputError: for a step whose number of entries does not match the shape.
    """

    _without_effect = TimeLocal._without_effect | {"contiguous"}

    shape: tuple[int, ...]
    contiguous: bool = False

    def __init__(self, *sizes: Any, shape: Any = None, contiguous: bool = False, **linen: Any):
        given = sizes if shape is None else shape
        if len(given) == 1 and not isinstance(given[0], int | np.integer):
            (given,) = given
        shape = tuple(int(n) if isinstance(n, np.integer) else n for n in given)
        self._construct(shape=shape, contiguous=contiguous, **linen)

    def __post_init__(self) -> None:
        sizes = self.shape
        if len(sizes) < 2 or not all(isinstance(n, int) for n in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                "Reshape takes the shape of a step (batch, channel, *space) with at most one -1, "
                f"got {sizes}"
            )
        super().__post_init__()

    def output_spec(self, x: Spec) -> Spec:
        known = math.prod(n for n in self.shape if n != -1)
        total = math.prod(x.shape)
        if (total % known if -1 in self.shape else total != known) or not known:
            raise InputError(f"a step of shape {x.shape} cannot be reshaped to {self.shape}")
        return Spec(tuple(total // known if n == -1 else n for n in self.shape), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        frames = jnp.moveaxis(x, 2, 0)
        shape = self.output_spec(Spec(frames.shape[1:], x.dtype)).shape
        return jnp.moveaxis(frames.reshape(frames.shape[0], *shape), 0, 2)
