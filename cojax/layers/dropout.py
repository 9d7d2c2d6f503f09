"""Dropout."""

import jax
import jax.numpy as jnp
from jax import Array

from cojax.frames import Spec
from cojax.module import TimeLocal, require_floating


class Dropout(TimeLocal):
    """Zeroes entries with probability ``p`` while training, and scales the rest by ``1 / (1 - p)``.

    Needs an rng named "dropout" with ``train=True``. Every step of a stream draws its own mask.

    Source: ``torch.nn.Dropout``; ``inplace`` is accepted and has no meaning here.

    Attributes:
      p: the probability of a zero.

    Shapes:
      any, kept.

    Raises:
      ValueError: at construction, unless ``0 <= p <= 1``.
      InputError: for a dtype that is not floating.
    """

    p: float = 0.5
    inplace: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"{self.p=} must be a probability")
        super().__post_init__()

    def output_spec(self, x: Spec) -> Spec:
        require_floating(x, self)
        return x

    def clip(self, x: Array, train: bool = False) -> Array:
        if not train or self.p == 0:
            return x
        if self.p == 1:
            return jnp.zeros_like(x)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.p, x.shape)
        return jnp.where(keep, x / jnp.asarray(1 - self.p, x.dtype), 0)
