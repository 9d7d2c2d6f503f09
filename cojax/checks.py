"""Checks of the inputs, states and flags that modules are given."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cojax.errors import InputError
from cojax.frames import Frame, Spec, State, flat_streams


def require_floating(x: Spec, module: Any) -> None:
    """Raises an InputError unless the dtype is a floating-point one."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"{type(module).__name__} computes in the dtype of its input, which must be a floating "
            f"one, got {x.dtype}; cast the frames, e.g. x.astype('float32')"
        )


def require_step(x: Any, module: Any, space: int, channels: int | None = None) -> None:
    """Raises an InputError unless ``x`` is a floating-point step with these axes."""
    axes = ", ".join(["batch", "channel", "height", "width"][: 2 + space])
    if space == 1:
        axes = "batch, channel, space"
    if isinstance(x, tuple):
        raise InputError(
            f"{type(module).__name__} takes one stream, got {len(x)}; Reduce them first"
        )
    if len(x.shape) != 2 + space:
        clip_axes = axes.replace("channel", "channel, time")
        raise InputError(
            f"{type(module).__name__} expects steps ({axes}) and clips ({clip_axes}), "
            f"got a step of shape {x.shape}"
        )
    if channels is not None and x.shape[1] != channels:
        raise InputError(
            f"{type(module).__name__} expects {channels} channels, got {x.shape[1]} "
            f"in a step of shape {x.shape}"
        )
    require_floating(x, module)


def require_clips(method: str, x: Any) -> None:
    """Raises an InputError for Frames, where a clip is expected."""
    if any(isinstance(clip, Frame) for clip in flat_streams(x)):
        raise InputError(f"{method} takes clips; Frames are for forward_step and forward_steps")


def require_state(state: Any) -> None:
    """Raises an InputError for anything but a state, such as a frame passed in its place."""
    if not isinstance(state, Mapping):
        raise InputError(
            f"a step is given the state, a dict from init_state, and then the frame; got "
            f"{type(state).__name__} for a state"
        )


def require_static(**flags: Any) -> None:
    """Raises an InputError for a flag that is not a bool known while tracing."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise InputError(f"{name} must be a bool, known while tracing, got {flag!r}")


def misfits(expected: State, given: State) -> list[str]:
    """Returns how a state differs from the expected one: a line for each leaf that does."""
    wanted, found = _leaves(expected), _leaves(given)
    return [
        *(f"{path}: missing, expected {wanted[path]}" for path in sorted(wanted.keys() - found)),
        *(f"{path}: unexpected, {found[path]}" for path in sorted(found.keys() - wanted)),
        *(
            f"{path}: {found[path]}, expected {leaf}"
            for path, leaf in wanted.items()
            if path in found and found[path] != leaf
        ),
    ]


def _leaves(state: State) -> dict[str, str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _described(leaf)
        for path, leaf in paths
    }


def _described(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        return f"a Python {type(leaf).__name__}"
    return f"{leaf.dtype.name}{list(leaf.shape)}"
