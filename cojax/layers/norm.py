"""Normalisation."""

import math
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from cojax.errors import InputError
from cojax.frames import Signal, Spec, State
from cojax.layers.initializers import Initializer
from cojax.module import CoModule, require_step


class _BatchNorm(CoModule):
    """Batch normalisation over every axis but the channels.

    In training, ``forward`` normalises by the statistics of the clip and ``forward_step`` by those
    of its step, and both move the running statistics towards them; invalid frames and frames past
    the end of the stream leave these as they are. Otherwise the running statistics are used, and
    the layer is local in time.

    Source: ``torch.nn.BatchNorm{1,2,3}d``; Ioffe and Szegedy, 2015,
    https://arxiv.org/abs/1502.03167.

    Attributes:
      num_features: the channels.
      eps: added to the variance.
      momentum: the weight of new statistics in the running ones; None for their plain average.
      affine: whether a scale and a bias are learnt.
      track_running_stats: whether there are running statistics. Without them the statistics of a
        whole clip are needed, so that the layer can step in training only.
      scale_init: initializer of the scale; ones by default.
      param_dtype: the dtype of parameters and statistics.

    Shapes:
      clip ``(B, num_features, T, *S)`` and step ``(B, num_features, *S)``, kept. Variables
      ``params`` ``scale``, ``bias`` and ``batch_stats`` ``mean``, ``var`` ``(num_features,)``,
      ``num_batches_tracked`` ``()``.

    Raises:
      InputError: for an input of another rank, channel count or a dtype that is not floating; for
        training on one value a channel; for stepping without running statistics.
    """

    space: ClassVar[int]

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True
    scale_init: Initializer | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.num_features,)
        if self.affine:
            self.scale = self.param("scale", self.scale_init or _ones, shape, self.param_dtype)
            self.offset = self.param("bias", _zeros, shape, self.param_dtype)
        if self.track_running_stats:
            self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
            self.var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
            self.tracked = self.variable(
                "batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32
            )

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, self.space, self.num_features)
        return x

    def clip(self, x: Array, train: bool = False) -> Array:
        if not train and self.track_running_stats:
            return self._normalised(x, self.mean.value, self.var.value)
        return self._by_own_statistics(x, train, real=True)

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        x = jnp.expand_dims(signal.clean(), 2)
        if train:
            y = self._by_own_statistics(x, train, signal.real)
        elif self.track_running_stats:
            y = self._normalised(x, self.mean.value, self.var.value)
        else:
            raise InputError(
                f"{type(self).__name__}(track_running_stats=False) normalises by the statistics of "
                "the whole clip, which a step does not have; track running statistics"
            )
        return signal.becomes(jnp.squeeze(y, 2)), state

    def _by_own_statistics(self, x: Array, train: bool, real: bool | Array) -> Array:
        axes = (0, *range(2, x.ndim))
        count = math.prod(x.shape[axis] for axis in axes)
        if count < 2:
            raise InputError(
                f"{type(self).__name__} needs more than one value a channel in training, got shape "
                f"{x.shape} (time included); train on larger batches, or on clips through forward"
            )
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = jnp.mean(wide, axes), jnp.var(wide, axes)
        if train and self.track_running_stats and not self.is_initializing():
            self._track(mean, var * count / (count - 1), real)
        return self._normalised(x, mean, var)

    def _track(self, mean: Array, var: Array, real: bool | Array) -> None:
        tracked = self.tracked.value + jnp.asarray(real, jnp.int32)
        weight = 1 / jnp.maximum(tracked, 1) if self.momentum is None else self.momentum
        weight = jnp.where(real, weight, 0)
        for running, new in ((self.mean, mean), (self.var, var)):
            old = running.value
            moved = old + (weight * (lax.stop_gradient(new) - old)).astype(old.dtype)
            running.value = moved
        self.tracked.value = tracked

    def _normalised(self, x: Array, mean: Array, var: Array) -> Array:
        """``(x - mean) / sqrt(var + eps) * scale + bias``, as one product and one sum."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        factor = lax.rsqrt(var.astype(wide) + self.eps)
        if self.affine:
            factor = factor * self.scale.astype(wide)
        offset = -mean.astype(wide) * factor
        if self.affine:
            offset = offset + self.offset.astype(wide)
        channels = (-1, *(1,) * (x.ndim - 2))
        factor, offset = (each.astype(x.dtype).reshape(channels) for each in (factor, offset))
        return x * factor + offset


def _ones(_key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.ones(shape, dtype)


def _zeros(_key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)


class BatchNorm1d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    space = 0


class BatchNorm2d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    space = 1


class BatchNorm3d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    space = 2
