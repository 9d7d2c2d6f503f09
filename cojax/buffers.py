"""The memories of a stream: counters and rings.

A step writes one slot of a ring, in place where the state is donated, and none on an invalid frame.
Frames lie there with their channels last.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from cojax.chunks import Chunk, join
from cojax.frames import Signal, Spec, State, select
from cojax.layout import channels_last, channels_second, spec_last
from cojax.timing import Timing


class Counter(NamedTuple):
    """Counts valid frames: exactly up to ``exact``, and from there on in cycles of ``period``.

    So it never overflows, yet tells warm-up from steady state, and the phase of whatever divides
    the period. A counter that could only stand at zero is not kept at all.
    """

    exact: int
    period: int

    @classmethod
    def for_timing(cls, timing: Timing, exact: int = 0, slots: int = 1) -> "Counter":
        """A counter for a layer's emissions, and the places of a ring of ``slots``."""
        return cls(max(timing.delay, exact), math.lcm(timing.stride, slots))

    def fresh(self) -> State:
        return {"count": jnp.zeros((), jnp.int32)} if self.needed else {}

    @property
    def needed(self) -> bool:
        return self.exact > 0 or self.period > 1

    def of(self, state: State) -> Array | int:
        """The number of valid frames before this one."""
        return state["count"] if self.needed else 0

    def advance(self, state: State, valid: bool | Array) -> State:
        if not self.needed:
            return {}
        count = state["count"] + 1
        count = jnp.where(count == self.exact + self.period, self.exact, count)
        return {"count": select(valid, count, state["count"])}

    def advance_by(self, state: State, frames: int | Array) -> State:
        """The state after so many valid frames."""
        if not self.needed:
            return {}
        count = state["count"] + frames
        cyclic = self.exact + (count - self.exact) % self.period
        return {"count": jnp.where(count < self.exact + self.period, count, cyclic)}

    def emits(self, state: State, timing: Timing) -> bool | Array:
        """Whether a layer of this timing emits on this frame."""
        count = self.of(state)
        if timing.delay == 0 and timing.stride == 1:
            return True
        if timing.stride == 1:
            return count >= timing.delay
        return (count >= timing.delay) & ((count - timing.delay) % timing.stride == 0)


def ring(x: Spec, slots: int, fill: float = 0) -> Array:
    """A ring ``(B, slots, ...)`` for frames ``(B, ...)`` of this spec."""
    return jnp.full((x.shape[0], slots, *x.shape[1:]), fill, x.dtype)


def write(ring: Array, frame: Array, position: Array | int, valid: bool | Array) -> Array:
    """The ring with the frame in the slot at ``position``, unchanged where invalid.

    What is read has the shape of what is written. Else XLA reads it apart from writing, and in a
    branch it would copy the ring for that.
    """
    slot = jnp.expand_dims(frame, 1)
    if valid is not True:
        slot = jnp.where(valid, slot, lax.dynamic_slice_in_dim(ring, position, 1, axis=1))
    return lax.dynamic_update_slice_in_dim(ring, slot, position, axis=1)


def read(ring: Array, position: Array | int) -> Array:
    """The frame in the slot at ``position``."""
    return lax.dynamic_index_in_dim(ring, position, axis=1, keepdims=False)


def shown(ring: Array, frame: Array, count: Array | int, places: Any) -> Array:
    """A window ``(B, *S, k, C)``: frames of a ring, in the order given, and the frame at hand.

    Args:
      ring: the frames before, ``(B, n, *S, C)``; the oldest lies at ``count % n``.
      frame: the frame at hand, ``(B, *S, C)``.
      count: how many frames were written before.
      places: where the frames to show lie, before the remainder by ``n`` is taken.
    """
    slots = ring.shape[1]
    return jnp.stack([*(read(ring, place % slots) for place in places), frame], axis=-2)


