"""The bases of modules that hold other modules."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

from cojax.errors import located
from cojax.frames import State
from cojax.module import CoModule, advance


class Parent(CoModule):
    """Runs its children by name; an InputError says in which child it was raised.

    Subclasses hold the children in a field ``layers``. A child's variables and state are stored
    under ``layers_<name>``, where ``<name>`` is its part of the torch path: torch ``0.conv.weight``
    is ``layers_0/layers_conv/kernel``.
    """

    @nn.nowrap
    def child_spec(self, name: str, x: Any) -> Any:
        """Returns the spec of the child's output, for an input of spec ``x``."""
        with located(key(name)):
            return self.children()[name].output_spec(x)

    @nn.nowrap
    def child_state(self, name: str, x: Any) -> State:
        """Returns the child's state before its first step, for steps of spec ``x``."""
        with located(key(name)):
            return self.children()[name].fresh_state(x)

    @nn.nowrap
    def child_clip(self, name: str, x: Any, train: bool) -> Any:
        """Returns the child's output for a clip."""
        with located(key(name)):
            return self.children()[name].clip(x, train=train)

    @nn.nowrap
    def child_step(self, name: str, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        """Advances the child by a step or a chunk, from its part of the parent's state."""
        with located(key(name)):
            return advance(self.children()[name], state.get(key(name), {}), flow, train)


class Container(Parent):
    """Holds modules by name, in a fixed order.

    Attributes:
      layers: the modules by name.
      order: their names in the order they run. (Flax's lifted transforms sort the keys of
        ``layers``.)
    """

    layers: Mapping[str, CoModule]
    order: tuple[str, ...]

    def children(self) -> Mapping[str, CoModule]:
        return {name: self.layers[name] for name in self.order}

    @nn.nowrap
    def flow_through(self, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        """Advances the children by signals or by chunks, which they are composed alike for."""
        raise NotImplementedError

    def step(self, state: State, signal: Any, train: bool = False) -> tuple[Any, State]:
        return self.flow_through(state, signal, train)

    def chunk(self, state: State, chunk: Any) -> tuple[Any, State]:
        return self.flow_through(state, chunk, train=False)


def named(
    modules: Sequence[Any], layers: Mapping[str, Any] | None, order: Sequence[str] | None
) -> dict[str, Any]:
    """Returns the fields of a :class:`Container`, given the arguments of its constructor.

    Modules are given one by one, as a list, or as a mapping by name (``modules``); Flax passes the
    fields themselves (``layers``, ``order``).

    Raises:
      TypeError: for anything that is not a CoModule.
      ValueError: for a name that cannot be part of a path.
    """
    if layers is None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            layers = dict(modules[0])
        else:
            if len(modules) == 1 and isinstance(modules[0], list | tuple):
                (modules,) = modules
            layers = {str(i): module for i, module in enumerate(modules)}
    for name, module in layers.items():
        if not isinstance(module, CoModule):
            if isinstance(module, nn.Module):
                hint = "wrap a Flax module in co.forward_stepping, or convert it with co.continual"
            else:
                hint = "wrap a function in co.Lambda" if callable(module) else "see cojax.layers"
            raise TypeError(
                f"module {name!r} must be a CoModule, got {type(module).__name__}; {hint}"
            )
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise ValueError(f"a module's name is part of a path: no '.' or '/', got {name!r}")
    # Frozen, so that a network can be hashed and be a static argument of jit.
    return {"layers": FrozenDict(layers), "order": tuple(layers if order is None else order)}


def key(name: str) -> str:
    """Returns the key of a child's variables and state."""
    return f"layers_{name}"


def keep(states: Mapping[str, State], late: State | None = None) -> State:
    """Returns a container's state: its children's by key, and the delay lines that align them.

    Children without state have no entry.
    """
    kept = {key(name): state for name, state in states.items() if state}
    return {**kept, "late": late} if late else kept
