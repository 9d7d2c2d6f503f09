"""Modules one behind another."""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

from cojax.combinators.parallel import Broadcast, Parallel
from cojax.container import Container, keep, key, named
from cojax.errors import located
from cojax.frames import State
from cojax.module import CoModule, advance
from cojax.timing import Timing, in_sequence


class Sequential(Container):
    """Runs modules one behind another.

    ``Sequential(a, b)``, ``Sequential([a, b])`` or ``Sequential({"first": a, "second": b})``. A
    :class:`Broadcast` without a number of streams takes that of the :class:`Parallel` behind it.

    Source: ``torch.nn.Sequential``, ``continual.Sequential``.

    Example::

        net = co.Sequential({"conv": co.Conv1d(2, 4, kernel_size=3), "pool": co.AvgPool1d(2)})
        assert net.timing == co.Timing(receptive_field=4, stride=2, delay=3)

        variables = net.init(jax.random.key(0), method="declare")
        assert variables["params"]["layers_conv"]["kernel"].shape == (3, 2, 4)
        assert net.apply(variables, jnp.ones((1, 2, 6))).shape == (1, 4, 2)

    Shapes:
      what the first module takes to what the last one gives.

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
        """A new network with the module behind the others, named by its place."""
        return Sequential({**self.children(), str(len(self.order)): module})

    def output_spec(self, x: Any) -> Any:
        for name, child in self.children().items():
            with located(key(name)):
                x = child.output_spec(x)
        return x

    def clip(self, x: Any, train: bool = False) -> Any:
        for name, child in self.children().items():
            with located(key(name)):
                x = child.clip(x, train=train)
        return x

    def fresh_state(self, x: Any) -> State:
        states = {}
        for name, child in self.children().items():
            with located(key(name)):
                states[name] = child.fresh_state(x)
                x = child.output_spec(x)
        return keep(states)

    def step(self, state: State, signal: Any, train: bool = False) -> tuple[Any, State]:
        states = {}
        for name, child in self.children().items():
            with located(key(name)):
                signal, states[name] = advance(child, state.get(key(name), {}), signal, train)
        return signal, keep(states)
