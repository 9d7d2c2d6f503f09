"""Who answers when: what padding, delay and stride do to a stream."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from cojax.analysis.observe import Call, observe_step
from cojax.frames import step_spec
from cojax.module import CoModule
from cojax.timing import Timing

EMITTED, FLUSHED, WAITING, SKIPPED, PADDING, NOTHING = "■□·x○ "

LEGEND = {
    EMITTED: "output",
    FLUSHED: "output of the flush",
    WAITING: "warming up",
    SKIPPED: "skipped by a stride",
    PADDING: "padding",
}


@dataclasses.dataclass(frozen=True)
class TimelineRow:
    """One module that makes outputs of its own, or the network's input.

    Attributes:
      path: its torch path; empty for the input.
      kind: the name of its type; "input" for the input.
      timing: when its outputs leave, counted in input steps of the network.
      reads: the numbers of the rows that its outputs are made of.
      window: what an output sees of each of these, as a timing in their frames.
      marks: a character for each column: ``EMITTED``; ``FLUSHED``, an output that leaves after the
        last input step; ``WAITING``, during warm-up; ``SKIPPED``, by a stride, its own or one
        before; ``PADDING``, a frame that a module which reads this row pads it with; ``NOTHING``.
    """

    path: tuple[str, ...]
    kind: str
    timing: Timing
    reads: tuple[int, ...]
    window: Timing
    marks: str


@dataclasses.dataclass(frozen=True, repr=False)
class Timeline:
    """What every layer of a network gives at every step. Printed, a row of marks for each.

    Attributes:
      rows: the input, and the modules in the order in which they make their outputs.
      first: the step of the first column: negative where the input is padded.
      steps: the number of input steps.
      end: the number of fill steps of the flush behind them.
    """

    rows: tuple[TimelineRow, ...]
    first: int
    steps: int
    end: int

    def __str__(self) -> str:
        names = [(".".join(row.path), row.kind) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*names, strict=True)]
        labels = [f"{path:{widths[0]}}  {kind:{widths[1]}}  " for path, kind in names]
        columns = range(self.first, self.steps + self.end)
        apart = len(columns) <= 40

        def before(step: int) -> str:
            """What stands before a column: a bar where the stream begins and where it ends."""
            if step > self.first and step in (0, self.steps):
                return "|"
            return " " if apart else ""

        header = "step".ljust(len(labels[0]))
        place = len(header)
        for step in columns:
            place += len(before(step))
            if step >= 0 and step % (5 if apart else 10) == 0 and step < self.steps:
                header = header.ljust(place) + str(step)
            place += 1
        lines = [header]
        for label, row in zip(labels, self.rows, strict=True):
            marks = zip(columns, row.marks, strict=True)
            lines += [(label + "".join(before(step) + mark for step, mark in marks)).rstrip()]
        used = set("".join(row.marks for row in self.rows))
        legend = "   ".join(f"{mark} {words}" for mark, words in LEGEND.items() if mark in used)
        return "\n".join([*lines, "", legend])

    __repr__ = __str__

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the timeline, the input at the bottom, and what every output sees.

        Args:
          path: the picture, in any format that matplotlib writes.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        from cojax.analysis import picture

        picture.draw(self, path)


def timeline(net: CoModule, x_t: Any, steps: int | None = None) -> Timeline:
    """Shows which layer gives an output at which input step, the flush included.

    Args:
      net: the network.
      x_t: a step: an array, a ``jax.ShapeDtypeStruct``, or a shape (tuples of arrays or specs for
        several streams). Nothing is computed.
      steps: the number of input steps; None for three outputs, or ten steps.

    Returns:
      The :class:`Timeline`: ``print`` shows it as text, ``plot`` draws it.

    Raises:
      ValueError: if ``steps`` is not positive.
      InputError: if the step does not fit the network.

    Example::

        net = co.Sequential(co.Conv1d(1, 1, 3, stride=2, padding=2), co.Conv1d(1, 1, 3))
        print(co.timeline(net, (1, 1), steps=7))
    """
    if steps is None:
        steps = max(10, net.timing.delay + 2 * net.timing.stride + 1)
    if steps < 1:
        raise ValueError(f"{steps=} must be positive")
    makers = list(_makers(observe_step(net, step_spec(x_t))))
    numbers: dict[Call | None, int] = {None: 0}
    numbers |= {call: number for number, call in enumerate(makers, start=1)}
    rows = [TimelineRow((), "input", Timing(), (), Timing(), "")]
    for call in makers:
        reads = tuple(numbers[source] for source in _read(call))
        window = Timing() if call.within else call.module.timing
        rows.append(TimelineRow(call.path, call.kind, call.after, reads, window, ""))

    padded: dict[int, set[int]] = {number: set() for number in range(len(rows))}
    for row in rows:
        for number in row.reads:
            padded[number] |= _padded(rows[number].timing, row.window, steps)
    first = min(0, *(min(columns, default=0) for columns in padded.values()))
    end = net.timing.end

    def marks(number: int) -> str:
        return "".join(
            PADDING if step in padded[number] else _mark(rows[number].timing, step, steps)
            for step in range(first, steps + end)
        )

    marked = [dataclasses.replace(row, marks=marks(i)) for i, row in enumerate(rows)]
    return Timeline(tuple(marked), first, steps, end)


def _makers(call: Call) -> Iterator[Call]:
    """The calls that make outputs of their own, in the order in which they do."""
    for inner in call.within:
        yield from _makers(inner)
    if call.ran and not call.hands_on:
        yield call


def _read(call: Call) -> list[Call | None]:
    """The calls whose outputs a module's own are made of: of those within, what no other takes."""
    if not call.within:
        return list(call.sources)
    taken = {source for inner in call.within for each in inner.walk() for source in each.sources}
    made = [each for inner in call.within for each in _makers(inner)]
    return [each for each in made if each not in taken]


def _padded(source: Timing, window: Timing, steps: int) -> set[int]:
    """When the frames with which a module of this window pads what it reads would have come."""
    inputs = source.n_out(steps)
    outputs = window.n_out(inputs)
    if not outputs:
        return set()
    stop = (outputs - 1) * window.stride - window.padding + window.receptive_field
    frames = (*range(-window.padding, 0), *range(inputs, stop))
    return {source.delay + frame * source.stride for frame in frames}


def _mark(timing: Timing, step: int, steps: int) -> str:
    """What a module of this timing gives at a step of a stream of so many."""
    if not 0 <= step < steps + timing.end:
        return NOTHING
    if timing.emits(step):
        return EMITTED if step < steps else FLUSHED
    return WAITING if step < timing.delay else SKIPPED
