"""Counts the multiply-accumulates (MACs) of a network: for a step, a stream or a clip."""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from cojax.analysis.macs import Macs, macs_of
from cojax.analysis.observe import Call, observe_clip, observe_step
from cojax.analysis.table import listed, number, table
from cojax.frames import flat_streams, length_of, map_streams, step_spec, without_time
from cojax.layers.arguments import require_one_of
from cojax.module import CoModule
from cojax.timing import Timing


@dataclasses.dataclass(frozen=True)
class LayerFlops:
    """The cost of one module, without the modules within it.

    Attributes:
      path: its torch path.
      kind: the name of its type.
      each: the MACs of one output: of a frame or, in ``forward``, of the output for the whole clip.
        None if the type is unknown; see :func:`cojax.analysis.register_macs`.
      times: the number of such outputs: in ``forward_step``, the average per input step (1/2 after
        a stride of 2), otherwise the total.
    """

    path: tuple[str, ...]
    kind: str
    each: Macs | None
    times: Fraction

    @property
    def macs(self) -> Macs:
        """The MACs of all its outputs; zero if the type is unknown."""
        return (self.each or Macs()) * self.times


@dataclasses.dataclass(frozen=True, repr=False)
class Flops:
    """The cost of a network in multiply-accumulates, printed as a table of the layers with a cost.

    Attributes:
      mode: the mode of the network.
      layers: the modules that run, each before those within it.
      inputs: the number of input steps that the figures are for: 1 in ``forward_step``.
      outputs: the average number of outputs for these input steps.
      cycle: in ``forward_step``, the MACs of successive steps until they repeat, beginning with a
        step that emits an output. A single number without strides; empty in the other modes.
    """

    mode: str
    layers: tuple[LayerFlops, ...]
    inputs: int
    outputs: Fraction
    cycle: tuple[int | Fraction, ...] = ()

    @property
    def macs(self) -> Macs:
        """The MACs of all layers, by kind; in ``forward_step``, the average per step."""
        return sum((layer.macs for layer in self.layers), Macs())

    @property
    def total(self) -> Fraction:
        """The MACs of all layers; in ``forward_step``, the average per step."""
        return Fraction(self.macs.total)

    @property
    def per_input(self) -> Fraction:
        """The average MACs per input step."""
        return self.total / self.inputs

    @property
    def per_output(self) -> Fraction | None:
        """The average MACs per output. None if there are no outputs."""
        return self.total / self.outputs if self.outputs else None

    @property
    def not_counted(self) -> tuple[LayerFlops, ...]:
        """The layers whose own cost is unknown and counted as zero."""
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
    """Counts the multiply-accumulates (MACs) that a network needs, exactly and layer by layer.

    The counts follow from the shapes and fields of the layers. Nothing is computed or compiled, no
    variables are needed, and it does not matter how an operation is lowered, or for which device.
    What is counted is described in :mod:`cojax.analysis.macs`. After a temporal stride of 2, a
    layer is needed only every second step, so averages over steps can be fractions. Where a traced
    predicate chooses between two branches, both are counted. Every row of the batch is counted.

    Args:
      net: the network.
      x: a step for "forward_step", otherwise a clip: an array, a ``jax.ShapeDtypeStruct``, or a
        shape (tuples of arrays or specs for several streams).
      mode: "forward_step": one step in the steady state, on average. "forward": the whole clip.
        "forward_steps": the clip as a fresh stream, in which layers that are still warming up emit
        nothing. "forward_stream": the same, including the flush.

    Returns:
      The :class:`Flops`.

    Raises:
      ValueError: for any other mode.
      InputError: if the step or the clip does not fit the network.

    Example::

        net = co.Sequential(co.Conv1d(6, 16, 3, stride=2), co.Conv1d(16, 4, 3))
        macs = co.flops(net, (1, 6))
        assert macs.per_input == (6 * 16 * 3 + 16 * 4 * 3) / 2
        assert macs.cycle == (6 * 16 * 3 + 16 * 4 * 3, 0)
    """
    require_one_of("mode", mode, ("forward", "forward_step", "forward_steps", "forward_stream"))
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
    """The MACs of successive steps in the steady state, from one that emits an output on."""
    calls = [(call.after, macs) for call in root.walk() if call.ran and (macs := macs_of(call))]
    return tuple(
        sum(
            macs.total
            for timing, macs in calls
            if (root.after.delay + step - timing.delay) % timing.stride == 0
        )
        for step in range(math.lcm(*(timing.stride for timing, _ in calls)))
    )
