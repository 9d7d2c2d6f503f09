"""How many multiply-accumulates (MACs) a network needs: for a step, a stream or a clip."""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from cojax.analysis.macs import Macs, macs_of
from cojax.analysis.observe import Call, observe_clip, observe_step
from cojax.analysis.table import listed, number, table
from cojax.frames import flat_streams, length_of, map_streams, step_spec, without_time
from cojax.layers.arguments import one_of
from cojax.module import CoModule
from cojax.timing import Timing


@dataclasses.dataclass(frozen=True)
class LayerFlops:
    """What one module costs, apart from those within it.

    Attributes:
      path: its torch path.
      kind: the name of its type.
      each: the MACs of one output: of a frame, or in ``forward`` of all it makes of the clip. None
        if the type is unknown; see :func:`cojax.analysis.register_macs`.
      times: how many such outputs it makes: in ``forward_step`` for an input step, on average
        (1/2 behind a stride of 2), else in all.
    """

    path: tuple[str, ...]
    kind: str
    each: Macs | None
    times: Fraction

    @property
    def macs(self) -> Macs:
        """The MACs of all its outputs; none, where the type is unknown."""
        return (self.each or Macs()) * self.times


@dataclasses.dataclass(frozen=True, repr=False)
class Flops:
    """What a network costs, in multiply-accumulates. Printed, a table of the layers that cost any.

    Attributes:
      mode: the mode of the network.
      layers: the modules that run, each before those within it.
      inputs: the input steps that the figures are of: 1 in ``forward_step``.
      outputs: the outputs for these, on average.
      cycle: in ``forward_step``, the MACs of one step after another until they repeat, from a step
        with an output on. Without strides a single number; in the other modes none.
    """

    mode: str
    layers: tuple[LayerFlops, ...]
    inputs: int
    outputs: Fraction
    cycle: tuple[int | Fraction, ...] = ()

    @property
    def macs(self) -> Macs:
        """The MACs of all layers, by kind: in ``forward_step`` for a step, on average."""
        return sum((layer.macs for layer in self.layers), Macs())

    @property
    def total(self) -> Fraction:
        """The MACs of all layers: in ``forward_step`` for a step, on average."""
        return Fraction(self.macs.total)

    @property
    def per_input(self) -> Fraction:
        """The MACs for an input step, on average."""
        return self.total / self.inputs

    @property
    def per_output(self) -> Fraction | None:
        """The MACs for an output, on average. None if there are no outputs."""
        return self.total / self.outputs if self.outputs else None

    @property
    def not_counted(self) -> tuple[LayerFlops, ...]:
        """The layers whose own cost is unknown, and taken to be none."""
        return tuple(layer for layer in self.layers if layer.each is None)

    def __str__(self) -> str:
        macs = self.macs
        kinds = ("linear", "matmul")[: 2 if macs.matmul else 1]
        rows = [
            (
                ".".join(layer.path),
                layer.kind,
                number(layer.each.total) if layer.each else "?",
                str(layer.times),
                *(number(getattr(layer.macs, kind)) for kind in kinds),
            )
            for layer in self.layers
            if layer.each is None or layer.each.total
        ]
        header = ("layer", "type", "an output", "outputs", *(f"{kind} MACs" for kind in kinds))
        foot = ("total", "", "", "", *(number(getattr(macs, kind)) for kind in kinds))
        span = "for an input step" if self.mode == "forward_step" else f"for {self.inputs} steps"
        lines = [f"Multiply-accumulates (MACs) of {self.mode}, {span}", ""]
        lines += [table(header, rows, foot)]
        if self.per_output is not None and self.outputs != self.inputs:
            lines += [f"an output: {number(self.per_output)} MACs"]
        if len(self.cycle) > 1:
            lines += [f"step after step: {', '.join(map(number, self.cycle))} MACs"]
        if self.not_counted:
            lines += [f"not counted: {listed(self.not_counted)}"]
        return "\n".join(lines)

    __repr__ = __str__


def flops(net: CoModule, x: Any, mode: str = "forward_step") -> Flops:
    """Counts the multiply-accumulates (MACs) that a network needs: exactly, layer by layer.

    They follow from the shapes and fields of its layers. Nothing is computed or compiled, no
    variables are needed, and it does not matter how an operation is lowered, and on which device.
    What counts is said in :mod:`cojax.analysis.macs`. Behind a temporal stride of 2 a layer is
    needed every second step, so means over steps are fractions. Where a traced predicate chooses
    between two branches, both are counted. Batch rows count each.

    Args:
      net: the network.
      x: a step in ``forward_step``, else a clip: an array, a ``jax.ShapeDtypeStruct``, or a shape
        (tuples of arrays or specs for several streams).
      mode: "forward_step": one step, in the steady state, on average. "forward": the whole clip.
        "forward_steps": the clip as a fresh stream, of which layers that are still warming up make
        no outputs. "forward_stream": the same, flushed.

    Returns:
      The :class:`Flops`.

    Raises:
      ValueError: for another mode.
      InputError: if the step or the clip does not fit the network.

    Example::

        net = co.Sequential(co.Conv1d(6, 16, 3, stride=2), co.Conv1d(16, 4, 3))
        macs = co.flops(net, (1, 6))
        assert macs.per_input == (6 * 16 * 3 + 16 * 4 * 3) / 2
        assert macs.cycle == (6 * 16 * 3 + 16 * 4 * 3, 0)
    """
    one_of("mode", mode, ("forward", "forward_step", "forward_steps", "forward_stream"))
    spec, timing = step_spec(x), net.timing
    if mode == "forward_step":
        root = observe_step(net, spec)
        layers = _layers(root, lambda call: Fraction(1, call.after.stride))
        return Flops(mode, layers, 1, Fraction(1, timing.stride), _cycle(root))
    steps = length_of(spec)
    if mode == "forward":
        root = observe_clip(net, spec)
        outputs = flat_streams(root.y)[0].shape[2]
        return Flops(mode, _layers(root, lambda call: Fraction(1)), steps, Fraction(outputs))
    root = observe_step(net, map_streams(without_time, spec))
    stop = steps + timing.end if mode == "forward_stream" else steps

    def leaving(timing: Timing) -> Fraction:
        outputs = timing.outputs(steps)
        return Fraction(len(range(outputs.start, min(outputs.stop, stop), outputs.step)))

    return Flops(mode, _layers(root, lambda call: leaving(call.after)), steps, leaving(timing))


def _layers(root: Call, times: Callable[[Call], Fraction]) -> tuple[LayerFlops, ...]:
    return tuple(
        LayerFlops(call.path, call.kind, macs_of(call), times(call))
        for call in root.walk()
        if call.ran
    )


def _cycle(root: Call) -> tuple[int | Fraction, ...]:
    """The MACs of one step after another in the steady state, from one with an output on."""
    calls = [(call.after, macs) for call in root.walk() if call.ran and (macs := macs_of(call))]
    return tuple(
        sum(
            macs.total
            for timing, macs in calls
            if (root.after.delay + step - timing.delay) % timing.stride == 0
        )
        for step in range(math.lcm(*(timing.stride for timing, _ in calls)))
    )