def replace_oldest(
    ring: Array, window: Array, front: Sequence[int], count: Array | int, valid: bool | Array
) -> Array:
    """The ring with the last frame of a window in place of the first one, where valid.

    What is written comes from the window, at a place that is only known at run time. So the window
    is made before anything is written, and XLA sees that it can write in place; else it would copy
    the ring first.

    Args:
      ring: the ring that the window shows the oldest frame of.
      window: ``(B, *S, k, C)``, padded in space.
      front: how much is padded in front of each spatial axis.
      count: how many frames were written before.
      valid: whether the frame is written.
    """
    taken = jnp.logical_and(valid, count >= 0)
    place = jnp.where(taken, window.shape[-2] - 1, 0)
    batch, slots, *space, channels = ring.shape
    frame = lax.dynamic_slice(window, (0, *front, place, 0), (batch, *space, 1, channels))
    frame = jnp.squeeze(frame, -2)
    if slots == 1:
        # XLA would lay the frame out as it likes, and then copy it to where the ring lies.
        return jnp.where(taken, frame[:, None], ring)
    return write(ring, frame, count % slots, valid=True)


def following(count: Array | int, y: Array) -> Array | int:
    """A count of frames, which XLA takes to depend on ``y``.

    What is written at its place is written when ``y`` is computed, and so is all that was read.
    """
    bits = lax.bitcast_convert_type(y[(0,) * y.ndim].astype(jnp.float32), jnp.int32)
    return count + (bits & (count >> 31))  # a count has no sign


def unrolled(ring: Array, count: Array | int) -> Array:
    """A ring's frames, oldest first, given how many were written."""
    slots = ring.shape[1]
    return jnp.take(ring, (count + jnp.arange(slots)) % slots, axis=1, mode="clip")


def windows(frames: Array, steps: int) -> Array:
    """All windows of consecutive frames: ``(B, T, ...)`` to ``(B, T - steps + 1, steps, ...)``."""
    places = jnp.arange(frames.shape[1] - steps + 1)[:, None] + jnp.arange(steps)
    return jnp.take(frames, places, axis=1, mode="clip")


def rolled(frames: Array, slots: int, count: Array | int) -> Array:
    """The ring of the newest of frames, oldest first, given how many were written."""
    places = (jnp.arange(slots) - count) % slots
    return jnp.take(frames[:, frames.shape[1] - slots :], places, axis=1, mode="clip")


class DelayLine(NamedTuple):
    """Holds frames back: a ring of ``length + 1`` slots, turned by a counter.

    A slot is written, then the output is read from the *new* ring: reading the old one first would
    make XLA copy the ring twice a step.
    """

    length: int
    counter: Counter

    @classmethod
    def of(cls, length: int, timing: Timing | None = None) -> "DelayLine":
        """A line whose counter also serves a layer of this timing."""
        timing = Timing(delay=length) if timing is None else timing
        return cls(length, Counter.for_timing(timing, exact=length, slots=length + 1))

    def fresh(self, x: Spec) -> State:
        """``{"ring": (B, length + 1, *S, C), "count": int32}``; no ring for a length of 0."""
        memory = {"ring": ring(spec_last(x), self.length + 1)} if self.length else {}
        return {**memory, **self.counter.fresh()}

    def push(self, state: State, flow: Signal | Chunk) -> State:
        """The state with the signal's frame, or the chunk's frames, taken in."""
        if isinstance(flow, Chunk):
            after = self.counter.advance_by(state, flow.valid_steps)
            if self.length:
                frames = self.joined(state, flow)
                after["ring"] = rolled(frames, self.length + 1, after["count"])
            return after
        after = self.counter.advance(state, flow.valid)
        if self.length:
            slot = state["count"] % (self.length + 1)
            after["ring"] = write(state["ring"], channels_last(flow.value), slot, flow.valid)
        return after

    def tap(self, before: State, after: State, flow: Any, held: int) -> Any:
        """What came ``held`` valid frames before what was just pushed."""
        if held == 0:
            return flow
        count, timing = before["count"], Timing(end=held, delay=held)
        if isinstance(flow, Chunk):
            start = self.length + 1 - held
            frames = self.joined(before, flow)[:, start : start + flow.steps]
            return flow.leaves(channels_second(frames), flow.emitted(count, timing), timing)
        value = read(after["ring"], (count - held) % (self.length + 1))
        return flow.leaves(channels_second(value), count >= held, timing)

    def joined(self, state: State, chunk: Chunk) -> Array:
        """The ``length + 1`` frames before a chunk, and those of the chunk: ``(B, ..., *S, C)``."""
        frames = channels_last(chunk.clean())
        return join(unrolled(state["ring"], state["count"]), frames, chunk.blank)
