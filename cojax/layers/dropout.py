"""Dropout layers: noise in training, which needs an rng named "dropout"; otherwise the identity.

``inplace`` is accepted and has no effect.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from cojax.checks import require_floating, require_step
from cojax.frames import Spec
from cojax.layers.arguments import require_probability
from cojax.layers.families import over_axes
from cojax.module import TimeLocal


class Dropout(TimeLocal):
    """Zeroes entries with probability ``p`` in training, and scales the rest by ``1 / (1 - p)``.

    With ``train=True`` it needs an rng named "dropout". Each step of a stream draws its own mask.

    Source: ``torch.nn.Dropout``; Hinton et al., 2012, https://arxiv.org/abs/1207.0580.

    Example::

        dropout = co.Dropout(0.5)
        clip = jnp.ones((1, 8, 5))
        assert (dropout.apply({}, clip) == clip).all()

        y = dropout.apply({}, clip, train=True, rngs={"dropout": jax.random.key(0)})
        assert ((y == 0) | (y == 2)).all()

    Attributes:
      p: the probability that an entry is zeroed.

    Shapes:
      any, kept.

    Raises:
      ValueError: at construction, unless ``0 <= p <= 1``.
      InputError: for a dtype that is not floating.
    """

    # Whether channels are kept or dropped as a whole.
    whole_channels: ClassVar[bool] = False
    _without_effect = TimeLocal._without_effect | {"inplace"}

    p: float = 0.5
    inplace: bool = False

    def __post_init__(self) -> None:
        require_probability(p=self.p)
        super().__post_init__()

    def output_spec(self, x: Spec) -> Spec:
        require_floating(x, self)
        return x

    def clip(self, x: Array, train: bool = False) -> Array:
        if not train or self.p == 0:
            return x
        if self.p == 1:
            return jnp.zeros_like(x)
        shape = (*x.shape[:2], *(1,) * (x.ndim - 2)) if self.whole_channels else x.shape
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.p, shape)
        return self.dropped(x, keep).astype(x.dtype)

    def dropped(self, x: Array, keep: Array) -> Array:
        """Drops the entries of ``x`` that are not to be kept, and rescales."""
        return jnp.where(keep, x / (1 - self.p), 0)


class _ChannelDropout(Dropout):
    """Zeroes whole channels with probability ``p`` in training, and scales the rest.

    ``forward`` zeroes a channel of a sample throughout its clip, as torch does. Each step of a
    stream draws its own mask, so a channel may be zeroed in one step and not in the next.

    Source: ``torch.nn.Dropout3d``; Tompson et al., 2014, https://arxiv.org/abs/1411.4280.

    Example::

        dropout = co.Dropout3d(0.5)
        clip = jnp.ones((1, 8, 5, 4, 4))
        y = dropout.apply({}, clip, train=True, rngs={"dropout": jax.random.key(0)})
        assert (y == y[:, :, :1]).all()  # dropped in every step of the clip, or in none

    Attributes:
      p: the probability that a channel is zeroed.

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, kept, with zero, one or two spatial axes.

    Raises:
      ValueError: at construction, unless ``0 <= p <= 1``.
      InputError: for an input of the wrong rank or a dtype that is not floating.
    """

    whole_channels = True
    space: ClassVar[int]

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, self.space)
        return x


class Dropout1d(_ChannelDropout):
    __doc__ = over_axes(_ChannelDropout.__doc__, 1)
    space = 0


class Dropout2d(_ChannelDropout):
    __doc__ = over_axes(_ChannelDropout.__doc__, 2)
    space = 1


class Dropout3d(_ChannelDropout):
    __doc__ = over_axes(_ChannelDropout.__doc__, 3)
    space = 2


class AlphaDropout(Dropout):
    """Dropout that keeps zero mean and unit variance, for use with :class:`cojax.SELU`.

    In training, an entry becomes ``-1.7581``, the limit of SELU for ``x`` towards minus infinity,
    with probability ``p``; then all entries are scaled and shifted alike. This needs the same rng
    as :class:`cojax.Dropout`.

    Source: ``torch.nn.AlphaDropout``; Klambauer et al., 2017, https://arxiv.org/abs/1706.02515.

    Example::

        net = co.Sequential(co.SELU(), co.AlphaDropout(0.1))
        clip = jax.random.normal(jax.random.key(0), (1, 8, 5))
        y = net.apply({}, clip, train=True, rngs={"dropout": jax.random.key(1)})
        assert y.shape == clip.shape

    Attributes:
      p: the probability that an entry is dropped. With 1, all outputs are zero.

    Shapes:
      any, kept.

    Raises:
      ValueError: at construction, unless ``0 <= p <= 1``.
      InputError: for a dtype that is not floating.
    """

    def dropped(self, x: Array, keep: Array) -> Array:
        limit = -1.7580993408473766
        scale = ((1 - self.p) * (1 + self.p * limit**2)) ** -0.5
        return scale * (jnp.where(keep, x, limit) - limit * self.p)


class FeatureAlphaDropout(AlphaDropout):
    """:class:`cojax.AlphaDropout` of whole channels, of a clip in ``forward`` or of each step.

    Source: ``torch.nn.FeatureAlphaDropout``.

    Example::

        dropout = co.FeatureAlphaDropout(0.5)
        clip = jnp.ones((1, 8, 5))
        y = dropout.apply({}, clip, train=True, rngs={"dropout": jax.random.key(0)})
        assert (y == y[:, :, :1]).all()  # dropped in every step of the clip, or in none

    Attributes:
      p: the probability that a channel is dropped. With 1, all outputs are zero.

    Shapes:
      any, kept.

    Raises:
      ValueError: at construction, unless ``0 <= p <= 1``.
      InputError: for a dtype that is not floating.
    """

    whole_channels = True
