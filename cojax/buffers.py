"""The memory of a stream: counters, and rings of past frames.

A step writes one slot of a ring, in place if the state is donated; an invalid frame leaves the ring
unchanged. Frames are stored with their channels last.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from cojax.chunks import Chunk, join
from cojax.frames import Signal, Spec, State, select
from cojax.layout import channels_last, channels_second, spec_last
from cojax.ops.gradient import recomputed
from cojax.ops.windows import exceeds
from cojax.timing import Timing

# The numbers in a memory whose update should have a kernel of its own on a GPU, see apart.
_LARGE = 2**18


class Counter(NamedTuple):
    """Counts valid frames: exactly up to ``exact``, and from then on in cycles of ``period``.

    The count therefore never overflows, yet it distinguishes warm-up from steady state and gives
    the phase of anything whose own period divides ``period``. A counter that would always be zero
    is not part of the state.
    """

    exact: int
    period: int

    @classmethod
    def for_timing(cls, timing: Timing, exact: int = 0, slots: int = 1) -> "Counter":
        """Returns a counter for when a layer emits, and for positions in a ring of ``slots``."""
        return cls(max(timing.delay, exact), math.lcm(timing.stride, slots))

    def fresh(self) -> State:
        return {"count": jnp.zeros((), jnp.int32)} if self.needed else {}

    @property
    def needed(self) -> bool:
        return self.exact > 0 or self.period > 1

    def of(self, state: State) -> Array | int:
        """Returns the number of valid frames before."""
        return state["count"] if self.needed else 0

    def advance(self, state: State, flow: Signal | Chunk) -> State:
        """Returns the state after a signal's frame, or after a chunk's frames."""
        if not self.needed:
            return {}
        before, wrapped = state["count"], self.exact + self.period
        if isinstance(flow, Chunk):
            count = before + flow.valid_steps
            cyclic = self.exact + (count - self.exact) % self.period
            return {"count": jnp.where(count < wrapped, count, cyclic)}
        count = jnp.where(before + 1 == wrapped, self.exact, before + 1)
        return {"count": select(flow.valid, count, before)}


def counted_together(state: State) -> State:
    """Returns the same state, with all counters read from a single vector.

    If each counter is read separately, a GPU launches two kernels for each: one to copy it, and one
    to increment it. A step of CoX3D-S then takes 380 kernels; with a single vector it takes 252. A
    CPU saves one microsecond per counter (a step of four residual blocks of two convolutions takes
    131 us instead of 144).
    """
    leaves, tree = jax.tree.flatten(state)
    places = [i for i, leaf in enumerate(leaves) if leaf.ndim == 0 and leaf.dtype == jnp.int32]
    if len(places) > 1:
        counts = lax.optimization_barrier(jnp.stack([leaves[i] for i in places]))
        for place, count in zip(places, counts, strict=True):
            leaves[place] = count
    return jax.tree.unflatten(tree, leaves)


def apart(
    memory: Array, count: Array | int, valid: Array | bool
) -> tuple[Array | int, Array | bool]:
    """Returns what the update of a large memory depends on in buffers of its own, on a GPU.

    XLA fuses kernels that read the same array, here the vector of :func:`counted_together`. With
    large memories that is slow. At batch 64, CoX3D-L updated its partial sums in kernels of up to
    13 layers, which took 41 of 56 ms on an H200: for each operation, those of 12 or 13 layers took
    more than ten times as long as one of 5. The inputs of all these layers were also kept until
    the end of the step, which needed 3.8 GB for temporary arrays, and needs 1.0 GB without that.

    One kernel brings all counts into their buffers, if each is an operation, such as a maximum.
    """
    if isinstance(count, int) or not exceeds(memory.size, _LARGE):
        return count, valid

    def in_buffers(count: Array, *valid: Array) -> tuple[Array, ...]:
        # A count is never negative.
        computed = (jnp.logical_and(each, count >= 0) for each in valid)
        return lax.optimization_barrier((jnp.maximum(count, 0), *computed))

    read = (count,) if valid is True else (count, valid)
    count, *known = lax.platform_dependent(*read, cpu=lambda *read: read, default=in_buffers)
    return count, known[0] if known else True


def ring(x: Spec, slots: int, fill: float = 0) -> Array:
    """Returns a fresh ring ``(B, slots, ...)`` for frames ``(B, ...)`` of this spec."""
    return jnp.full((x.shape[0], slots, *x.shape[1:]), fill, x.dtype)


def write(
    ring: Array, frame: Array, count: Array | int, valid: bool | Array, axis: int = 1
) -> Array:
    """Returns the ring with the frame replacing the oldest, at ``count % n``, unless invalid.

    The slice that is read has the shape of the slice that is written. Otherwise XLA would separate
    the read from the write, and within a branch it would copy the ring for that.
    """
    slots = ring.shape[axis]
    slot, position = jnp.expand_dims(frame, axis), count % slots
    if slots == 1:
        # Otherwise XLA would choose a layout for the frame, and then copy it into the ring.
        return jnp.where(jnp.logical_and(valid, count >= 0), slot, ring)
    if ring.dtype == jnp.bfloat16:
        return _written_as_it_is(ring, slot, position, valid, axis)
    return _written(ring, slot, position, valid, axis)


def _written(
    ring: Array, slot: Array, position: Array | int, valid: bool | Array, axis: int
) -> Array:
    if valid is not True:
        slot = jnp.where(valid, slot, lax.dynamic_slice_in_dim(ring, position, 1, axis))
    return lax.dynamic_update_slice_in_dim(ring, slot, position, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _written_as_it_is(
    ring: Array, slot: Array, position: Array | int, valid: bool | Array, axis: int
) -> Array:
    """Writes to a ring of bfloat16, which a CPU would otherwise convert, whole, in every step.

    XLA computes almost everything in float32 there, moving numbers included. So the bits are
    written as integers: a ring of 63 frames of 1024 numbers, for 8 streams, takes 8 us instead of
    26, and a step of the encoder of 8 streams 0.8 of the time.
    """

    def by_bits(ring: Array, slot: Array, position: Array, valid: Array) -> Array:
        ring, slot = (lax.bitcast_convert_type(x, jnp.uint16) for x in (ring, slot))
        return lax.bitcast_convert_type(_written(ring, slot, position, valid, axis), jnp.bfloat16)

    def by_values(ring: Array, slot: Array, position: Array, valid: Array) -> Array:
        return _written(ring, slot, position, valid, axis)

    return lax.platform_dependent(ring, slot, position, valid, cpu=by_bits, default=by_values)


@_written_as_it_is.defjvp
def _written_as_it_is_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    ring, slot, position, valid = primals
    change = _written(tangents[0], tangents[1], position, valid, axis)
    return _written_as_it_is(ring, slot, position, valid, axis), change


def cleared(ring: Array, position: Array | int) -> Array:
    """Returns the ring ``(B, n, ...)`` with zeros in the slot at ``position``.

    (A GPU would compute a mask of the slots in a kernel of its own.)
    """
    return lax.dynamic_update_slice_in_dim(ring, jnp.zeros_like(ring[:, :1]), position, axis=1)


def read(ring: Array, position: Array | int, axis: int = 1) -> Array:
    """Returns the frame in the slot at ``position``."""
    return lax.dynamic_index_in_dim(ring, position, axis, keepdims=False)


def read_before_write(ring: Array, count: Array | int, x: Array) -> tuple[Array, Array | int]:
    """Returns the oldest frame of a ring, and the count with which to write to the ring afterwards.

    The frame is read once, into a buffer of its own. Otherwise XLA would read it wherever it is
    used, and would copy the ring in order to write to it earlier than that. On a CPU the read is in
    a branch, since nothing is fused with the output of a branch; on a GPU it has an optimization
    barrier instead, since a branch would make the host wait.

    Args:
      ring: ``(B, n, ...)``; the oldest frame is at ``count % n``.
      count: the number of frames written before.
      x: the array from which the frame to write is computed. The oldest frame is read when ``x`` is
        available, so that the reads of all rings do not happen at the start of the step.
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
            return jnp.zeros_like(ring[:, 0])

        return lax.cond(count >= 0, taken, never, ring, count)

    def behind_a_barrier(ring: Array, count: Array) -> Array:
        return lax.optimization_barrier(read(ring, count % ring.shape[1]))

    return lax.platform_dependent(ring, count, cpu=in_a_branch, default=behind_a_barrier)


