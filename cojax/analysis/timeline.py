"""Shows which layer emits when: the effect of padding, delay and stride on a stream."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from cojax.analysis.observe import Call, observe_step
from cojax.frames import step_spec
from cojax.layers.arguments import require_positive
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
    """A module that computes outputs of its own, or the network's input.

    Attributes:
      path: its torch path; empty for the input.
      kind: the name of its type; "input" for the input.
      timing: when its outputs are emitted, in input steps of the network.
      reads: the numbers of the rows that its outputs are computed from.
      window: what an output sees of each of these rows, as a timing in their frames.
      marks: a character for each column: ``EMITTED``; ``FLUSHED``, an output emitted after the last
        input step; ``WAITING``, during warm-up; ``SKIPPED``, by a stride of this module or of one
        before it; ``PADDING``, a frame with which a module that reads this row pads it;
        ``NOTHING``.
    """

    path: tuple[str, ...]
    kind: str
    timing: Timing
    reads: tuple[int, ...]
    window: Timing
    marks: str


@dataclasses.dataclass(frozen=True, repr=False)
class Timeline:
    """What every layer of a network emits at every step, printed as one row of marks per layer.

    Attributes:
      rows: the input, and the modules in the order in which they compute their outputs.
      first: the step of the first column; negative if the input is padded.
      steps: the number of input steps.
      end: the number of fill steps of the flush after them.
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
            """The separator before a column: a bar where the stream begins and where it ends."""
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
        """Draws the timeline, with the input at the bottom, and what every output sees.

        Args:
          path: the image file, in any format that matplotlib writes.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        from cojax.analysis import picture

        picture.draw(self, path)


def timeline(net: CoModule, x_t: Any, steps: int | None = None) -> Timeline:
    """Shows which layers emit an output at which input steps, including the flush.

    Args:
      net: the network.
      x_t: a step: an array, a ``jax.ShapeDtypeStruct``, or a shape (tuples of arrays or specs for
        several streams). Nothing is computed.
      steps: the number of input steps; None for enough to emit three outputs, and at least ten.

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
    require_positive(steps=steps)
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
    """Yields the calls that compute outputs of their own, in the order in which they do."""
    for inner in call.within:
        yield from _makers(inner)
    if call.ran and not call.hands_on:
        yield call


def _read(call: Call) -> list[Call | None]:
    """The calls that a module's outputs are computed from: of those within, what no other reads."""
    if not call.within:
        return list(call.sources)
    taken = {source for inner in call.within for each in inner.walk() for source in each.sources}
    made = [each for inner in call.within for each in _makers(inner)]
    return [each for each in made if each not in taken]


def _padded(source: Timing, window: Timing, steps: int) -> set[int]:
    """The steps at which the padding of a module with this window would have been emitted."""
    inputs = source.n_out(steps)
    outputs = window.n_out(inputs)
    if not outputs:
        return set()
    stop = (outputs - 1) * window.stride - window.padding + window.receptive_field
    frames = (*range(-window.padding, 0), *range(inputs, stop))
    return {source.delay + frame * source.stride for frame in frames}


def _mark(timing: Timing, step: int, steps: int) -> str:
    """The mark of a module with this timing at a step of a stream of ``steps`` steps."""
    if not 0 <= step < steps + timing.end:
        return NOTHING
    if timing.emits(step):
        return EMITTED if step < steps else FLUSHED
    return WAITING if step < timing.delay else SKIPPED
