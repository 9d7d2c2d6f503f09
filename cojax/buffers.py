"""The memories of a stream: counters and rings.

A step writes one slot of a ring, in place where the state is donated, and none on an invalid frame.
Frames lie there with their channels last.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from cojax.chunks import Chunk, join
from cojax.frames import Signal, Spec, State, select
from cojax.layout import channels_last, channels_second, spec_last
from cojax.ops.gradient import recomputed
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


def counted_together(state: State) -> State:
    """The same state, whose counters are read from one vector.

    Where each is read by itself, a GPU copies each before it counts on, by a kernel, and counts on
    by another: a step of CoX3D-S takes 380 kernels then, and 251 so. A CPU saves a microsecond for
    each (four residual blocks of two convolutions: 131 us a step instead of 144).
    """
    leaves, tree = jax.tree.flatten(state)
    places = [i for i, leaf in enumerate(leaves) if leaf.ndim == 0 and leaf.dtype == jnp.int32]
    if len(places) > 1:
        counts = lax.optimization_barrier(jnp.stack([leaves[i] for i in places]))
        for place, count in zip(places, counts, strict=True):
            leaves[place] = count
    return jax.tree.unflatten(tree, leaves)


def ring(x: Spec, slots: int, fill: float = 0) -> Array:
    """A ring ``(B, slots, ...)`` for frames ``(B, ...)`` of this spec."""
    return jnp.full((x.shape[0], slots, *x.shape[1:]), fill, x.dtype)


def write(
    ring: Array, frame: Array, count: Array | int, valid: bool | Array, axis: int = 1
) -> Array:
    """The ring with the frame in place of the oldest, at ``count % n``; unchanged where invalid.

    What is read has the shape of what is written. Else XLA reads it apart from writing, and in a
    branch it would copy the ring for that.
    """
    slots = ring.shape[axis]
    slot, position = jnp.expand_dims(frame, axis), count % slots
    if slots == 1:
        # XLA would lay the frame out as it likes, and then copy it to where the ring lies.
        return jnp.where(jnp.logical_and(valid, count >= 0), slot, ring)
    if valid is not True:
        slot = jnp.where(valid, slot, lax.dynamic_slice_in_dim(ring, position, 1, axis))
    return lax.dynamic_update_slice_in_dim(ring, slot, position, axis)


def read(ring: Array, position: Array | int, axis: int = 1) -> Array:
    """The frame in the slot at ``position``."""
    return lax.dynamic_index_in_dim(ring, position, axis, keepdims=False)


def read_before_write(ring: Array, count: Array | int, x: Array) -> tuple[Array, Array | int]:
    """The oldest frame of a ring that is written to afterwards, and the count to write it by.

    The frame is read once, into memory of its own. Else XLA would read it wherever it is needed,
    and copy the ring, to write to it before that. On a CPU nothing is fused with what a branch
    gives; on a GPU a branch would have the host wait.

    Args:
      ring: ``(B, n, ...)``; the oldest frame lies at ``count % n``.
      count: how many frames were written before.
      x: what is written comes from; the frame is read when it is there, and not all at the start.
    """
    count = following(count, x)
    frame = _oldest(ring, count)
    return frame, following(count, frame)


@jax.custom_jvp
def _oldest(ring: Array, count: Array) -> Array:
    def in_a_branch(ring: Array, count: Array) -> Array:
        def taken(ring: Array, count: Array) -> Array:
            return read(ring, count % ring.shape[1])

        def never(ring: Array, count: Array) -> Array:
            return jnp.zeros((ring.shape[0], *ring.shape[2:]), ring.dtype)

        return lax.cond(count >= 0, taken, never, ring, count)

    def behind_a_barrier(ring: Array, count: Array) -> Array:
        return lax.optimization_barrier(read(ring, count % ring.shape[1]))

    return lax.platform_dependent(ring, count, cpu=in_a_branch, default=behind_a_barrier)


@_oldest.defjvp
def _oldest_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """By a mask: so the gradient is added to that of the ring as it is made, and not laid out."""
    ring, count = primals

    @recomputed
    def masked(ring: Array, count: Array) -> Array:
        oldest = jnp.arange(ring.shape[1]) == count % ring.shape[1]
        return jnp.sum(jnp.where(oldest.reshape(-1, *(1,) * (ring.ndim - 2)), ring, 0), axis=1)

    return _oldest(ring, count), masked(tangents[0], count)


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


def following(count: Array | int, y: Array) -> Array | int:
    """A count of frames, which XLA takes to depend on ``y``.

    What is written at its place is written when ``y`` is computed, and so is all that was read.
    """
    if not y.size:
        return count
    bits = lax.bitcast_convert_type(y[(0,) * y.ndim].astype(jnp.float32), jnp.int32)
    return count + (bits & (count >> 31))  # a count has no sign


def unrolled(ring: Array, count: Array | int, axis: int = 1) -> Array:
    """A ring's frames, oldest first, given how many were written."""
    slots = ring.shape[axis]
    return jnp.take(ring, (count + jnp.arange(slots)) % slots, axis, mode="clip")


