"""Normalisation layers: ``(x - mean) / sqrt(var + eps) * scale + bias``.

With running statistics a norm is local in time. With the statistics of a clip it is not: they are
not available to a step. Norms that need them refuse to step, unless ``per_step`` makes them use the
statistics of each step instead, in ``forward`` too.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from cojax.checks import require_floating, require_step
from cojax.chunks import Chunk
from cojax.errors import InputError
from cojax.frames import Signal, Spec, State, spec_of, without_time
from cojax.layers.arguments import IntOrTuple, require_positive
from cojax.layers.axes import TIME, non_temporal
from cojax.layers.families import over_axes
from cojax.layers.initializers import Initializer
from cojax.layout import as_clip, as_step, channels_last, channels_second
from cojax.module import CoModule, TimeLocal
from cojax.ops.gradient import recomputed
from cojax.ops.precision import widened

_PER_STEP = "take the statistics of each step in every mode, forward included, with per_step=True"


def _learnt(
    module: Any,
    shape: tuple[int, ...],
    scale: bool,
    bias: bool,
    scale_init: Initializer | None = None,
) -> tuple[Array | None, Array | None]:
    """Creates the variables ``scale`` and ``bias`` of a module; None for one that is not learnt."""
    dtype = module.param_dtype
    return (
        module.param("scale", scale_init or ones, shape, dtype) if scale else None,
        module.param("bias", zeros, shape, dtype) if bias else None,
    )


def _statistics(x: Array, axes: Sequence[int]) -> tuple[Array, Array]:
    """Returns the mean and variance over these axes, which are kept with a length of 1."""
    return recomputed(functools.partial(_moments, axes=tuple(axes)))(widened(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    mean = jnp.mean(x, axes, keepdims=True)
    return mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True)


@_moments.defjvp
def _moments_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Differentiates the variance as if the mean were constant, since the deviations add up to 0.

    Without this, and if deviations are kept instead of recomputed, a training step of CoI3D takes
    1.04 times as long.
    """
    (x,), (change,) = primals, tangents
    mean, var = _moments(x, axes)
    of_var = 2 * jnp.mean((x - mean) * change, axes, keepdims=True)
    return (mean, var), (jnp.mean(change, axes, keepdims=True), of_var)


def _normalised(module: Any, x: Array, mean: Array, var: Array, along: tuple[int, ...]) -> Array:
    """Computes ``(x - mean) / sqrt(var + eps) * scale + bias`` as one product and one sum.

    ``along`` is the shape in which scale and bias broadcast against ``x``, as statistics do.
    """
    wide = widened(x)
    factor = lax.rsqrt(var.astype(wide.dtype) + module.eps)
    if module.scale is not None:
        factor = factor * module.scale.astype(wide.dtype).reshape(along)
    offset = -mean.astype(wide.dtype) * factor
    if module.offset is not None:
        offset = offset + module.offset.astype(wide.dtype).reshape(along)
    return (wide * factor + offset).astype(x.dtype)


def _lacks_a_clip(module: CoModule, instead: str) -> InputError:
    return InputError(
        f"{type(module).__name__} normalises by the statistics of the whole clip, time included, "
        f"which a step does not have; {instead}"
    )


# Norms with running statistics.


