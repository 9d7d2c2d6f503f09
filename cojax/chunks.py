"""Chunks: what flows between layers when many steps of a stream are computed at once.

A layer can compute a chunk like a clip whose padding is the layer's memory: for instance, as one
convolution over window and chunk instead of a scan over steps.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from cojax.frames import flat_streams, map_streams
from cojax.layout import as_clip, as_step, channels_last, channels_second
from cojax.ops.windows import padded_axis
from cojax.timing import Timing


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Frames of a stream, oldest first: ``blank`` invalid frames, followed only by valid ones.

    A strided layer turns ``T`` frames into at most ``ceil(T / stride)``; at which step it emits the
    last of them depends on its counter.

    Attributes:
      value: ``(B, C, T, *S)``.
      blank: the number of invalid frames at the start; the int 0 if it is known while tracing that
        there are none.
      last_step: the position of the last frame among the input steps of the chunk.
      stride: the number of input steps from one frame to the next.
    """

    value: Array
    blank: int | Array = 0
    last_step: int | Array = 0
    stride: int = 1

    @property
    def steps(self) -> int:
        """The number of frames, including invalid ones."""
        return self.value.shape[2]

    @property
    def valid_steps(self) -> int | Array:
        """The number of valid frames."""
        return self.steps - self.blank

    @property
    def valid(self) -> Array:
        """Which frames are valid, ``(T,)``."""
        return jnp.arange(self.steps) >= self.blank

    def clean(self) -> Array:
        """Returns the value to compute with: zero where invalid."""
        if isinstance(self.blank, int) and not self.blank:
            return self.value
        valid = self.valid.reshape(-1, *(1,) * (self.value.ndim - 2))
        value = channels_last(self.value)
        return channels_second(jnp.where(valid, value, jnp.zeros((), value.dtype)))

    def tidied(self) -> "Chunk":
        """Returns the chunk itself, which every module that computes with it cleans."""
        return self

    def becomes(self, value: Array) -> "Chunk":
        """Returns the same frames with another value."""
        return dataclasses.replace(self, value=value)

    def emitted(self, count: int | Array, timing: Timing) -> "Emitted":
        """Returns the frames at which a layer emits, if ``count`` valid ones precede the chunk."""
        if timing.stride == 1:
            blank: int | Array = self.blank
            if timing.delay:
                blank = jnp.minimum(self.blank + jnp.maximum(timing.delay - count, 0), self.steps)
            return Emitted(self.steps, self.steps - 1, blank)
        steps = -(-self.steps // timing.stride)
        newest = count + self.valid_steps - 1  # counted from the stream's first valid frame
        last = self.steps - 1 - (newest - timing.delay) % timing.stride
        first = self.blank + jnp.maximum(timing.delay - count, 0)
        valid = jnp.maximum((last - first) // timing.stride + 1, 0)
        return Emitted(steps, last, steps - valid)

    def leaves(self, value: Array, emitted: "Emitted", timing: Timing) -> "Chunk":
        """Returns the output chunk of a layer of this timing: one output per emitted frame."""
        after = (self.steps - 1 - emitted.last_frame) * self.stride
        last_step = self.last_step - after
        return Chunk(value, emitted.blank, last_step, self.stride * timing.stride)


class Emitted(NamedTuple):
    """The frames of a chunk at which a layer emits outputs: one stride apart, up to ``last_frame``.

    Attributes:
      steps: the number of outputs, including invalid ones.
      last_frame: the frame at which the last output is emitted.
      blank: the number of invalid outputs, which come first.
    """

    steps: int
    last_frame: int | Array
    blank: int | Array

    def frames(self, stride: int) -> Array:
        """Returns the numbers of these frames, ``(steps,)``; negative ones have no output."""
        return self.last_frame - stride * jnp.arange(self.steps)[::-1]

    def covered(self, joined: Array, field: int, stride: int) -> Array:
        """Returns what the windows of all outputs cover, from the start of the first window on.

        Args:
          joined: the ``field - 1`` frames before the chunk, and the chunk, ``(B, T, ...)``.
          field: the receptive field.
          stride: the layer's stride.
        """
        if stride == 1:
            return joined
        joined = padded_axis(joined, 1, (stride - 1, 0))
        start = self.last_frame - (self.steps - 1) * stride + stride - 1
        size = (self.steps - 1) * stride + field
        return lax.dynamic_slice_in_dim(joined, start, size, axis=1)


def join(memory: Array, frames: Array, blank: int | Array) -> Array:
    """Joins a memory and a chunk's frames: the memory ends where the first valid frame begins."""
    if isinstance(blank, int) and not blank:
        return jnp.concatenate([memory, frames], axis=1)
    joined = jnp.concatenate([jnp.zeros_like(memory), frames], axis=1)
    return lax.dynamic_update_slice_in_dim(joined, memory, blank, axis=1)


def begun(memory: Array, frames: Array, chunk: Chunk, count: Array | int) -> Array:
    """Returns a memory, filled with the chunk's first valid frame if the stream begins with it."""
    first = jnp.take(frames, jnp.minimum(chunk.blank, chunk.steps - 1), axis=1)
    begins = (count == 0) & (chunk.valid_steps > 0)
    return jnp.where(begins, first[:, None], memory)


def met(flows: Sequence[Any], value: Array) -> Any:
    """Returns a frame, or a chunk, of a value computed from several.

    It is valid where all of them are, and past the end of the stream where one of them is.
    """
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


def locally(function: Callable[[Any], Array], flow: Any) -> Any:
    """Returns a frame, or a chunk, computed by a function of clips that is local in time.

    Args:
      function: takes a clip, or the clips of several streams, to one.
      flow: a signal or a chunk, or those of several streams.
    """
    clips = map_streams(lambda each: each.clean(), flow)
    if is_chunk(flow):
        return met(flat_streams(flow), function(clips))
    return met(flat_streams(flow), as_step(function(map_streams(as_clip, clips))))


def is_chunk(flow: Any) -> bool:
    """Returns whether one or several chunks flow, as opposed to steps."""
    return isinstance(flat_streams(flow)[0], Chunk)
