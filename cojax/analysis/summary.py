"""Summarises a network: shapes, sizes, costs and timing, layer by layer."""

import collections
import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import jax

from cojax.analysis.macs import Macs, macs_of
from cojax.analysis.observe import Call, observe_step
from cojax.analysis.table import listed, number, table
from cojax.frames import flat_streams, step_spec
from cojax.module import CoModule, declared
from cojax.timing import Timing


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One module without those within it or, at the deepest level of the table, with them.

    Attributes:
      path: its torch path.
      kind: the name of its type.
      output: the spec of a step's output. None for a module that does not run: the branch that a
        static :class:`cojax.Conditional` does not take.
      parameters: the number of its parameters.
      macs: its multiply-accumulates per input step of the network, on average.
      not_counted: whether there are further ones, of a type whose cost is unknown.
      state_bytes: the size of its state, in bytes.
      timing: when its outputs are emitted and what they see, in terms of the network's input.
    """

    path: tuple[str, ...]
    kind: str
    output: Any
    parameters: int
    macs: Macs
    not_counted: bool
    state_bytes: int
    timing: Timing

    def with_one_within(self, row: "SummaryRow") -> "SummaryRow":
        """The row of this module together with one within it."""
        return dataclasses.replace(
            self,
            parameters=self.parameters + row.parameters,
            macs=self.macs + row.macs,
            not_counted=self.not_counted or row.not_counted,
            state_bytes=self.state_bytes + row.state_bytes,
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """The modules of a network, with figures that add up to the network's, printed as a table.

    Attributes:
      input: the spec of the step.
      rows: the network and the modules within it, each before those within it.
    """

    input: Any
    rows: tuple[SummaryRow, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> Macs:
        """The multiply-accumulates per input step, on average."""
        return sum((row.macs for row in self.rows), Macs())

    @property
    def state_bytes(self) -> int:
        """The size of the state, in bytes."""
        return sum(row.state_bytes for row in self.rows)

    @property
    def not_counted(self) -> tuple[SummaryRow, ...]:
        """The modules whose multiply-accumulates are unknown, in whole or in part."""
        return tuple(row for row in self.rows if row.not_counted)

    def __str__(self) -> str:
        net = self.rows[0]
        kinds = ("linear", "matmul") if self.macs.matmul else ("linear",)

        def figures(of: Summary | SummaryRow) -> list[str]:
            macs = [getattr(of.macs, kind) for kind in kinds]
            cells = [number(n) if n else "" for n in (of.parameters, *macs, of.state_bytes)]
            if of.not_counted and of is not self:
                cells[1] += "?"
            return cells

        def cells(row: SummaryRow) -> list[str]:
            name = "  " * (len(row.path) - 1) + "".join(row.path[-1:])
            if row.output is None:
                return [name, row.kind, "does not run", *figures(row), "", "", ""]
            timing = (row.timing.delay, row.timing.receptive_field, row.timing.stride)
            return [name, row.kind, _shapes(row.output), *figures(row), *map(number, timing)]

        macs = ["MACs", "matmul MACs"][: len(kinds)]
        header = ["layer", "type", "output", "parameters", *macs, "state bytes"]
        lines = [
            f"{net.kind}: a step of {flat_streams(self.input)[0].dtype} {_shapes(self.input)}",
            "",
            table(
                [*header, "delay", "field", "stride"],
                [cells(row) for row in self.rows],
                ["total", "", "", *figures(self), "", "", ""],
            ),
        ]
        if net.timing.stride > 1:
            each = number(self.macs.total * net.timing.stride)
            lines += [f"MACs are for an input step, on average; an output costs {each}"]
        if self.not_counted:
            lines += [f"MACs not counted: {listed(self.not_counted)}"]
        return "\n".join(lines)

    __repr__ = __str__


def summary(net: CoModule, x_t: Any, depth: int | None = None) -> Summary:
    """Summarises the modules of a network, with the cost of a step and the size of the state.

    For each module, the summary gives the shape of its output, its parameters, its
    multiply-accumulates (MACs, as :func:`cojax.flops` counts them) and its state, as well as its
    delay, receptive field and stride, accumulated from the network's input. Nothing is computed or
    compiled, and no variables are needed. The figures are for the given batch size: a batch of 1
    gives those of a single stream.

    Args:
      net: the network.
      x_t: a step: an array, a ``jax.ShapeDtypeStruct``, or a shape (tuples of arrays or specs for
        several streams).
      depth: the number of levels in the table; a module at the deepest one includes all within it.

    Returns:
      The :class:`Summary`.

    Raises:
      InputError: if the step does not fit the network.

    Example::

        net = co.Sequential(co.Conv1d(6, 16, 3), co.ReLU(), co.Linear(16, 4, channel_dim=1))
        print(co.summary(net, (1, 6)))
    """
    spec = step_spec(x_t)
    root = observe_step(net, spec)
    parameters = _parameters(net, root)

    def row_of(call: Call) -> SummaryRow:
        macs = macs_of(call) if call.ran else Macs()
        return SummaryRow(
            path=call.path,
            kind=call.kind,
            output=call.y,
            # Parameters that modules share are attributed to the first of them.
            parameters=parameters.pop(call.place, 0),
            macs=(macs or Macs()) * Fraction(1, call.after.stride),
            not_counted=macs is None,
            state_bytes=_bytes(call.state) - sum(_bytes(inner.state) for inner in call.within),
            timing=call.after,
        )

    def rows_of(call: Call) -> list[SummaryRow]:
        row = row_of(call)
        within = [each for inner in call.within for each in rows_of(inner)]
        if depth is not None and len(call.path) >= depth:
            return [functools.reduce(SummaryRow.with_one_within, within, row)]
        return [row, *within]

    return Summary(spec, tuple(rows_of(root)))


def _parameters(net: CoModule, root: Call) -> collections.Counter[tuple[str, ...]]:
    """The number of parameters by module path: each belongs to the innermost module around it."""
    places = {call.place for call in root.walk()}
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    leaves, _ = jax.tree_util.tree_flatten_with_path(declared(net, root.x).get("params", {}))
    for path, leaf in leaves:
        place = tuple(part.key for part in path)
        while place not in places:
            place = place[:-1]
        counts[place] += math.prod(leaf.shape)
    return counts


def _bytes(specs: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(specs))


def _shapes(specs: Any) -> str:
    shapes = [str(spec.shape) for spec in flat_streams(specs)]
    if len(shapes) > 1 and len(set(shapes)) == 1:
        return f"{len(shapes)} of {shapes[0]}"
    return ", ".join(shapes)
