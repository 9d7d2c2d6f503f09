"""A live stream in plain Python."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.checks import require_static
from cojax.errors import InputError
from cojax.frames import (
    Frame,
    Spec,
    State,
    flat_streams,
    length_of,
    map_streams,
    spec_of,
    step_spec,
    without_time,
)
from cojax.module import CoModule
from cojax.streaming.files import StateFile, StateFileError

# Variables of up to this many bytes are compiled into the step as constants: passing each leaf
# costs more than a microsecond a step (demo network, 2 CPU cores: 54 us a step, against 81 us with
# the variables as arguments).
_CONSTANT_BYTES = 4 * 2**20


class Stream:
    """Runs a network on a live stream, one step at a time.

    The step is compiled once and updates its state in place. In a network with a temporal stride it
    skips computations that no output needs (``skip`` of :meth:`CoModule.forward_step`). Calls
    return as soon as the step is dispatched, like any JAX computation, if it is known in advance
    which steps emit an output; in a network with a ``Conditional`` that freezes branches it is not,
    and they wait for the result.

    Example::

        net = co.Conv1d(6, 4, kernel_size=3)
        variables = net.init(jax.random.key(0), method="declare")

        stream = co.Stream(net, variables, (1, 6))
        for sample in np.zeros((5, 1, 6), "float32"):
            y = stream(sample)  # (1, 4), or None while nothing is emitted
        assert stream.steps_taken == 5 and y.shape == (1, 4)

    Attributes:
      net: the network.
      variables: its variables.
      spec: the shape and dtype of a step.
      steps_taken: the number of steps taken so far.
    """

    def __init__(
        self, net: CoModule, variables: Mapping[str, Any], x_t: Any, dtype: Any = None
    ) -> None:
        """Opens a fresh stream.

        Args:
          net: the network.
          variables: its variables, as from ``net.init`` or :func:`cojax.load_torch`.
          x_t: what a step looks like: an array, a ``jax.ShapeDtypeStruct``, or a shape with
            ``dtype`` (default float32); a tuple for several streams.
          dtype: the dtype, if ``x_t`` is a shape.

        Raises:
          InputError: if such a step does not fit the network.
        """
        self.net = net
        self._variables = variables
        self.spec = step_spec(x_t, dtype)
        fresh = net.init_state(self.spec)
        self._timing = net.timing
        self._device = _committed_to(variables)
        # Where a traced predicate freezes branches, only the device knows what is valid.
        self._clocked = net.regular
        small = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) <= _CONSTANT_BYTES
        self._passed: Any = None if small else variables
        self._constant: Any = variables if small else None
        self._compiled_step = jax.jit(self._apply_step, donate_argnums=0)
        self._compiled_steps = jax.jit(
            self._apply_steps, donate_argnums=0, static_argnames="pad_end"
        )
        self.steps_taken = 0
        self._state = self._owned(fresh)

    def __call__(self, x_t: Any) -> Any:
        """Takes one step.

        Args:
          x_t: the step ``(B, C, *S)``; a tuple for several streams.

        Returns:
          The output ``(B, C', *S')`` (a tuple for several streams), or None if none is emitted.

        Raises:
          InputError: if the step has another shape or dtype. The stream is left unchanged.
        """
        self._check(x_t)
        frames, self._state = self._compiled_step(self._state, self._passed, x_t)
        self.steps_taken += 1
        emitted = self._timing.emits(self.steps_taken - 1)
        if not self._clocked:
            emitted = all(bool(frame.valid) for frame in flat_streams(frames))
        return map_streams(_value, frames) if emitted else None

    def steps(self, xs: Any, pad_end: bool = False) -> Any:
        """Takes many steps at once, such as a recorded past to warm up with, or steps missed.

        Layers compute the chunk as a whole where they can (``at_once`` of
        :meth:`CoModule.forward_steps`). This compiles once for every chunk length.

        Args:
          xs: the steps ``(B, C, T, *S)``; a tuple for several streams.
          pad_end: whether to append the outputs that need end padding, as if the stream ended here.
            The stream itself goes on.

        Returns:
          The outputs ``(B, C', T', *S')``, or None if there are none.

        Raises:
          InputError: if the steps have another shape or dtype. The stream is left unchanged.
        """
        require_static(pad_end=pad_end)
        self._check(map_streams(_step_of, xs))
        steps = length_of(xs)
        frames, self._state = self._compiled_steps(self._state, self._passed, xs, pad_end)
        start, self.steps_taken = self.steps_taken, self.steps_taken + steps
        if not self._clocked:
            dense = map_streams(Frame.dense, frames)
            return None if any(y is None for y in flat_streams(dense)) else dense
        timing = self._timing
        flush = timing.end if pad_end else 0
        places = [t for t in range(steps + flush) if timing.emits(start + t)]
        if not places:
            return None
        return map_streams(
            lambda frame: frame.value[:, :, places[0] : places[-1] + 1 : timing.stride], frames
        )

    def reset(self) -> None:
        """Returns to a fresh state, so that the next step is the first."""
        self._state = self._owned(self.net.init_state(self.spec))
        self.steps_taken = 0

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables that the stream was made with; they may be compiled into the step."""
        return self._variables

    @property
    def state(self) -> State:
        """A snapshot of the network's state, which later steps do not modify."""
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self._state)

    def restore(self, state: State, steps_taken: int) -> None:
        """Continues from a snapshot.

        Args:
          state: the network's state.
          steps_taken: the number of steps that led to it, i.e. ``stream.steps_taken`` at that time:
            it says which of the next steps emit an output, and is not checked against the state.

        Raises:
          InputError: if the state does not fit this network with steps of this shape and dtype, or
            if ``steps_taken`` is not a number of steps.
        """
        if not isinstance(steps_taken, int | np.integer) or steps_taken < 0:
            raise InputError(f"a stream has taken 0 steps or more, got {steps_taken=}")
        self.net._check(state, self.spec)
        self._state = self._owned(state)
        self.steps_taken = steps_taken

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the stream's state and position to a file, atomically.

        A process that resumes from the file continues where this stream is now, bit for bit. An
        interrupted save leaves an existing file unchanged.

        Args:
          path: the file; an existing one is replaced.
        """
        StateFile.of(self.net, self.variables, self.spec, self.steps_taken, self._state).write(path)

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], net: CoModule, variables: Mapping[str, Any]
    ) -> "Stream":
        """Resumes the stream that was saved to a file.

        Args:
          path: the file.
          net: the same network.
          variables: the same variables.

        Raises:
          StateFileError: if the file cannot be read, is damaged, or was saved by a stream of
            another network or other variables. Functions, as of ``Lambda``, are compared by name.
        """
        saved = StateFile.read(path)
        saved.require_same(net, variables, path)
        try:
            stream = cls(net, variables, saved.spec)
            stream.restore(saved.state, saved.step)
        except InputError as error:
            raise StateFileError(f"{path} does not fit the network: {error}") from error
        return stream

    def _apply_step(self, state: State, passed: Any, x_t: Any) -> Any:
        variables = self._constant if passed is None else passed
        skip = self._timing.stride > 1
        return self.net.apply(variables, state, x_t, skip=skip, method="forward_step")

    def _apply_steps(self, state: State, passed: Any, xs: Any, pad_end: bool) -> Any:
        variables = self._constant if passed is None else passed
        return self.net.apply(variables, state, xs, pad_end, at_once=True, method="forward_steps")

    def _owned(self, state: State) -> State:
        """A copy that may be donated, always placed alike so that the step does not recompile."""
        owned = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
        return owned if self._device is None else jax.device_put(owned, self._device)

    def _check(self, x: Any) -> None:
        """Checks that a step, or its spec, is of the kind that the stream takes."""
        one = isinstance(self.spec, Spec) and hasattr(x, "dtype")
        if one and x.shape == self.spec.shape and x.dtype == self.spec.dtype:
            return
        if any(isinstance(each, Frame) for each in flat_streams(x)):
            raise InputError("a Stream takes arrays, each a step; leave out what is not valid")
        given, wanted = (
            [(s.shape, s.dtype) for s in flat_streams(map_streams(spec_of, each))]
            for each in (x, self.spec)
        )
        if given != wanted:
            raise InputError(
                f"this stream takes steps of {_listed(wanted)}, got {_listed(given)}; reshape or "
                "cast them, or open a stream of their own"
            )


def _step_of(clip: Any) -> Any:
    return clip if isinstance(clip, Frame) else without_time(spec_of(clip))


def _value(frame: Frame) -> Array:
    return frame.value


def _listed(specs: list[Any]) -> str:
    return " and ".join(f"{jnp.dtype(dtype).name}{list(shape)}" for shape, dtype in specs)


def _committed_to(variables: Mapping[str, Any]) -> Any:
    """The sharding that the variables are committed to, if any."""
    for leaf in jax.tree.leaves(variables):
        if isinstance(leaf, jax.Array) and leaf.committed and len(leaf.devices()) == 1:
            return leaf.sharding
    return None
