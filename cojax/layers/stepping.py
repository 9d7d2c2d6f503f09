"""Wrappers that run functions and Flax modules on streams, if they are local in time."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cojax.errors import InputError
from cojax.frames import Signal, Spec, State
from cojax.layers.closure import Lambda, local_spec
from cojax.module import CoModule, TimeLocal

# The names that Flax modules give to the choice between training and inference, and the value that
# means training.
_SAYS_TRAINING = {
    "train": True,
    "training": True,
    "deterministic": False,
    "use_running_average": False,
}


def forward_stepping(
    module: nn.Module | Callable[[Array], Array], channels_last: bool = False
) -> CoModule:
    """Converts a function or a Flax module that is local in time to a module that steps.

    The function or module is called with clips ``(B, C, T, *S)``, of length 1 while stepping. Each
    output step may depend only on its own input step. It is checked that the length of a clip is
    kept, but not that steps are kept apart: a convolution padded to "SAME" would mix them.

    A Flax module whose ``__call__`` has a parameter ``train`` or ``training`` receives ``train``,
    and one with ``deterministic`` or ``use_running_average`` receives its negation. Its variables
    keep their own names: ``net.apply`` accepts those that ``module.init`` returned. Their shapes
    depend on the input, so ``method="declare"`` cannot create them; ``net.init(key, clip)`` can.
    Its output is cast to the dtype of the clip, like that of every layer.

    Source: ``continual.forward_stepping``.

    Example::

        class Gate(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                x = x * nn.sigmoid(nn.Dense(x.shape[-1])(x))
                return nn.Dropout(0.5, deterministic=not train)(x)

        gate = co.forward_stepping(Gate(), channels_last=True)
        net = co.Sequential(co.Conv1d(6, 16, kernel_size=3), gate)
        variables = net.init(jax.random.key(0), jnp.ones((1, 6, 10)))
        assert net.apply(variables, jnp.ones((1, 6, 10))).shape == (1, 16, 8)

    Args:
      module: the function of one array, or the Flax module.
      channels_last: whether it takes and returns clips ``(B, T, *S, C)`` instead, as most Flax
        modules do.

    Returns:
      The module that steps; a CoModule is returned unchanged.

    Raises:
      TypeError: for a torch module, or an object that is not callable.
    """
    if isinstance(module, CoModule):
        return module
    if any(base.__module__.startswith("torch.") for base in type(module).__mro__):
        raise TypeError(
            f"forward_stepping takes JAX functions and Flax modules; a torch module such as "
            f"{type(module).__name__} is converted with co.continual(module)"
        )
    if isinstance(module, nn.Module):
        return ForwardStepping(module, channels_last)
    if not callable(module):
        raise TypeError(f"forward_stepping takes a function or a Flax module, got {module!r}")
    return Lambda(_moved(module) if channels_last else module, takes_time=True)


class ForwardStepping(TimeLocal):
    """A Flax module that steps, created by :func:`forward_stepping`.

    Attributes:
      module: the Flax module.
      channels_last: whether it takes and returns clips ``(B, T, *S, C)``.

    Shapes:
      any that the module takes, with the length of time kept.

    Raises:
      InputError: if the module fails on its input or changes the length of a clip; for a step in
        training of a module that tracks statistics.
      TypeError: from ``declare``, since the shapes of the variables depend on the input.
    """

    declares = False

    module: nn.Module
    channels_last: bool = False

    def declare(self) -> None:
        where = f"in {'/'.join(self.path)}: " if self.path else ""
        raise TypeError(
            f"{where}the shapes of {type(self.module).__name__}'s variables depend on its input; "
            "initialise the network with a clip: net.init(key, clip)"
        )

    def output_spec(self, x: Spec) -> Spec:
        alone = self.module.clone(parent=None)
        key = jax.random.key(0)

        def initialised(clip: Array) -> Array:
            y, _ = alone.init_with_output(key, clip, **self._told(train=False))
            return y

        return local_spec(lambda clip: self._run(initialised, clip), x, type(self.module).__name__)

    def clip(self, x: Array, train: bool = False) -> Array:
        assert self.scope is not None  # Flax calls bound modules only.
        # Not as a child, but in place of this module, and cloned anew in every call.
        module = self.module.clone(parent=self.scope.rewound())
        return self._run(lambda clip: module(clip, **self._told(train)), x)

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        if train and any(map(self.is_mutable_collection, self.variables.keys() - {"params"})):
            raise InputError(
                f"{type(self.module).__name__} would track statistics of frames that are invalid, "
                "or past the end of the stream; train it on clips, through forward"
            )
        return super().step(state, signal, train=train)

    chunk = TimeLocal.chunk

    @nn.nowrap
    def _told(self, train: bool) -> dict[str, Any]:
        """Returns the keyword arguments that tell the module whether it is being trained."""
        parameters = inspect.signature(type(self.module).__call__).parameters
        return {
            name: bool(train) == says_training
            for name, says_training in _SAYS_TRAINING.items()
            if name in parameters
        }

    @nn.nowrap
    def _run(self, call: Callable[[Array], Any], x: Array) -> Any:
        """Returns the output of ``call``, with the axis order and the dtype of the clip."""
        y = _moved(call)(x) if self.channels_last else call(x)
        both = isinstance(y, jax.Array) and all(
            jnp.issubdtype(a.dtype, jnp.floating) for a in (x, y)
        )
        return y.astype(x.dtype) if both else y


def _moved(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Adapts a function of clips ``(B, T, *S, C)`` to clips ``(B, C, T, *S)``."""

    @functools.wraps(function)
    def moved(x: Array) -> Any:
        y = function(jnp.moveaxis(x, 1, -1))
        return jnp.moveaxis(y, -1, 1) if isinstance(y, jax.Array) else y

    return moved
