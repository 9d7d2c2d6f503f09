"""Frames for the user, signals between layers, and specs where nothing is computed yet.

A module with several streams takes and returns (nested) tuples of these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.typing import ArrayLike

from cojax.errors import InputError
from cojax.layout import channels_last, channels_second
from cojax.timing import Timing

Spec = jax.ShapeDtypeStruct
State = dict[str, Any]


@flax.struct.dataclass
class Frame:
    """The output of a step: a value, and whether it is valid.

    During warm-up, and between the outputs of a strided network, ``valid`` is False and the value
    is arbitrary.

    Example::

        frame = co.Frame(jnp.ones((1, 3)), jnp.array(False))
        assert frame.or_none() is None
        frames = co.Frame(jnp.ones((1, 3, 4)), jnp.array([False, True, False, True]))
        assert frames.dense().shape == (1, 3, 2)

    Attributes:
      value: ``(B, C, *S)`` from one step, ``(B, C, T, *S)`` from many.
      valid: bool, ``()`` from one step, ``(T,)`` from many.
    """

    value: Array
    valid: Array

    def or_none(self) -> Array | None:
        """Returns the value of one step, or None if nothing was emitted. On the host only."""
        if np.ndim(self.valid) != 0:
            raise ValueError(
                f"or_none() reads the frame of one step, but valid has shape "
                f"{np.shape(self.valid)}; use dense() for the frames of forward_steps, and "
                "value[i] where valid[i] for those of a step under vmap"
            )
        return self.value if bool(self.valid) else None

    def dense(self) -> Array | None:
        """Returns the valid steps ``(B, C, T', *S)`` of ``forward_steps``; None if there are none.

        On the host only: the length depends on ``valid``.
        """
        if np.ndim(self.valid) != 1 or np.shape(self.value)[2:3] != np.shape(self.valid):
            raise ValueError(
                f"dense() reads the frames of many steps, (B, C, T, *S) and (T,), but value and "
                f"valid have shapes {np.shape(self.value)} and {np.shape(self.valid)}; use "
                "or_none() for the frame of one step, and value[i] where valid[i] for those of a "
                "step under vmap"
            )
        (emitted,) = np.nonzero(np.asarray(self.valid))
        return self.value[:, :, emitted] if len(emitted) else None


# So that jax.export can serialize steps that return Frames.
export.register_pytree_node_serialization(
    Frame,
    serialized_name="cojax.Frame",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)


@dataclasses.dataclass(frozen=True)
class Signal:
    """A frame passed between layers while stepping, with what is known about it while tracing.

    Attributes:
      value: ``(B, C, *S)``.
      valid: True if that is known while tracing, else a bool scalar.
      past: 0 for a real frame; n for the n-th frame after the end of the stream.
      chunked: whether ``forward_steps`` is running, for functions that differ by mode.
      tidy: whether the value is known to be zero where it is invalid.
      skip: whether work that no output needs is skipped, by a branch instead of masks.
    """

    value: Array
    valid: bool | Array = True
    past: int | Array = 0
    chunked: bool = False
    tidy: bool = False
    skip: bool = False

    @property
    def always_real(self) -> bool:
        """Whether it is known while tracing that the stream has not ended."""
        return isinstance(self.past, int) and self.past == 0

    @property
    def real(self) -> bool | Array:
        """Whether the frame is valid and within the stream."""
        return self.valid if self.always_real else jnp.logical_and(self.valid, self.past == 0)

    def clean(self, fill: ArrayLike = 0) -> Array:
        """Returns the value to compute with: ``fill`` past the stream's end, zero if invalid."""
        value = channels_last(self.value)
        if not self.always_real:
            value = jnp.where(self.past > 0, jnp.asarray(fill, value.dtype), value)
        if not self.tidy:
            value = select(self.valid, value, jnp.zeros_like(value))
        return channels_second(value)

    def tidied(self) -> "Signal":
        """Returns the same frame with a clean value, for several modules to compute with.

        Otherwise XLA would compute the clean value for each of them.
        """
        return dataclasses.replace(self, value=self.clean(), tidy=True)

    def becomes(self, value: Array) -> "Signal":
        """Returns the same frame with another value."""
        return dataclasses.replace(self, value=value, tidy=False)

    def emitted(self, count: int | Array, timing: Timing) -> bool | Array:
        """Returns whether a layer emits at this frame, if ``count`` valid ones precede it."""
        if timing.delay == 0 and timing.stride == 1:
            return True
        warm = count >= timing.delay
        return warm if timing.stride == 1 else warm & ((count - timing.delay) % timing.stride == 0)

    def leaves(self, value: Array, emits: bool | Array, timing: Timing) -> "Signal":
        """Returns the output of a layer of this timing: valid if this frame is and ``emits``."""
        valid = self.valid if emits is True else jnp.logical_and(self.valid, emits)
        past = self.past
        if not self.always_real:
            past = jnp.maximum(0, -((timing.end - past) // timing.stride))
        return dataclasses.replace(self, value=value, valid=valid, past=past, tidy=False)


def select(condition: bool | Array, on_true: Array, on_false: Array) -> Array:
    """``jnp.where``, at no cost if the condition is known while tracing to be True."""
    return on_true if condition is True else jax.lax.select(condition, on_true, on_false)


def varying_like(tree: Any, x: Array) -> Any:
    """Returns the arrays of a tree, varying along the mesh axes that ``x`` varies along.

    In ``jax.shard_map``, the state that a scan starts from must vary like the states that it
    computes. Scalars, which are counters, are the same on all devices.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree

    def varying(leaf: Array) -> Array:
        return leaf + jax.lax.full_like(x, 0, leaf.dtype, shape=()) if leaf.ndim else leaf

    return jax.tree.map(varying, tree)


def map_streams(function: Callable[..., Any], *streams: Any) -> Any:
    """Maps a function over a stream, or over those in (nested) tuples of several."""
    if isinstance(streams[0], tuple | list):
        return tuple(map_streams(function, *each) for each in zip(*streams, strict=True))
    return function(*streams)


def flat_streams(streams: Any) -> list[Any]:
    """Returns the streams in (nested) tuples, in order."""
    if isinstance(streams, tuple | list):
        return [leaf for stream in streams for leaf in flat_streams(stream)]
    return [streams]


def spec_of(value: Any) -> Spec:
    """Returns the shape and dtype that JAX gives an array, a Signal, a Frame or a spec."""
    if isinstance(value, Frame | Signal):
        value = value.value
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        value = np.asarray(value)
    try:
        dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    except TypeError as error:
        given = type(value).__name__
        hint = "; call its numpy()" if type(value).__module__ == "torch" else f": {error}"
        raise InputError(f"expected an array, got a {given}{hint}") from error
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise InputError(f"expected an array of numbers, got {value!r}")
    return Spec(tuple(value.shape), dtype)


def step_spec(x_t: Any, dtype: Any = None) -> Any:
    """Returns the spec of a step, given as an array, Frame or spec (tuples of these), or a shape.

    Raises:
      InputError: for a dtype together with anything but a shape, an unknown one, or a negative
        size.
    """
    if isinstance(x_t, tuple | list) and all(isinstance(n, int | np.integer) for n in x_t):
        if any(n < 0 for n in x_t):
            raise InputError(f"a shape has no negative sizes, got {tuple(x_t)}")
        try:
            x_t = Spec(tuple(x_t), jnp.float32 if dtype is None else jnp.dtype(dtype))
        except TypeError as error:
            raise InputError(f"unknown {dtype=}: {error}") from error
    elif dtype is not None:
        raise InputError("dtype goes with a shape; an array or a spec has its own")
    return map_streams(spec_of, x_t)


def without_time(spec: Spec) -> Spec:
    """Returns the spec of one step of a clip.

    Raises:
      InputError: if there is no time axis.
    """
    if len(spec.shape) < 3:
        raise InputError(
            f"a clip has the axes (batch, channel, time, *space), got shape {spec.shape}"
        )
    return Spec((*spec.shape[:2], *spec.shape[3:]), spec.dtype)


def with_time(spec: Spec, steps: int = 1) -> Spec:
    """Returns the spec of a clip of such steps."""
    return Spec((*spec.shape[:2], steps, *spec.shape[2:]), spec.dtype)


def length_of(clips: Any) -> int:
    """Returns the number of steps in a clip, or in the clips of several streams.

    Raises:
      InputError: if the streams have different lengths.
    """
    specs = [spec_of(clip) for clip in flat_streams(clips)]
    for spec in specs:
        without_time(spec)
    lengths = {spec.shape[2] for spec in specs}
    if len(lengths) != 1:
        raise InputError(f"streams stepped together need one length, got {sorted(lengths)} steps")
    return lengths.pop()
