"""Layers that delay or skip steps, or collect the last of them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.buffers import Counter, DelayLine, joined, ring, rolled, unrolled, write
from cojax.chunks import Chunk
from cojax.frames import Signal, Spec, State
from cojax.layers.arguments import require_one_of, require_positive
from cojax.layout import channels_last, spec_last
from cojax.module import CoModule
from cojax.ops.windows import gathered
from cojax.timing import Axis, Timing, windowed


class _Held(CoModule):
    """Base class: delays a stream by ``_held`` steps, and crops the start and end of a clip."""

    @property
    def _held(self) -> int:
        raise NotImplementedError

    @property
    def _crop(self) -> tuple[int, int]:
        raise NotImplementedError

    @property
    def timing(self) -> Timing:
        front, back = self._crop
        return Timing(padding=-front, end=self._held - back, delay=self._held + front)

    @property
    def _line(self) -> DelayLine:
        return DelayLine.of(self._held, self.timing)

    def clip(self, x: Array, train: bool = False) -> Array:
        front, back = self._crop
        self.require_length(x.shape[2])
        return x[:, :, front : x.shape[2] - back]

    def fresh_state(self, x: Spec) -> State:
        return self._line.fresh(x)

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        return self._delayed(state, signal)

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        return self._delayed(state, chunk)

    def _delayed(self, state: State, flow: Any) -> tuple[Any, State]:
        line = self._line
        pushed = line.push(state, flow)
        emitted = flow.emitted(line.counter.of(state), self.timing)
        return flow.leaves(pushed.held(self._held).value, emitted, self.timing), pushed.after


class Delay(_Held):
    """Delays a stream by a number of steps; ``forward`` returns a clip unchanged.

    With ``auto_shrink``, ``forward`` crops the clip, as is needed for a residual connection around
    a module that shrinks it, and the stream skips the same steps.

    Source: ``continual.Delay``. (There, a centered delay declares less delay than it has.)

    Example::

        delay = co.Delay(2)
        clip = jnp.arange(5.0).reshape(1, 1, 5)
        frames, _ = delay.apply({}, delay.init_state((1, 1)), clip, method="forward_steps")
        assert frames.valid.tolist() == [False, False, True, True, True]
        assert frames.dense().ravel().tolist() == [0, 1, 2]

    Attributes:
      steps: the number of steps by which frames are delayed (``delay`` in the constructor).
      temporal_fill: accepted for compatibility, without effect: no frame that a delay emits is ever
        filled in.
      auto_shrink: False; True or "centered" to crop ``steps`` at both ends; "lagging" to crop them
        at the end; or a pair ``(front, back)`` of steps to crop at the start and at the end.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B, C, T - front - back, *S)``; step ``(B, C, *S)`` to the same;
      state ``ring`` ``(B, steps, *S, C)`` and ``count`` ``()``.

    Raises:
      ValueError: at construction, for a negative delay, or a crop at the end that is longer than
        the delay.
    """

    _without_effect = _Held._without_effect | {"temporal_fill"}

    steps: int
    temporal_fill: str = "zeros"
    auto_shrink: bool | str | tuple[int, int] = False

    def __init__(
        self,
        delay: int | None = None,
        temporal_fill: str = "zeros",
        auto_shrink: bool | str | Sequence[int] = False,
        *,
        steps: int | None = None,
        **linen: Any,
    ):
        # The field cannot be called delay: that is the number of steps before the first output.
        steps = delay if steps is None else steps
        shrink = tuple(auto_shrink) if isinstance(auto_shrink, list) else auto_shrink
        self._construct(steps=steps, temporal_fill=temporal_fill, auto_shrink=shrink, **linen)

    def __post_init__(self) -> None:
        require_one_of("temporal_fill", self.temporal_fill, ("zeros", "replicate"))
        if not isinstance(self.steps, int | np.integer) or self.steps < 0:
            raise ValueError(f"Delay takes a number of steps, none negative, got {self.steps!r}")
        crop = self.auto_shrink
        if not isinstance(crop, tuple):
            require_one_of("auto_shrink", crop, (True, False, "centered", "lagging"))
        elif len(crop) != 2 or not all(isinstance(n, int | np.integer) and n >= 0 for n in crop):
            raise ValueError(
                "auto_shrink takes a pair of how many steps to crop at the start and at the end, "
                f"got {crop!r}"
            )
        _, back = self._crop
        if back > self.steps:
            raise ValueError(
                f"at most the {self.steps} steps that are held back can be cropped at the end, got "
                f"auto_shrink={crop!r}"
            )
        super().__post_init__()

    @property
    def _held(self) -> int:
        return self.steps

    @property
    def _crop(self) -> tuple[int, int]:
        if isinstance(self.auto_shrink, tuple):
            return self.auto_shrink
        if self.auto_shrink == "lagging":
            return 0, self.steps
        return (self.steps, self.steps) if self.auto_shrink else (0, 0)


class Skip(_Held):
    """Skips the first steps of a clip or stream.

    Source: ``continual.Skip``.

    Example::

        skip = co.Skip(2)
        clip = jnp.arange(5.0).reshape(1, 1, 5)
        assert skip.apply({}, clip).ravel().tolist() == [2, 3, 4]
        assert skip.delay == 2

    Attributes:
      steps: the number of steps to skip.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B, C, T - steps, *S)``; step ``(B, C, *S)`` to the same; state
      ``count`` ``()``.

    Raises:
      ValueError: at construction, unless ``steps`` is positive.
    """

    steps: int

    def __post_init__(self) -> None:
        require_positive(steps=self.steps)
        super().__post_init__()

    @property
    def _held(self) -> int:
        return 0

    @property
    def _crop(self) -> tuple[int, int]:
        return self.steps, 0


class Window(CoModule):
    """Collects the last steps of a stream, oldest first, along a new last axis.

    The layers after it receive a whole window at every step: they can attend over it, sort it or
    compute its spectrum, and remain local in time.

    Example::

        net = co.Sequential(co.Window(8), co.Lambda(lambda x: jnp.median(x, axis=-1)))
        assert net.apply({}, jnp.ones((1, 6, 20))).shape == (1, 6, 13)

    Attributes:
      steps: the number of steps in a window.

    Shapes:
      clip ``(B, C, T, *S)`` to ``(B, C, T - steps + 1, *S, steps)``; step ``(B, C, *S)`` to ``(B,
      C, *S, steps)``; state ``ring`` ``(B, steps, *S, C)`` and ``count`` ``()``.

    Raises:
      ValueError: at construction, unless ``steps`` is positive.
    """

    steps: int

    def __post_init__(self) -> None:
        require_positive(steps=self.steps)
        super().__post_init__()

    @property
    def timing(self) -> Timing:
        return windowed(Axis(self.steps, 1, 0))

    @property
    def _counter(self) -> Counter:
        return Counter.for_timing(self.timing, slots=self.steps)

    def output_spec(self, x: Spec) -> Spec:
        return Spec((*x.shape, self.steps), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        self.require_length(x.shape[2])
        return self._shown(channels_last(x))

    def fresh_state(self, x: Spec) -> State:
        memory = {"ring": ring(spec_last(x), self.steps)} if self.steps > 1 else {}
        return {**memory, **self._counter.fresh()}

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        if self.steps == 1:
            return signal.becomes(signal.value[..., None]), state
        count, after = self._counter.of(state), self._counter.advance(state, signal)
        after["ring"] = write(state["ring"], channels_last(signal.value), count, signal.valid)
        frames = unrolled(after["ring"], count + 1)
        emitted = signal.emitted(count, self.timing)
        return signal.leaves(_steps_last(frames, 1), emitted, self.timing), after

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        if self.steps == 1:
            return chunk.becomes(chunk.value[..., None]), state
        count, after = self._counter.of(state), self._counter.advance(state, chunk)
        frames = joined(state["ring"], count, chunk)
        after["ring"] = rolled(frames, self.steps, after["count"])
        emitted = chunk.emitted(count, self.timing)
        return chunk.leaves(self._shown(frames[:, 1:]), emitted, self.timing), after

    def _shown(self, frames: Array) -> Array:
        """Returns every window of ``(B, T, *S, C)``, as ``(B, C, T', *S, steps)``."""
        return _steps_last(gathered(frames, Axis(self.steps, 1, 0)), 2)


def _steps_last(frames: Array, axis: int) -> Array:
    """Moves the channels from last to second, and the steps of a window, ``axis``, to last."""
    return jnp.moveaxis(frames, (-1, axis), (1, -1))