def joined(ring: Array, count: Array | int, chunk: Chunk) -> Array:
    """A ring's frames, oldest first, and those of a chunk: ``(B, n + T, *S, C)``."""
    return join(unrolled(ring, count), channels_last(chunk.clean()), chunk.blank)


def windows(frames: Array, steps: int) -> Array:
    """All windows of consecutive frames: ``(B, T, ...)`` to ``(B, T - steps + 1, steps, ...)``."""
    places = jnp.arange(frames.shape[1] - steps + 1)[:, None] + jnp.arange(steps)
    return jnp.take(frames, places, axis=1, mode="clip")


def rolled(frames: Array, slots: int, count: Array | int) -> Array:
    """The ring of the newest of frames, oldest first, given how many were written."""
    places = (jnp.arange(slots) - count) % slots
    return jnp.take(frames[:, frames.shape[1] - slots :], places, axis=1, mode="clip")


class DelayLine(NamedTuple):
    """Holds frames back: a ring of ``length`` slots, turned by a counter."""

    length: int
    counter: Counter

    @classmethod
    def of(cls, length: int, timing: Timing | None = None) -> "DelayLine":
        """A line whose counter also serves a layer of this timing."""
        timing = Timing(delay=length) if timing is None else timing
        return cls(length, Counter.for_timing(timing, exact=length, slots=max(length, 1)))

    def fresh(self, x: Spec) -> State:
        """``{"ring": (B, length, *S, C), "count": int32}``; no ring for a length of 0."""
        memory = {"ring": ring(spec_last(x), self.length)} if self.length else {}
        return {**memory, **self.counter.fresh()}

    def push(self, state: State, flow: Signal | Chunk) -> "Pushed":
        """Takes in the signal's frame, or the chunk's frames."""
        if isinstance(flow, Chunk):
            after = self.counter.advance_by(state, flow.valid_steps)
            if not self.length:
                return Pushed(flow, state, after, None)
            frames = joined(state["ring"], state["count"], flow)
            after["ring"] = rolled(frames, self.length, after["count"])
            return Pushed(flow, state, after, frames)
        after = self.counter.advance(state, flow.valid)
        if not self.length:
            return Pushed(flow, state, after, None)
        frame = channels_last(flow.value)
        oldest, count = read_before_write(state["ring"], state["count"], frame)
        after["ring"] = write(state["ring"], frame, count, flow.valid)
        return Pushed(flow, state, after, oldest)


class Pushed(NamedTuple):
    """What a line took in.

    Attributes:
      flow: the signal, or the chunk.
      before, after: the line's states.
      memory: the oldest frame ``(B, *S, C)``, or all ``length`` and those of the chunk, ``(B, T,
        *S, C)``; None from a line of length 0.
    """

    flow: Any
    before: State
    after: State
    memory: Array | None

    def held(self, steps: int) -> Any:
        """What came so many valid frames before what was taken in."""
        if steps == 0:
            return self.flow
        assert self.memory is not None
        count, timing = self.before["count"], Timing(end=steps, delay=steps)
        length = self.before["ring"].shape[1]
        if isinstance(self.flow, Chunk):
            start = length - steps
            frames = self.memory[:, start : start + self.flow.steps]
            emitted = self.flow.emitted(count, timing)
            return self.flow.leaves(channels_second(frames), emitted, timing)
        if steps == length:
            value = self.memory
        else:
            value = read(self.after["ring"], (count - steps) % length)
        return self.flow.leaves(channels_second(value), count >= steps, timing)