class _RunningNorm(CoModule):
    """Base class of batch and instance norms: running statistics and their updates.

    Statistics are taken for each ``unit``, over the other axes.
    """

    space: ClassVar[int]
    unit: ClassVar[str]
    # Whether running variances track unbiased estimates: n / (n - 1) times the variance.
    unbiased: ClassVar[bool] = True

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True
    bias: bool = True
    scale_init: Initializer | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        require_positive(num_features=self.num_features)
        super().__post_init__()

    @nn.nowrap
    def _axes(self, rank: int) -> tuple[int, ...]:
        """Returns the axes of a clip ``(B, T, *S, C)`` over which statistics are taken."""
        raise NotImplementedError

    @nn.nowrap
    def _require_steps(self, train: bool) -> None:
        """Raises an InputError if a step lacks the statistics needed to normalise it."""
        raise NotImplementedError

    @property
    def _weight(self) -> ArrayLike:
        """The weight of a batch's statistics in the update of the running ones."""
        raise NotImplementedError

    def setup(self) -> None:
        shape = (self.num_features,)
        bias = self.affine and self.bias
        self.scale, self.offset = _learnt(self, shape, self.affine, bias, self.scale_init)
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
        return self._clip(x, train, real=True)

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        self._require_steps(train)
        y = self._clip(as_clip(signal.clean()), train, signal.real)
        return signal.becomes(as_step(y)), state

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        self._require_steps(train=False)
        return chunk.becomes(self.clip(chunk.clean())), state

    def _clip(self, x: Array, train: bool, real: bool | Array) -> Array:
        x = channels_last(x)
        if self.track_running_stats and not train:
            mean, var = self.mean.value, self.var.value
        else:
            mean, var = self._own_statistics(x, train, real)
        return channels_second(_normalised(self, x, mean, var, (-1,)))

    def _own_statistics(self, x: Array, train: bool, real: bool | Array) -> tuple[Array, Array]:
        axes = self._axes(x.ndim)
        count = math.prod(x.shape[axis] for axis in axes)
        if count < 2:
            raise InputError(
                f"{type(self).__name__} needs more than one value {self.unit} to take statistics "
                f"of, got shape {x.shape} (time included); give it more at once, by clips through "
                "forward"
            )
        mean, var = _statistics(x, axes)
        if train and self.track_running_stats and not self.is_initializing():
            self._track(mean, var * count / (count - 1) if self.unbiased else var, real)
        return mean, var

    def _track(self, mean: Array, var: Array, real: bool | Array) -> None:
        weight = jnp.where(real, self._weight, 0)
        for running, batch in ((self.mean, mean), (self.var, var)):
            old, new = running.value, jnp.mean(batch, range(batch.ndim - 1))
            running.value = old + (weight * (lax.stop_gradient(new) - old)).astype(old.dtype)


class _BatchNorm(_RunningNorm):
    """Batch normalisation over all axes but the channels.

    In training, ``forward`` normalises with the statistics of the clip and ``forward_step`` with
    those of its step, and both move the running statistics towards these. Invalid frames, and
    frames past the end of the stream, leave the running statistics unchanged. Outside of training
    the running statistics are used, and the layer is local in time.

    Source: ``torch.nn.BatchNorm3d``; Ioffe and Szegedy, 2015,
    https://arxiv.org/abs/1502.03167.

    Example::

        norm = co.BatchNorm3d(8)
        clip = jnp.ones((2, 8, 5, 4, 4))
        variables = norm.init(jax.random.key(0), clip)
        y, updates = norm.apply(variables, clip, train=True, mutable=["batch_stats"])
        variables = {**variables, **updates}
        assert variables["batch_stats"]["num_batches_tracked"] == 1

    Attributes:
      num_features: the number of channels.
      eps: added to the variance.
      momentum: the weight of new statistics in the running ones; None for their plain average.
      affine: whether a scale and a bias are learnt.
      track_running_stats: whether to track running statistics. Without them, the statistics of a
        whole clip are needed, and the layer can step in training only.
      bias: whether ``affine`` includes a bias.
      scale_init: the initializer of the scale; ones by default.
      param_dtype: the dtype of parameters and statistics.

    Shapes:
      clip ``(B, num_features, T, *S)`` and step ``(B, num_features, *S)``, kept. Variables
      ``params`` ``scale``, ``bias`` and ``batch_stats`` ``mean``, ``var`` ``(num_features,)``,
      ``num_batches_tracked`` ``()``.

    Raises:
      ValueError: at construction, unless ``num_features`` is positive.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating;
        for training on one value per channel; for stepping without running statistics.
    """

    unit = "a channel"

    @nn.nowrap
    def _axes(self, rank: int) -> tuple[int, ...]:
        return tuple(range(rank - 1))

    @nn.nowrap
    def _require_steps(self, train: bool) -> None:
        if not (train or self.track_running_stats):
            raise _lacks_a_clip(self, "track running statistics")

    def _track(self, mean: Array, var: Array, real: bool | Array) -> None:
        self.tracked.value = self.tracked.value + jnp.asarray(real, jnp.int32)
        super()._track(mean, var, real)

    @property
    def _weight(self) -> ArrayLike:
        return 1 / jnp.maximum(self.tracked.value, 1) if self.momentum is None else self.momentum


