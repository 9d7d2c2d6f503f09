"""Draws timelines with matplotlib."""

import os
from typing import Any

from cojax.analysis.timeline import (
    EMITTED,
    FLUSHED,
    LEGEND,
    NOTHING,
    PADDING,
    SKIPPED,
    WAITING,
    Timeline,
    TimelineRow,
)
from cojax.optional import require

# The width of a column, in inches; all other lengths are in columns.
_COLUMN = 0.26
_HALF = 0.38  # Half the side of a cell.
_APART = 1.6  # The distance between rows.

_INK, _GREY, _FAINT, _RED, _GREEN = "#222222", "#777777", "#c4c4c4", "#cc3311", "#44aa99"
_EDGES = {EMITTED: _INK, FLUSHED: _INK, PADDING: _INK, WAITING: _FAINT, SKIPPED: _RED}
_SIGNS = {PADDING: "o", SKIPPED: "x"}


def draw(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Draws the rows from the bottom up and, below each output, what it is computed from.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "plot", "matplotlib", "plot")

    rows, columns = timeline.rows, range(timeline.first, timeline.steps + timeline.end)
    levels = [number * _APART for number in range(len(rows))]
    left, right, bottom, top = columns.start - 1, columns.stop + 1, -3.2, levels[-1] + 1
    figure = figures.Figure(figsize=((right - left) * _COLUMN, (top - bottom) * _COLUMN))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.axis("off")

    for row, level in zip(rows, levels, strict=True):
        label = f"{'.'.join(row.path)}  {row.kind}".strip()
        axes.text(left, level, label, ha="right", va="center", color=_INK)
        if row.timing.stride > 1:
            axes.text(columns.stop, level, f"rate 1/{row.timing.stride}", va="center", color=_GREY)
        for step, mark in zip(columns, row.marks, strict=True):
            _draw_cell(axes, step, level, mark)
            if mark in (EMITTED, FLUSHED):
                for number in row.reads:
                    _draw_view(axes, row, step, level, rows[number], levels[number])

    axes.text(left, -1.2, "step", ha="right", va="center", color=_GREY)
    for step in range(0, timeline.steps, 1 if timeline.steps <= 20 else 5):
        axes.text(step, -1.2, str(step), ha="center", va="center", color=_GREY)
    if timeline.end:
        axes.vlines(timeline.steps - 0.5, -1.6, top, color=_GREY, lw=1, ls="--", zorder=0)
        axes.text(timeline.steps - 0.2, -1.2, "flush", va="center", color=_GREY)
    _draw_legend(axes, timeline, bottom + 0.5)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)


def _draw_cell(axes: Any, x: float, y: float, mark: str) -> None:
    from matplotlib.patches import Rectangle

    if mark == NOTHING:
        return
    edge = _EDGES[mark]
    corner = (x - _HALF, y - _HALF)
    box = Rectangle(corner, 2 * _HALF, 2 * _HALF, fc="white", ec=edge, clip_on=False)
    if mark == EMITTED:
        box.set_facecolor(edge)
    if mark == WAITING:
        box.set_linestyle(":")
    axes.add_patch(box)
    if mark in _SIGNS:
        axes.plot(x, y, _SIGNS[mark], color=edge, mfc="none", ms=5, clip_on=False)


def _draw_view(
    axes: Any, row: TimelineRow, step: int, level: float, source: TimelineRow, floor: float
) -> None:
    """Draws what the output of a step sees of a row that it is computed from."""
    from matplotlib.patches import Polygon

    output = (step - row.timing.delay) // row.timing.stride
    first = output * row.window.stride - row.window.padding
    last = first + row.window.receptive_field - 1
    start, stop = (source.timing.delay + n * source.timing.stride for n in (first, last))
    corners = [
        (start - _HALF, floor + _HALF),
        (stop + _HALF, floor + _HALF),
        (step + _HALF, level - _HALF),
        (step - _HALF, level - _HALF),
    ]
    axes.add_patch(Polygon(corners, fc=_GREEN, alpha=0.3, lw=0, zorder=0))


def _draw_legend(axes: Any, timeline: Timeline, y: float) -> None:
    x = float(timeline.first)
    for mark, words in LEGEND.items():
        if any(mark in row.marks for row in timeline.rows):
            _draw_cell(axes, x, y, mark)
            axes.text(x + 0.8, y, words, va="center", color=_GREY)
            x += 2.2 + 0.29 * len(words)
