"""Continual pooling: space is pooled frame by frame, time over a ring of pooled frames."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.buffers import Counter, replicated, ring, rolled, unrolled, write
from cojax.checks import require_step
from cojax.chunks import Chunk, begun, join
from cojax.frames import Signal, Spec, State
from cojax.layers.arguments import (
    IntOrTuple,
    require_one_of,
    require_positive,
    spatial_lengths,
    windows,
)
from cojax.layers.families import over_axes
from cojax.layout import channels_last, channels_second, spec_last
from cojax.module import CoModule
from cojax.ops.pooling import adaptive, max_axes, maximum, mean_divisor, sum_axes
from cojax.ops.precision import accumulated
from cojax.timing import Axis, Timing, windowed


class _TemporalPool(CoModule):
    """Base class of pools: a step pools its frame in space, and then the ring of frames in time.

    Subclasses define how time is windowed (``_time``) and how a frame is pooled (``_pool_space``),
    and declare the field ``temporal_fill``, which is the last of their arguments. No running sum is
    kept, since a single huge value would corrupt it permanently.
    """

    space: ClassVar[int]
    largest: ClassVar[bool]

    @property
    def _time(self) -> Axis:
        raise NotImplementedError

    def _pool_space(self, x: Array, first: int) -> Array:
        """Pools the spatial axes of ``(B, ..., *S, C)``, which begin at ``first``."""
        raise NotImplementedError

    @property
    def timing(self) -> Timing:
        return windowed(self._time)

    @property
    def _counter(self) -> Counter:
        slots = self.timing.receptive_field
        exact = slots if self._counts_frames or self._replicates else 0
        return Counter.for_timing(self.timing, exact, slots)

    @property
    def _replicates(self) -> bool:
        return self.temporal_fill == "replicate" and self.timing.receptive_field > 1

    @property
    def _counts_frames(self) -> bool:
        """Whether the divisor depends on how many frames the window holds."""
        return False

    def fresh_state(self, x: Spec) -> State:
        slots = self.timing.receptive_field
        if slots == 1:
            return self._counter.fresh()
        fill = -jnp.inf if self.largest else 0
        return {"ring": ring(spec_last(self.output_spec(x)), slots, fill), **self._counter.fresh()}

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        x = channels_last(signal.clean(-jnp.inf if self.largest else 0))
        frame = self._pool_space(x, first=1)
        count, after = self._counter.of(state), self._counter.advance(state, signal)
        slots = self.timing.receptive_field
        if slots == 1:
            frames = frame[:, None]
        else:
            frames = state["ring"]
            if self._replicates:
                frames, frame = replicated(frames, frame, count, signal)
            frames = after["ring"] = write(frames, frame, count, signal.valid)
            time = self._time
            if time.dilation > 1:
                taps = (count - time.dilation * jnp.arange(time.kernel_size)[::-1]) % slots
                frames = jnp.take(frames, taps, axis=1)
        oldest = 0 if self._time.dilation > 1 else (count + 1) % slots
        pooled = channels_second(self._pool_time(frames, oldest, count, signal.past))
        return signal.leaves(pooled, signal.emitted(count, self.timing), self.timing), after

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        frames = self._pool_space(channels_last(chunk.clean()), first=2)
        timing, count = self.timing, self._counter.of(state)
        after = self._counter.advance(state, chunk)
        slots = timing.receptive_field
        emitted = chunk.emitted(count, timing)
        if slots > 1:
            memory = unrolled(state["ring"], count)
            if self._replicates:
                memory = begun(memory, frames, chunk, count)
            frames = join(memory, frames, chunk.blank)
            after["ring"] = rolled(frames, slots, self._counter.of(after))
            frames = frames[:, 1:]  # the first step already replaces the oldest frame
        frames = emitted.covered(frames, slots, timing.stride)
        counts = count + emitted.frames(timing.stride) - chunk.blank
        y = channels_second(self._pool_all(frames, counts))
        return chunk.leaves(y, emitted, timing), after

    def _pool_all(self, frames: Array, counts: Array) -> Array:
        """Pools every window of ``(B, T, ...)``, given the number of frames before each output."""
        time = self._time.unpadded._replace(ceil_mode=False)
        if self.largest:
            return max_axes(frames, [time], 1)
        divisor = jnp.asarray(jnp.maximum(self._divisor(counts, 0), 1))
        divisor = divisor.reshape(-1, *(1,) * (frames.ndim - 2))
        return (sum_axes(frames, [time], 1) / divisor).astype(frames.dtype)

    def _pool_time(
        self, frames: Array, oldest: Array | int, count: Array | int, past: Array | int
    ) -> Array:
        """Pools the frames of a window, in a ring ``(B, kernel_size, ...)``."""
        if self.largest:
            return maximum(frames, oldest, 1)
        divisor = jnp.maximum(self._divisor(count, past), 1)
        total = jnp.sum(frames, axis=1, dtype=accumulated(frames.dtype))
        return (total / divisor).astype(frames.dtype)

    def _divisor(self, count: Array | int, past: Array | int) -> Array | int:
        return self._time.kernel_size


class _Pool(_TemporalPool):
    """Base class of average and maximum pools.

    Subclasses declare the fields ``dilation`` and ``ceil_mode``, whose positions differ.
    """

    kernel_size: IntOrTuple
    stride: IntOrTuple | None = None
    padding: IntOrTuple = 0

    def __post_init__(self) -> None:
        axes = self._axes
        self.kernel_size = tuple(axis.kernel_size for axis in axes)
        self.stride = tuple(axis.stride for axis in axes)
        self.padding = tuple(axis.padding for axis in axes)
        require_one_of("temporal_fill", self.temporal_fill, ("zeros", "replicate"))
        for axis in axes:
            if axis.padding > axis.extent // 2:
                raise ValueError(
                    f"{self.padding=} must be at most half of the (dilated) {self.kernel_size=}"
                )
        super().__post_init__()

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return windows(
            1 + self.space,
            self.kernel_size,
            self.kernel_size if self.stride is None else self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
        )

    @property
    def _time(self) -> Axis:
        return self._axes[0]

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, self.space)
        lengths = spatial_lengths(x, self._axes[1:])
        return Spec((*x.shape[:2], *lengths), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        self.require_length(x.shape[2])
        return channels_second(self._clip_time(self._pool_space(channels_last(x), first=2)))

    def _clip_time(self, x: Array) -> Array:
        """Pools ``(B, T, *S, C)`` over time."""
        raise NotImplementedError


class _MaxPool(_Pool):
    """Maximum pooling over ``(B, C, T, *S)``, padded with minus infinity.

    Source: ``torch.nn.MaxPool3d``.

    Example::

        pool = co.MaxPool3d(kernel_size=3, stride=1, padding=1)
        clip = jnp.ones((1, 2, 5, 4, 4))
        assert pool.apply({}, clip).shape == (1, 2, 5, 4, 4)

        state = pool.init_state(clip[:, :, 0])
        frames, state = pool.apply({}, state, clip, method="forward_steps")
        assert frames.valid.tolist() == [False, True, True, True, True]

    Attributes:
      kernel_size, stride, padding, dilation: an int, or one for each axis, time first. The stride
        defaults to the kernel size.
      ceil_mode: whether the last window may extend past the end.
      temporal_fill: the values before the start and after the end of a stream: "zeros" for torch's
        padding (minus infinity in a maximum), or "replicate" for copies of its first and its last
        frame.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B, C, T', *S')``; step ``(B, C, *S)`` to ``(B, C, *S')``; state
      ``ring`` ``(B, receptive_field, *S', C)`` and ``count`` ``()``.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or a dtype that is not floating.
    """

    largest = True

    dilation: IntOrTuple = 1
    ceil_mode: bool = False
    temporal_fill: str = "zeros"

    def __post_init__(self) -> None:
        self.dilation = tuple(axis.dilation for axis in self._axes)
        super().__post_init__()

    def _pool_space(self, x: Array, first: int) -> Array:
        return max_axes(x, self._axes[1:], first)

    def _clip_time(self, x: Array) -> Array:
        return max_axes(x, self._axes[:1], first=1)


class _AvgPool(_Pool):
    """Average pooling over ``(B, C, T, *S)``.

    Source: ``torch.nn.AvgPool3d``; ``dilation`` (of time) is that of ``continual``.

    Example::

        pool = co.AvgPool3d(kernel_size=2)
        clip = jnp.ones((1, 2, 5, 4, 4))
        assert pool.apply({}, clip).shape[2] == 2

        state = pool.init_state(clip[:, :, 0])
        frames, state = pool.apply({}, state, clip, method="forward_steps")
        assert frames.valid.tolist() == [False, True, False, True, False]

    Attributes:
      kernel_size, stride, padding: an int, or one for each axis, time first. The stride defaults
        to the kernel size.
      ceil_mode: whether the last window may extend past the end.
      count_include_pad: whether padding counts in the average.
      divisor_override: the divisor of sums, instead of the size of the window.
      dilation: the steps from one frame of a window to the next; only time may be dilated.
      temporal_fill: the values before the start and after the end of a stream: "zeros", or
        "replicate" for copies of its first and its last frame.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B, C, T', *S')``; step ``(B, C, *S)`` to ``(B, C, *S')``; state
      ``ring`` ``(B, receptive_field, *S', C)`` and ``count`` ``()``.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or a dtype that is not floating.
    """

    largest = False

    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None
    dilation: IntOrTuple = 1
    temporal_fill: str = "zeros"

    def __post_init__(self) -> None:
        if self.divisor_override is not None:
            require_positive(divisor_override=self.divisor_override)
        if isinstance(self.dilation, int | np.integer):
            self.dilation = (self.dilation, *(1,) * self.space)
        if any(axis.dilation != 1 for axis in self._axes[1:]):
            raise ValueError(f"an average pool dilates time alone, got {self.dilation=}")
        super().__post_init__()

    @property
    def _counts_frames(self) -> bool:
        return self._time.padding > 0 and not self.count_include_pad

    def _pool_space(self, x: Array, first: int) -> Array:
        axes = self._axes[1:]
        if not axes:
            return x
        sizes = x.shape[first:-1]
        divisor: Array | int = mean_divisor(sizes, axes, self.count_include_pad)[..., None]
        if self.divisor_override is not None:
            divisor = self.divisor_override
        return (sum_axes(x, axes, first) / divisor).astype(x.dtype)

    def _clip_time(self, x: Array) -> Array:
        divisor: Array | int
        if self._overridden is not None:
            divisor = self._overridden
        else:
            counts = mean_divisor(x.shape[1:2], self._axes[:1], self.count_include_pad)
            divisor = counts.reshape(-1, *(1,) * (self.space + 1))
        return (sum_axes(x, self._axes[:1], first=1) / divisor).astype(x.dtype)

    @property
    def _overridden(self) -> int | None:
        """The divisor of sums over time, if overridden; 1 if sums over space have been divided."""
        return self.divisor_override if self.divisor_override is None or not self.space else 1

    def _divisor(self, count: Array | int, past: Array | int) -> Array | int:
        """Returns the number of frames that the window at ``count`` averages over.

        Of its taps ``0, d, 2d, ...`` steps back, those before the start of the stream and those
        past its end may not count.
        """
        size, dilation = self._time.kernel_size, self._time.dilation
        if self._overridden is not None:
            return self._overridden
        if self.temporal_fill == "replicate":
            return size
        if self.count_include_pad:
            counted = 0 if not self._time.ceil_mode else past - self._time.padding
            return size - _taps_within(counted, dilation, size)
        started = jnp.minimum(count // dilation + 1, size) if self._counts_frames else size
        return started - _taps_within(past, dilation, size)


def _taps_within(steps: Array | int, dilation: int, taps: int) -> Array | int:
    """Counts the taps ``0, dilation, ...`` steps back that lie within the last ``steps`` steps."""
    if isinstance(steps, int):
        return min(max(0, -(-steps // dilation)), taps)
    return jnp.clip(-(-steps // dilation), 0, taps)


class AvgPool1d(_AvgPool):
    __doc__ = over_axes(_AvgPool.__doc__, 1)
    space = 0


class AvgPool2d(_AvgPool):
    __doc__ = over_axes(_AvgPool.__doc__, 2)
    space = 1


class AvgPool3d(_AvgPool):
    __doc__ = over_axes(_AvgPool.__doc__, 3)
    space = 2


class MaxPool1d(_MaxPool):
    __doc__ = over_axes(_MaxPool.__doc__, 1)
    space = 0


class MaxPool2d(_MaxPool):
    __doc__ = over_axes(_MaxPool.__doc__, 2)
    space = 1


class MaxPool3d(_MaxPool):
    __doc__ = over_axes(_MaxPool.__doc__, 3)
    space = 2


class _AdaptivePool(_TemporalPool):
    """Adaptive pooling: ``forward`` pools the whole clip, a step the last ``kernel_size`` steps.

    The two agree for clips of ``receptive_field`` steps (with a stride of 1, without padding and
    dilation).

    Source: ``torch.nn.AdaptiveAvgPool3d``; ``kernel_size`` is that of ``continual``.

    Example::

        pool = co.AdaptiveAvgPool3d(1, kernel_size=3)
        clip = jnp.ones((1, 2, 3, 4, 4))
        assert pool.apply({}, clip).size == 2  # one number per channel

        state = pool.init_state(clip[:, :, 0])
        frames, state = pool.apply({}, state, clip, method="forward_steps")
        assert frames.valid.tolist() == [False, False, True]

    Attributes:
      output_size: an int, or one for each axis, time first; time must be pooled to 1. None keeps
        an axis.
      kernel_size: the number of steps that a step pools over.
      stride, padding, dilation: those of time, while stepping.
      temporal_fill: the values before the start and after the end of a stream: "zeros" (minus
        infinity in a maximum), or "replicate" for copies of its first and its last frame.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B, C, 1, *output_size[1:])``; step ``(B, C, *S)`` to ``(B, C,
      *output_size[1:])``; state ``ring`` ``(B, receptive_field, *output_size[1:], C)`` and
      ``count`` ``()``.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or a dtype that is not floating.
    """

    output_size: int | Sequence[int | None]
    kernel_size: IntOrTuple
    stride: IntOrTuple = 1
    padding: IntOrTuple = 0
    dilation: IntOrTuple = 1
    temporal_fill: str = "zeros"

    def __post_init__(self) -> None:
        self.output_size = self._sizes
        if len(self.output_size) != 1 + self.space or self.output_size[0] != 1:
            raise ValueError(
                f"output_size must have {1 + self.space} entries, the first (time) 1, got "
                f"{self.output_size}"
            )
        require_one_of("temporal_fill", self.temporal_fill, ("zeros", "replicate"))
        time = self._time
        self.kernel_size, self.stride = (time.kernel_size,), (time.stride,)
        self.padding, self.dilation = (time.padding,), (time.dilation,)
        windowed(time)
        super().__post_init__()

    @property
    def _sizes(self) -> tuple[int | None, ...]:
        size = self.output_size
        return (size,) * (1 + self.space) if isinstance(size, int) else tuple(size)

    @property
    def _time(self) -> Axis:
        return windows(1, self.kernel_size, self.stride, self.padding, self.dilation)[0]

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, self.space)
        wanted = zip(self._sizes[1:], x.shape[2:], strict=True)
        return Spec((*x.shape[:2], *(n if w is None else w for w, n in wanted)), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        return channels_second(adaptive(channels_last(x), self._sizes, 1, self.largest))

    def _pool_space(self, x: Array, first: int) -> Array:
        return adaptive(x, self._sizes[1:], first, self.largest)


class AdaptiveAvgPool1d(_AdaptivePool):
    __doc__ = over_axes(_AdaptivePool.__doc__, 1)
    space = 0
    largest = False


class AdaptiveAvgPool2d(_AdaptivePool):
    __doc__ = over_axes(_AdaptivePool.__doc__, 2)
    space = 1
    largest = False


class AdaptiveAvgPool3d(_AdaptivePool):
    __doc__ = over_axes(_AdaptivePool.__doc__, 3)
    space = 2
    largest = False


class AdaptiveMaxPool1d(_AdaptivePool):
    __doc__ = over_axes(_AdaptivePool.__doc__, 1).replace("Avg", "Max")
    space = 0
    largest = True


class AdaptiveMaxPool2d(_AdaptivePool):
    __doc__ = over_axes(_AdaptivePool.__doc__, 2).replace("Avg", "Max")
    space = 1
    largest = True


class AdaptiveMaxPool3d(_AdaptivePool):
    __doc__ = over_axes(_AdaptivePool.__doc__, 3).replace("Avg", "Max")
    space = 2
    largest = True