class _InstanceNorm(_RunningNorm):
    """Instance normalisation, of each channel of each sample.

    With running statistics, training and evaluation are as in a batch norm, except that statistics
    are taken of each sample, and averaged over the batch before they update the running ones.
    Without them, which is the default, the statistics are always those of the clip, and the layer
    refuses to step.

    Source: ``torch.nn.InstanceNorm3d``; Ulyanov et al., 2016,
    https://arxiv.org/abs/1607.08022.

    Example::

        norm = co.InstanceNorm3d(8, track_running_stats=True)
        clip = jnp.ones((2, 8, 5, 4, 4))
        variables = norm.init(jax.random.key(0), clip)
        state = norm.init_state(clip[:, :, 0])
        frame, state = norm.apply(variables, state, clip[:, :, 0], method="forward_step")
        assert frame.value.shape == (2, 8, 4, 4)

    Attributes:
      num_features: the number of channels.
      eps: added to the variance.
      momentum: the weight of new statistics in the running ones; with None these never change.
      affine: whether a scale and a bias are learnt.
      track_running_stats: whether to track running statistics.
      bias: whether ``affine`` includes a bias.
      scale_init: the initializer of the scale; ones by default.
      param_dtype: the dtype of parameters and statistics.
      per_step: whether to use the statistics of each step in every mode, including ``forward``,
        which then differs from torch's. This makes the layer local in time.

    Shapes:
      clip ``(B, num_features, T, *S)`` and step ``(B, num_features, *S)``, kept. Variables as in a
      batch norm; ``num_batches_tracked`` stays 0, as in torch.

    Raises:
      ValueError: at construction, for ``per_step`` if a step has one value per channel.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating;
        for statistics of one value; for stepping if the statistics are those of the clip.
    """

    unit = "a channel and sample"

    affine: bool = False
    track_running_stats: bool = False
    per_step: bool = False

    def __post_init__(self) -> None:
        if self.per_step and not self.space:
            raise ValueError(
                f"a step of {type(self).__name__} has one value a channel, of which there are no "
                f"statistics; take those over its channels with LayerNorm({self.num_features}, "
                "channel_dim=1)"
            )
        super().__post_init__()

    @nn.nowrap
    def _axes(self, rank: int) -> tuple[int, ...]:
        return tuple(range(1 + self.per_step, rank - 1))

    @nn.nowrap
    def _require_steps(self, train: bool) -> None:
        if not (self.track_running_stats or self.per_step):
            instead = "track running statistics"
            if self.space:
                instead += f"; or {_PER_STEP}"
            raise _lacks_a_clip(self, instead)

    @property
    def _weight(self) -> ArrayLike:
        return 0 if self.momentum is None else self.momentum

    def fresh_state(self, x: Spec) -> State:
        self._require_steps(train=False)
        return {}


class BatchNorm1d(_BatchNorm):
    __doc__ = over_axes(_BatchNorm.__doc__, 1)
    space = 0


class BatchNorm2d(_BatchNorm):
    __doc__ = over_axes(_BatchNorm.__doc__, 2)
    space = 1


class BatchNorm3d(_BatchNorm):
    __doc__ = over_axes(_BatchNorm.__doc__, 3)
    space = 2


class BatchNorm(_BatchNorm):
    """Batch normalisation of clips with any number of spatial axes, with statistics as in Flax.

    In training, the running variance moves towards that of the clip, whereas the variances of
    :class:`cojax.BatchNorm1d`, 2d and 3d move towards an unbiased estimate, ``n / (n - 1)`` times
    as large. In all other respects it equals the one of these that has the axes of the clip.

    Source: ``flax.linen.BatchNorm``, whose ``momentum`` is 1 minus this one; Ioffe and Szegedy,
    2015, https://arxiv.org/abs/1502.03167.

    Example::

        norm = co.BatchNorm(2)
        variables = norm.init(jax.random.key(0), method="declare")
        for clip in (jnp.ones((1, 2, 5)), jnp.ones((1, 2, 5, 4, 4))):
            assert norm.apply(variables, clip).shape == clip.shape

    Attributes:
      num_features, eps, momentum, affine, track_running_stats, bias, scale_init, param_dtype: as
        for :class:`cojax.BatchNorm1d`.

    Shapes:
      clip ``(B, num_features, T, *S)`` and step ``(B, num_features, *S)``, kept.

    Raises:
      InputError: as for :class:`cojax.BatchNorm1d`.
    """

    unbiased = False

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, len(x.shape) - 2, self.num_features)
        return x


