"""Many steps at once: what flows when a chunk of a stream is computed as a whole.

A layer that knows its memory computes a chunk like a clip whose padding is that memory: one
convolution over window and chunk instead of a scan over steps.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from cojax.frames import flat_streams
from cojax.layout import channels_last, channels_second
from cojax.timing import Timing


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Frames of a stream, oldest first: ``blank`` invalid ones, and behind them only valid ones.

    A strided layer hands on no more than ``ceil(T / stride)`` of ``T`` frames, the last of them at
    a place that only its counter knows.

    Attributes:
      value: ``(B, C, T, *S)``.
      blank: the number of invalid frames in front; 0 where that is known while tracing.
      last: the place of the last frame among the steps that came in.
      stride: the steps from one frame to the next.
    """

    value: Array
    blank: int | Array = 0
    last: int | Array = 0
    stride: int = 1

    @property
    def steps(self) -> int:
        """How many frames there are, the invalid ones included."""
        return self.value.shape[2]

    @property
    def valid_steps(self) -> int | Array:
        """How many frames are valid."""
        return self.steps - self.blank

    @property
    def valid(self) -> Array:
        """Which frames are valid, ``(T,)``."""
        return jnp.arange(self.steps) >= self.blank

    def clean(self) -> Array:
        """The value to compute with: zero where invalid."""
        if isinstance(self.blank, int) and not self.blank:
            return self.value
        valid = self.valid.reshape(-1, *(1,) * (self.value.ndim - 2))
        value = channels_last(self.value)
        return channels_second(jnp.where(valid, value, jnp.zeros((), value.dtype)))

    def becomes(self, value: Array) -> "Chunk":
        """The same frames with other values."""
        return dataclasses.replace(self, value=value)

    def emitted(self, count: int | Array, timing: Timing) -> "Emitted":
        """Which frames a layer answers that took in ``count`` valid ones before this chunk."""
        if timing.stride == 1:
            blank: int | Array = self.blank
            if timing.delay:
                blank = jnp.minimum(self.blank + jnp.maximum(timing.delay - count, 0), self.steps)
            return Emitted(self.steps, self.steps - 1, blank)
        steps = -(-self.steps // timing.stride)
        newest = count + self.valid_steps - 1  # counted from the stream's first valid frame
        last = self.steps - 1 - (newest - timing.delay) % timing.stride
        first = self.blank + jnp.maximum(timing.delay - count, 0)
        answers = jnp.maximum((last - first) // timing.stride + 1, 0)
        return Emitted(steps, last, steps - answers)

    def leaves(self, value: Array, emitted: "Emitted", timing: Timing) -> "Chunk":
        """The chunk that leaves a layer of this timing: an answer for each frame emitted."""
        last = self.last - (self.steps - 1 - emitted.last) * self.stride
        return Chunk(value, emitted.blank, last, self.stride * timing.stride)


class Emitted(NamedTuple):
    """The frames of a chunk that a layer answers: a stride apart, up to the last.

    Attributes:
      steps: how many, those included that stand for no answer.
      last: the frame that the last of them answers.
      blank: how many of them, in front, stand for no answer.
    """

    steps: int
    last: int | Array
    blank: int | Array

    def frames(self, stride: int) -> Array:
        """The frames answered, ``(steps,)``; negative ones stand for no answer."""
        return self.last - stride * jnp.arange(self.steps)[::-1]

    def covered(self, joined: Array, field: int, stride: int) -> Array:
        """What the windows of the frames answered cover, the first window's start in front.

        Args:
          joined: the ``field - 1`` frames before the chunk, and the chunk, ``(B, T, ...)``.
          field: the receptive field.
          stride: the layer's stride.
        """
        if stride == 1:
            return joined
        padding = [(0, 0, 0)] * joined.ndim
        padding[1] = (stride - 1, 0, 0)
        joined = lax.pad(joined, jnp.zeros((), joined.dtype), padding)
        start = self.last - (self.steps - 1) * stride + stride - 1
        size = (self.steps - 1) * stride + field
        return lax.dynamic_slice_in_dim(joined, start, size, axis=1)


def join(memory: Array, frames: Array, blank: int | Array) -> Array:
    """What came before, and a chunk's frames: memory ends where the first valid frame begins."""
    if isinstance(blank, int) and not blank:
        return jnp.concatenate([memory, frames], axis=1)
    joined = jnp.concatenate([jnp.zeros_like(memory), frames], axis=1)
    return lax.dynamic_update_slice_in_dim(joined, memory, blank, axis=1)


def begun(memory: Array, frames: Array, chunk: Chunk, count: Array | int) -> Array:
    """A memory, filled with a chunk's first valid frame if the stream begins with that."""
    first = jnp.take(frames, jnp.minimum(chunk.blank, chunk.steps - 1), axis=1)
    begins = (count == 0) & (chunk.valid_steps > 0)
    return jnp.where(begins, first[:, None], memory)


def met(flows: Sequence[Any], value: Array) -> Any:
    """What is made of several frames, or chunks: valid where all are, past the end where one is."""
    first = flows[0]
    if isinstance(first, Chunk):
        blank = functools.reduce(jnp.maximum, [chunk.blank for chunk in flows])
        return dataclasses.replace(first, value=value, blank=blank)
    valid, past = first.valid, first.past
    for signal in flows[1:]:
        if signal.valid is not True:
            valid = signal.valid if valid is True else jnp.logical_and(valid, signal.valid)
        if not signal.always_real:
            past = jnp.maximum(past, signal.past)
    return dataclasses.replace(first, value=value, valid=valid, past=past, tidy=False)


def is_chunk(flow: Any) -> bool:
    """Whether a chunk flows (or several), and not a step."""
    return isinstance(flat_streams(flow)[0], Chunk)
