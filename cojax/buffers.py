"""The memories of a stream: counters, short windows that shift, and rings.

A short window of the last inputs is shifted by a step (concatenate and slice). A long memory is a
ring, of which a step writes one slot. Both stay as they are on an invalid frame.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from cojax.frames import Signal, Spec, State, select
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

    def emits(self, state: State, timing: Timing) -> bool | Array:
        """Whether a layer of this timing emits on this frame."""
        count = self.of(state)
        if timing.delay == 0 and timing.stride == 1:
            return True
        if timing.stride == 1:
            return count >= timing.delay
        return (count >= timing.delay) & ((count - timing.delay) % timing.stride == 0)


def ring(x: Spec, slots: int, fill: float = 0) -> Array:
    """A ring ``(B, slots, ...)`` for frames of this spec."""
    return jnp.full((x.shape[0], slots, *x.shape[1:]), fill, x.dtype)


def write(ring: Array, frame: Array, position: Array | int, valid: bool | Array) -> Array:
    """The ring with the frame in the slot at ``position``, unchanged where invalid."""
    if valid is not True:
        frame = jnp.where(valid, frame, read(ring, position))
    return lax.dynamic_update_index_in_dim(ring, frame, position, axis=1)


def read(ring: Array, position: Array | int) -> Array:
    """The frame in the slot at ``position``."""
    return lax.dynamic_index_in_dim(ring, position, axis=1, keepdims=False)


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
        """``{"ring": (B, length + 1, ...), "count": int32}``; no ring for a length of 0."""
        memory = {"ring": ring(x, self.length + 1)} if self.length else {}
        return {**memory, **self.counter.fresh()}

    def push(self, state: State, signal: Signal) -> State:
        """The state with the signal's frame taken in."""
        after = self.counter.advance(state, signal.valid)
        if self.length:
            slot = state["count"] % (self.length + 1)
            after["ring"] = write(state["ring"], signal.value, slot, signal.valid)
        return after

    def tap(self, before: State, after: State, signal: Signal, held: int) -> Signal:
        """The frame that came ``held`` valid frames before the signal just pushed."""
        if held == 0:
            return signal
        count = before["count"]
        value = read(after["ring"], (count - held) % (self.length + 1))
        return signal.leaves(value, count >= held, Timing(end=held, delay=held))


def shift(window: Array, frame: Array, valid: bool | Array) -> tuple[Array, Array]:
    """The window ``(B, n, ...)`` with the frame behind it, and the window of the next step."""
    full = jnp.concatenate([window, frame[:, None]], axis=1)
    return full, select(valid, full[:, 1:], window)