class InstanceNorm1d(_InstanceNorm):
    __doc__ = over_axes(_InstanceNorm.__doc__, 1)
    space = 0


class InstanceNorm2d(_InstanceNorm):
    __doc__ = over_axes(_InstanceNorm.__doc__, 2)
    space = 1


class InstanceNorm3d(_InstanceNorm):
    __doc__ = over_axes(_InstanceNorm.__doc__, 3)
    space = 2


# Norms with the statistics of the input alone.


class _InputNorm(TimeLocal):
    """Base class of group and layer norms, which can step if their statistics do not span time."""

    instead: ClassVar[str]

    @nn.nowrap
    def _axes(self, rank: int) -> tuple[int, ...]:
        """Returns the axes of a clip over which statistics are taken."""
        raise NotImplementedError

    def fresh_state(self, x: Spec) -> State:
        if TIME in self._axes(len(x.shape) + 1):
            raise _lacks_a_clip(self, self.instead)
        return {}

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        self.fresh_state(spec_of(signal))
        return super().step(state, signal, train=train)

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        self.fresh_state(without_time(spec_of(chunk.value)))
        return super().chunk(state, chunk)


class GroupNorm(_InputNorm):
    """Group normalisation, of each group of channels of each sample.

    By default, the statistics are those of the clip, and the layer refuses to step.

    Source: ``torch.nn.GroupNorm``; Wu and He, 2018, https://arxiv.org/abs/1803.08494.

    Example::

        norm = co.GroupNorm(num_groups=2, num_channels=8, per_step=True)
        clip = jnp.ones((1, 8, 5, 4, 4))
        variables = norm.init(jax.random.key(0), clip)
        state = norm.init_state(clip[:, :, 0])
        frame, state = norm.apply(variables, state, clip[:, :, 0], method="forward_step")
        assert frame.value.shape == (1, 8, 4, 4)

    Attributes:
      num_groups: the number of groups that the channels are split into.
      num_channels: the number of channels.
      eps: added to the variance.
      affine: whether a scale and a bias are learnt.
      bias: whether ``affine`` includes a bias.
      per_step: whether to use the statistics of each step in every mode, including ``forward``,
        which then differs from torch's. This makes the layer local in time.
      param_dtype: the dtype of the parameters.

    Shapes:
      clip ``(B, num_channels, T, *S)`` and step ``(B, num_channels, *S)``, kept. Variables
      ``params`` ``scale``, ``bias`` ``(num_channels,)``.

    Raises:
      ValueError: at construction, unless ``num_channels`` is a multiple of ``num_groups``.
      InputError: for the wrong channel count or a dtype that is not floating; for stepping without
        ``per_step``.
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    affine: bool = True
    bias: bool = True
    per_step: bool = False
    param_dtype: DTypeLike = jnp.float32

    instead = _PER_STEP

    def __post_init__(self) -> None:
        require_positive(num_groups=self.num_groups, num_channels=self.num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(f"{self.num_channels=} must be a multiple of {self.num_groups=}")
        super().__post_init__()

    def setup(self) -> None:
        shape = (self.num_channels,)
        self.scale, self.offset = _learnt(self, shape, self.affine, self.affine and self.bias)

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, len(x.shape) - 2, self.num_channels)
        return x

    @nn.nowrap
    def _axes(self, rank: int) -> tuple[int, ...]:
        return (1, *range(TIME + self.per_step, rank))

    def clip(self, x: Array, train: bool = False) -> Array:
        size = x.shape[1] // self.num_groups
        grouped = x.reshape(x.shape[0], self.num_groups, size, *x.shape[2:])
        mean, var = _statistics(grouped, [axis + 1 for axis in self._axes(x.ndim)])
        channels = (self.num_groups, -1, *(1,) * (x.ndim - 2))
        return _normalised(self, grouped, mean, var, channels).reshape(x.shape)


class LayerNorm(_InputNorm):
    """Layer normalisation, over the last axes or over one other axis.

    Source: ``torch.nn.LayerNorm``; Ba et al., 2016, https://arxiv.org/abs/1607.06450;
    ``channel_dim`` is that of :class:`cojax.Linear`.

    Example::

        channels = co.LayerNorm(32, channel_dim=1)  # clips (B, 32, T, *S), at each position
        frames = co.LayerNorm((32, 8, 8), per_step=True)  # clips (B, 32, T, 8, 8), whole frames

    Attributes:
      normalized_shape: the lengths of the axes, which are the last ones of the clip ``(B, C, T,
        *S)``. If time is among them, the layer refuses to step.
      eps: added to the variance.
      elementwise_affine: whether a scale and a bias are learnt.
      bias: whether ``elementwise_affine`` includes a bias.
      channel_dim: the axis, counted in the clip in every mode, if ``normalized_shape`` is a single
        length.
      per_step: whether the axes are the last ones of the step ``(B, C, *S)`` instead, in every
        mode, including ``forward``. This makes the layer local in time.
      param_dtype: the dtype of the parameters.

    Shapes:
      clip ``(B, C, T, *S)`` and step ``(B, C, *S)``, kept. Variables ``params`` ``scale``, ``bias``
      of shape ``normalized_shape``.

    Raises:
      ValueError: at construction, for an empty ``normalized_shape`` or incompatible arguments.
      InputError: for axes of other lengths or a dtype that is not floating; for stepping if the
        statistics span time.
    """

    normalized_shape: IntOrTuple
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True
    channel_dim: int = -1
    per_step: bool = False
    param_dtype: DTypeLike = jnp.float32

    instead = (
        "normalise the channels, with channel_dim=1, or the last axes of each step, with "
        "per_step=True"
    )

    def __post_init__(self) -> None:
        self.normalized_shape = self._lengths
        if not self._lengths or min(self._lengths) < 1:
            raise ValueError(f"{self.normalized_shape=} must be a length, or several, all positive")
        if self.channel_dim != -1 and (len(self._lengths) > 1 or self.per_step):
            raise ValueError(
                f"{self.channel_dim=} names one axis of the clip, and goes neither with several "
                f"lengths ({self.normalized_shape=}) nor with the last axes of a step "
                f"({self.per_step=})"
            )
        super().__post_init__()

    @property
    def _lengths(self) -> tuple[int, ...]:
        shape = self.normalized_shape
        return (shape,) if isinstance(shape, int | np.integer) else tuple(shape)

    def setup(self) -> None:
        affine = self.elementwise_affine
        self.scale, self.offset = _learnt(self, self._lengths, affine, affine and self.bias)

    @nn.nowrap
    def _axes(self, rank: int) -> tuple[int, ...]:
        if self.channel_dim != -1:
            return (non_temporal(self.channel_dim, rank, "channel_dim", self),)
        axes = [axis for axis in range(rank) if not (self.per_step and axis == TIME)]
        return tuple(axes[-len(self._lengths) :])

    def output_spec(self, x: Spec) -> Spec:
        require_floating(x, self)
        self._require_lengths((*x.shape[:2], None, *x.shape[2:]))
        return x

    def clip(self, x: Array, train: bool = False) -> Array:
        self._require_lengths(x.shape)
        axes = self._axes(x.ndim)
        mean, var = _statistics(x, axes)
        along = tuple(n if axis in axes else 1 for axis, n in enumerate(x.shape))
        return _normalised(self, x, mean, var, along)

    @nn.nowrap
    def _require_lengths(self, clip: tuple[int | None, ...]) -> None:
        """Raises an InputError unless a clip (None: any length) has axes of the given lengths."""
        lengths = tuple(clip[axis] for axis in self._axes(len(clip)))
        expected = self._lengths
        if len(lengths) < len(expected) or any(
            given not in (None, length) for given, length in zip(lengths, expected, strict=True)
        ):
            shape = ", ".join("time" if n is None else str(n) for n in clip)
            raise InputError(
                f"LayerNorm normalises axes of lengths {expected}, got clips ({shape}); to "
                "normalise their channels pass channel_dim=1, and per_step=True for the last axes "
                "of their steps"
            )