@_oldest.defjvp
def _oldest_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Reads by a mask: its gradient is added to the ring's as it is computed, not materialized."""
    ring, count = primals

    @recomputed
    def masked(ring: Array, count: Array) -> Array:
        oldest = jnp.arange(ring.shape[1]) == count % ring.shape[1]
        return jnp.sum(jnp.where(oldest.reshape(-1, *(1,) * (ring.ndim - 2)), ring, 0), axis=1)

    return _oldest(ring, count), masked(tangents[0], count)


def replicated(
    ring: Array, frame: Array, count: Array | int, signal: Signal
) -> tuple[Array, Array]:
    """Returns a ring and the frame to write to it, where a stream's ends are filled by copies.

    The stream's first frame fills the ring, and frames past its end are copies of the newest.

    Args:
      ring: ``(B, n, *S, C)``; the oldest frame is at ``count % n``.
      frame: the current frame, ``(B, *S, C)``.
      count: the number of frames written before.
      signal: the signal that the frame is computed from.
    """
    ring = jnp.where((count == 0) & signal.valid, frame[:, None], ring)
    if not signal.always_real:
        newest = read(ring, (count - 1) % ring.shape[1])
        frame = jnp.where(signal.past > 0, newest, frame)
    return ring, frame


def shown(ring: Array, frame: Array, places: Any) -> Array:
    """Returns a window ``(B, *S, k, C)``: frames of a ring in a given order, and the current frame.

    The frames are gathered at once. Read one by one, they take longer from about 9 on (64 channels
    and 9 taps: 59 us a step instead of 20; 40 taps: 0.75 s to compile instead of 0.2).

    Args:
      ring: the previous frames, ``(B, n, *S, C)``.
      frame: the current frame, ``(B, *S, C)``.
      places: the positions of the frames to include, before reduction modulo ``n``.
    """
    frames = jnp.take(ring, places % ring.shape[1], axis=1, mode="clip")
    return jnp.concatenate([jnp.moveaxis(frames, 1, -2), jnp.expand_dims(frame, -2)], axis=-2)


