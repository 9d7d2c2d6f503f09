"""The call mode: which method a call of a network runs."""

from contextlib import AbstractContextManager

import jax

MODES = ("forward", "forward_step", "forward_steps", "forward_stream")

# Part of the key of JAX's caches of compiled functions: a function that was traced in one mode is
# traced again in another.
_context = jax.make_user_context(None)


def call_mode(mode: str) -> AbstractContextManager[None]:
    """Context in which ``net.apply(variables, ...)`` runs in ``mode``, whatever the network's own.

    The mode is part of the key of JAX's caches: a function compiled outside the context is not
    reused inside it, nor vice versa.

    Example::

        net = co.Conv1d(2, 3, kernel_size=3)
        variables = net.init(jax.random.key(0), jnp.zeros((1, 2, 8)))
        state = net.init_state((1, 2))
        with co.call_mode("forward_step"):
            frame, state = net.apply(variables, state, jnp.zeros((1, 2)))

    Source: ``continual.call_mode``.

    Args:
      mode: "forward", "forward_step", "forward_steps" or "forward_stream".

    Raises:
      ValueError: for any other mode.
    """
    return _context(require_mode(mode))


def require_mode(mode: str) -> str:
    """Returns the mode, or raises a ValueError if there is no such mode."""
    if mode not in MODES:
        raise ValueError(f"a call mode is one of {', '.join(map(repr, MODES))}, got {mode!r}")
    return mode


def current(own: str) -> str:
    """Returns the mode set by the context or, outside of any, the network's own."""
    return _context.value or own
