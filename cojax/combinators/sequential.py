"""Modules that run one after another."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import Array

from cojax.combinators.parallel import Broadcast, Parallel
from cojax.container import Container, keep, key, named
from cojax.frames import Frame, Signal, Spec, State, map_streams, spec_of
from cojax.module import CoModule
from cojax.timing import Timing, in_sequence


class Sequential(Container):
    """Runs modules one after another.

    The modules are given as ``Sequential(a, b)``, as ``Sequential([a, b])`` or, with names, as
    ``Sequential({"first": a, "second": b})``. A :class:`Broadcast` without a number of streams
    takes that of the :class:`Parallel` that follows it.

    In a step with ``skip=True``, the modules after one with a temporal stride run only if that one
    has emitted an output.

    Source: ``torch.nn.Sequential``, ``continual.Sequential``.

    Example::

        net = co.Sequential({"conv": co.Conv1d(2, 4, kernel_size=3), "pool": co.AvgPool1d(2)})
        assert net.timing == co.Timing(receptive_field=4, stride=2, delay=3)

        variables = net.init(jax.random.key(0), method="declare")
        assert variables["params"]["layers_conv"]["kernel"].shape == (3, 2, 4)
        assert net.apply(variables, jnp.ones((1, 2, 6))).shape == (1, 4, 2)

    Shapes:
      the input of the first module to the output of the last.

    Raises:
      TypeError: at construction, for anything that is not a CoModule.
    """

    def __init__(
        self,
        *modules: CoModule | list[CoModule] | Mapping[str, CoModule],
        layers: Mapping[str, CoModule] | None = None,
        order: tuple[str, ...] | None = None,
        **linen: Any,
    ):
        fields = named(modules, layers, order)
        run, names = dict(fields["layers"]), fields["order"]
        for name, following in itertools.pairwise(names):
            module, behind = run[name], run[following]
            unknown = isinstance(module, Broadcast) and module.num_streams is None
            if unknown and isinstance(behind, Parallel):
                run[name] = Broadcast(len(behind.order))
        self._construct(layers=FrozenDict(run), order=names, **linen)

    @property
    def timing(self) -> Timing:
        return in_sequence([child.timing for child in self.children().values()])

    @nn.nowrap
    def append(self, module: CoModule) -> "Sequential":
        """Returns a new network with the module after the others, named by its position."""
        return Sequential({**self.children(), str(len(self.order)): module})

    def output_spec(self, x: Any) -> Any:
        for name in self.order:
            x = self.child_spec(name, x)
        return x

    def clip(self, x: Any, train: bool = False) -> Any:
        for name in self.order:
            x = self.child_clip(name, x, train)
        return x

    def fresh_state(self, x: Any) -> State:
        states = {}
        for name in self.order:
            states[name] = self.child_state(name, x)
            x = self.child_spec(name, x)
        return keep(states)

    @nn.nowrap
    def flow_through(self, state: State, flow: Any, train: bool) -> tuple[Any, State]:
        return self._run(self.order, state, flow, train)

    @nn.nowrap
    def _run(
        self, names: tuple[str, ...], state: State, flow: Any, train: bool
    ) -> tuple[Any, State]:
        states: dict[str, State] = {}
        for number, name in enumerate(names, 1):
            child, behind = self.layers[name], names[number:]
            flow, states[name] = self.child_step(name, state, flow, train)
            if behind and child.timing.stride > 1 and _may_skip(flow):
                flow, after = self._run_if_valid(behind, state, flow, train)
                return flow, {**keep(states), **after}
        return flow, keep(states)

    @nn.nowrap
    def _run_if_valid(
        self, names: tuple[str, ...], state: State, signal: Signal, train: bool
    ) -> tuple[Any, State]:
        """Runs these modules if the signal is valid, and leaves the state as it is if it is not."""
        declared_output: Any = spec_of(signal)
        for name in names:
            declared_output = self.layers[name].output_spec(declared_output)
        before = {key(name): state[key(name)] for name in names if key(name) in state}

        def run(module: Sequential, value: Array, before: State) -> tuple[Any, State]:
            # A signal that is known to be valid needs no mask.
            valid = dataclasses.replace(signal, value=value, valid=True)
            output, after = module._run(names, before, valid, train)
            _require_specs(map_streams(spec_of, output), declared_output)
            return map_streams(lambda s: Frame(s.value, jnp.asarray(s.valid)), output), after

        def rest(module: Sequential, value: Array, before: State) -> tuple[Any, State]:
            return map_streams(lambda spec: _nothing(spec, value), declared_output), before

        frames, after = nn.cond(signal.valid, run, rest, self, signal.value, before)

        def flows(frame: Frame) -> Signal:
            return dataclasses.replace(signal, value=frame.value, valid=frame.valid, tidy=False)

        return map_streams(flows, frames), after


def _may_skip(flow: Any) -> bool:
    # Several streams might be valid at different steps.
    return isinstance(flow, Signal) and flow.skip and flow.always_real and flow.valid is not True


def _nothing(spec: Spec, like: Array) -> Frame:
    value = jax.lax.full_like(like, 0, spec.dtype, shape=spec.shape)
    return Frame(value, jnp.zeros((), jnp.bool_))


def _require_specs(given: Any, declared: Any) -> None:
    if given != declared:
        raise TypeError(
            f"modules after a stride output steps of {given}, but their output_spec declares "
            f"{declared}"
        )