def following(count: Array | int, y: Array) -> Array | int:
    """Returns the count of frames, with a data dependency on ``y`` that XLA cannot remove.

    A write at the position it gives happens after ``y`` is computed, and thus after everything that
    ``y`` depends on has been read.
    """
    if not y.size:
        return count
    bits = lax.bitcast_convert_type(y[(0,) * y.ndim].astype(jnp.float32), jnp.int32)
    return count + (bits & (count >> 31))  # a count is never negative: this adds 0


def unrolled(ring: Array, count: Array | int, axis: int = 1) -> Array:
    """Returns a ring's frames, oldest first, given how many were written."""
    slots = ring.shape[axis]
    return jnp.take(ring, (count + jnp.arange(slots)) % slots, axis, mode="clip")


def joined(ring: Array, count: Array | int, chunk: Chunk) -> Array:
    """Returns a ring's frames, oldest first, and those of a chunk: ``(B, n + T, *S, C)``."""
    return join(unrolled(ring, count), channels_last(chunk.clean()), chunk.blank)


def rolled(frames: Array, slots: int, count: Array | int) -> Array:
    """Returns the ring of the newest of some frames, oldest first, given how many were written."""
    places = (jnp.arange(slots) - count) % slots
    return jnp.take(frames[:, frames.shape[1] - slots :], places, axis=1, mode="clip")


class DelayLine(NamedTuple):
    """Delays frames by up to ``length`` steps: a ring of ``length`` slots, and its counter."""

    length: int
    counter: Counter

    @classmethod
    def of(cls, length: int, timing: Timing | None = None) -> "DelayLine":
        """Returns a delay line whose counter also serves a layer of this timing."""
        timing = Timing(delay=length) if timing is None else timing
        return cls(length, Counter.for_timing(timing, exact=length, slots=max(length, 1)))

    def fresh(self, x: Spec) -> State:
        """Returns ``{"ring": (B, length, *S, C), "count": int32}``; no ring if the length is 0."""
        memory = {"ring": ring(spec_last(x), self.length)} if self.length else {}
        return {**memory, **self.counter.fresh()}

    def push(self, state: State, flow: Signal | Chunk) -> "Pushed":
        """Adds a signal's frame, or a chunk's frames, to the line."""
        after = self.counter.advance(state, flow)
        if not self.length:
            return Pushed(flow, state, after, None)
        if isinstance(flow, Chunk):
            frames = joined(state["ring"], state["count"], flow)
            after["ring"] = rolled(frames, self.length, after["count"])
            return Pushed(flow, state, after, frames)
        frame = channels_last(flow.value)
        oldest, count = read_before_write(state["ring"], state["count"], frame)
        after["ring"] = write(state["ring"], frame, count, flow.valid)
        return Pushed(flow, state, after, oldest)


class Pushed(NamedTuple):
    """The result of adding a signal or a chunk to a :class:`DelayLine`.

    Attributes:
      flow: the signal, or the chunk.
      before, after: the states of the line.
      memory: for a signal, the oldest frame, ``(B, *S, C)``; for a chunk, all ``length`` frames
        followed by those of the chunk, ``(B, length + T, *S, C)``; None if the length is 0.
    """

    flow: Any
    before: State
    after: State
    memory: Array | None

    def held(self, steps: int) -> Any:
        """Returns the flow delayed by ``steps`` valid frames."""
        if steps == 0:
            return self.flow
        assert self.memory is not None
        count, timing = self.before["count"], Timing(end=steps, delay=steps)
        length = self.before["ring"].shape[1]
        if isinstance(self.flow, Chunk):
            start = length - steps
            value = self.memory[:, start : start + self.flow.steps]
        elif steps == length:
            value = self.memory
        else:
            value = read(self.after["ring"], (count - steps) % length)
        return self.flow.leaves(channels_second(value), self.flow.emitted(count, timing), timing)
