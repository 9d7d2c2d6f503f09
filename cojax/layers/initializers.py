"""The default initializers of ``torch.nn``: uniform within ``1 / sqrt(fan_in)`` of zero."""

import math
from collections.abc import Callable, Sequence

import jax
from jax import Array

Initializer = Callable[..., Array]


def fan_in_uniform(fan_in: int) -> Initializer:
    """Returns the initializer of ``torch.nn.Conv3d`` and ``Linear``, given their fan-in.

    It is uniform within ``1 / sqrt(fan_in)`` of zero.
    """
    bound = 1 / math.sqrt(fan_in)

    def initialize(key: Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return initialize
