"""A plot of the results of ``benchmarks.step``.

    python -m benchmarks.plot benchmarks/results/step_cpu.json [MORE.json ...] --out FILE.png

Each file has a panel: the time of a step in ``continual``, as a multiple of that in cojax.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import short
from cojax.pictures import pyplot

_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
_BAR = 0.36


def draw(results: Sequence[Mapping[str, Any]], path: Path, way: str = "cojax") -> None:
    """Plots the ratios for one of cojax's ways to step.

    Args:
      results: results that ``benchmarks.step`` wrote as JSON; each has a panel.
      path: the file to write, in any format that matplotlib supports.
      way: "cojax" (the jitted step) or "cojax Stream".

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if there are no results, or nothing was measured in one of them.
    """
    panels = [[row for row in result["rows"] if "error" not in row] for result in results]
    if not panels or not all(panels):
        raise ValueError("there must be a network that was measured in every file")
    plt = pyplot()
    tallest = max(len({row["network"] for row in rows}) for rows in panels)
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.6 + 6.2 * len(panels), 1.9 + 0.46 * tallest),
        squeeze=False,
        layout="constrained",
    )
    for axis, rows, result in zip(axes[0], panels, results, strict=True):
        _panel(axis, rows, way)
        axis.set_title(caption(result["conditions"]), fontsize=8, color="0.35", loc="left")
    figure.suptitle("Time of a step: continual-inference / cojax", x=0.02, ha="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]], way: str) -> None:
    """A group of bars for each network: one for each batch size, with its quartiles."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    height = 2 * _BAR / len(batches)
    ratios = [row["steps"][way]["times"] for row in rows]
    for row, times in zip(rows, ratios, strict=True):
        number = batches.index(row["batch"])
        y = networks.index(row["network"]) - _BAR + (number + 0.5) * height
        median = times["median"]
        axis.barh(y, median - 1, height * 0.92, left=1, color=_COLORS[number % len(_COLORS)])
        axis.plot((times["low"], times["high"]), (y, y), color="0.15", lw=1)
        # To the right of the bar and of its quartiles.
        axis.annotate(
            f"{short(median, 2)}\N{MULTIPLICATION SIGN}",
            (max(times["high"], 1), y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    keys = [axis.barh(0, 0, color=_COLORS[i % len(_COLORS)]) for i in range(len(batches))]
    names = [f"batch {batch}" for batch in batches]
    # Below the axis, where it covers nothing.
    axis.legend(keys, names, frameon=False, loc="upper right", bbox_to_anchor=(1, -0.03), ncols=4)
    lowest = min(times["low"] for times in ratios)
    axis.set_xscale("log")
    axis.set_xlim(min(0.9, lowest / 1.2), 1.7 * max(times["high"] for times in ratios))
    axis.axvline(1, color="0.15", lw=0.8)
    axis.set_yticks(range(len(networks)), networks)
    axis.set_ylim(len(networks) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter(lambda value, _: short(value, 1))
    axis.xaxis.set_major_locator(_locator(1, 2, 5))
    axis.xaxis.set_minor_locator(_locator())
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _locator(*subs: int) -> Any:
    """Ticks at these multiples of powers of ten; without any, no ticks."""
    from matplotlib.ticker import LogLocator, NullLocator

    return LogLocator(subs=subs) if subs else NullLocator()


def caption(conditions: Mapping[str, Any]) -> str:
    """The device, the date and the versions of a measurement."""
    device, dtype = conditions["device"], conditions["dtype"]
    count = conditions["threads"]
    on_cpu = conditions["platform"] == "cpu"
    threads = f", {count} thread{'s' * (count > 1)}" if on_cpu else ""
    versions = ", ".join(
        f"{name} {conditions[name]}" for name in ("cojax", "jax", "torch", "continual-inference")
    )
    return f"{device}{threads}, {dtype}, {conditions['date']}\n{versions}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Plots the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="what benchmarks.step wrote")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    parser.add_argument("--way", choices=("cojax", "cojax Stream"), default="cojax")
    options = parser.parse_args(arguments)
    draw([json.loads(path.read_text()) for path in options.results], options.out, options.way)


if __name__ == "__main__":
    main()
