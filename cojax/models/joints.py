"""The base class of layers that mix the joints of skeletons."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
from flax.core import FrozenDict
from jax import Array, lax

from cojax.checks import require_step
from cojax.chunks import Chunk
from cojax.container import Parent
from cojax.errors import InputError
from cojax.frames import Signal, Spec, State, map_streams
from cojax.layout import as_clip, as_step, channels_last, channels_second
from cojax.models.graph import Graph
from cojax.module import CoModule

Run = Callable[[str, Any], Any]


class JointUnit(Parent):
    """Mixes the joints of each person, frame by frame, using modules without memory.

    Subclasses define these modules (``names``, ``modules``) and write their mathematics once, in
    ``compute``, for clips. A step computes a clip of one step, in which the modules within run
    their own steps, so that a batch norm takes no statistics of an invalid frame.

    Attributes:
      in_channels, out_channels: the channels of the input and of the output.
      graph: the skeleton.
      layers: the modules within, by name; made by the constructor.

    Shapes:
      clip ``(B, in_channels, T, persons * joints)`` to ``(B, out_channels, T, persons * joints)``,
      with the joints of each person before those of the next; step the same without ``T``.

    Raises:
      InputError: for an input of another rank, channel count or number of joints, or of a dtype
        that is not floating.
    """

    names: ClassVar[tuple[str, ...]]

    in_channels: int
    out_channels: int
    graph: Graph
    layers: Mapping[str, CoModule] = FrozenDict()

    def __post_init__(self) -> None:
        if not self.layers:  # Otherwise Flax is rebuilding the unit.
            self.layers = FrozenDict(self.modules())
        super().__post_init__()

    @nn.nowrap
    def modules(self) -> dict[str, CoModule]:
        """The modules within, by name."""
        raise NotImplementedError

    def compute(self, x: Array, run: Run, train: bool) -> Array:
        """The output for a clip, where ``run(name, x)`` runs the module of this name."""
        raise NotImplementedError

    def children(self) -> Mapping[str, CoModule]:
        return {name: self.layers[name] for name in self.names if name in self.layers}

    def output_spec(self, x: Spec) -> Spec:
        require_step(x, self, 1, self.in_channels)
        if x.shape[2] % self.graph.joints:
            raise InputError(
                f"{type(self).__name__} mixes the {self.graph.joints} joints of each person, got "
                f"{x.shape[2]} in a step of shape {x.shape}"
            )
        return Spec((x.shape[0], self.out_channels, x.shape[2]), x.dtype)

    def clip(self, x: Array, train: bool = False) -> Array:
        return self.compute(x, lambda name, x: self.child_clip(name, x, train), train)

    def step(self, state: State, signal: Signal, train: bool = False) -> tuple[Signal, State]:
        def run(name: str, x: Any) -> Any:
            signals = map_streams(lambda clip: signal.becomes(as_step(clip)), x)
            stepped, _ = self.child_step(name, {}, signals, train)
            return map_streams(lambda each: as_clip(each.value), stepped)

        y = self.compute(as_clip(signal.clean()), run, train)
        return signal.becomes(as_step(y)), state

    def chunk(self, state: State, chunk: Chunk) -> tuple[Chunk, State]:
        return chunk.becomes(self.clip(chunk.clean())), state

    @nn.nowrap
    def by_person(self, x: Array) -> Array:
        """``(B, C, T, persons * joints)`` as ``(B, T, persons, joints, C)``."""
        x = channels_last(x)
        persons = x.shape[2] // self.graph.joints
        return x.reshape(*x.shape[:2], persons, self.graph.joints, x.shape[-1])


def side_by_side(x: Array) -> Array:
    """``(B, T, persons, joints, C)`` as ``(B, C, T, persons * joints)``."""
    return channels_second(lax.collapse(x, 2, 4))
