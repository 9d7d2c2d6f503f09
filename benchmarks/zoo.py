"""What the networks of the zoo cost, next to the figures in ``continual-inference``'s README.

    python -m benchmarks.zoo [--json FILE] [NAME ...]

Nothing is run or compiled: parameters, timings and multiply-accumulates (MACs) follow from the
networks. A step is an average step at batch 1; in parentheses, a step with an output, if not all
steps have one. The clip is what the regular network, without a memory, computes for one prediction.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import cojax as co
from cojax.analysis import Macs
from cojax.module import declared

NOTES = {
    "a": "there norms, ReLUs and pools are counted too, in a step twice, and quotients are "
    "those of rounded figures",
    "b": "there the cost of a step with an output, which every second has",
    "c": "there norms are counted too, and no matrix products of graphs and attention",
    "d": "there convolutions are counted that have no effect on the output, and that are not "
    "computed here",
    "e": "there the rows of b1 and b2 are interchanged",
    "f": "the clip is the window, computed anew; OadTR, of three blocks and a decoder, needs 2.45",
    "g": "there the last block projects the queries of all 64 steps, of which one is asked for",
}


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
      build: makes the network.
      step: the shape of a step.
      regular: makes the network that is run on clips, for which others publish a cost.
      length: the number of steps in such a clip.
      giga: the MACs of a step in the README of ``continual``, in 10^9; None if it has no figure.
      reduction: how many times as many MACs a clip needs, according to that README.
      notes: keys of :data:`NOTES`, which say why figures differ.
    """

    build: Callable[[], co.CoModule]
    step: tuple[int, ...]
    regular: Callable[[], co.CoModule]
    length: int
    giga: float | None = None
    reduction: float | None = None
    notes: str = ""

    @property
    def clip(self) -> tuple[int, ...]:
        return (*self.step[:2], self.length, *self.step[2:])


def _video(
    build: Callable[..., co.CoModule],
    size: int,
    length: int,
    giga: float,
    reduction: float,
    notes: str,
) -> Entry:
    # The network that is run on clips averages over just one clip.
    return Entry(
        build, (1, 3, size, size), lambda: build(pool_size=length), length, giga, reduction, notes
    )


def _skeleton(
    build: Callable[..., co.CoModule],
    modified: bool,
    giga: float | None = None,
    reduction: float | None = None,
    notes: str = "",
) -> Entry:
    return Entry(
        lambda: build(modified=modified),
        (1, 3, 25, 2),
        lambda: build(modified=False, pool_padding=0),
        300,
        giga,
        reduction,
        notes,
    )


def _oadtr(blocks: int, giga: float, notes: str) -> Entry:
    def build() -> co.CoModule:
        return co.models.cooadtr(num_blocks=blocks)

    return Entry(build, (1, 3072), build, 64, giga, None, notes)


ZOO = {
    "CoX3D-S": _video(co.models.cox3d_s, 160, 13, 0.17, 12.1, "a"),
    "CoX3D-M": _video(co.models.cox3d_m, 224, 16, 0.33, 15.1, "a"),
    "CoX3D-L": _video(co.models.cox3d_l, 312, 16, 1.25, 15.3, "a"),
    "CoSlow": _video(co.models.coslow, 256, 8, 6.90, 8.0, "a"),
    "CoI3D": _video(co.models.coi3d, 224, 8, 5.68, 5.0, "ab"),
    "CoST-GCN*": _skeleton(co.models.cost_gcn, True, 0.16, 107.7, "c"),
    "CoA-GCN*": _skeleton(co.models.coa_gcn, True, 0.17, 108.7, "cd"),
    "CoS-TR*": _skeleton(co.models.cos_tr, True, 0.15, 107.6, "c"),
    "CoST-GCN": _skeleton(co.models.cost_gcn, False),
    "CoA-GCN": _skeleton(co.models.coa_gcn, False),
    "CoS-TR": _skeleton(co.models.cos_tr, False),
    "CoOadTR-b1": _oadtr(1, 0.01, "ef"),
    "CoOadTR-b2": _oadtr(2, 0.41, "efg"),
}


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
      parameters, trained: the number of its parameters, and of those that are trained.
      timing: its timing.
      step: the MACs of a step, on average.
      answering: the MACs of a step with an output.
      clip: the MACs of the clip.
    """

    parameters: int
    trained: int
    timing: co.Timing
    step: Macs
    answering: Macs
    clip: Macs

    @property
    def reduction(self) -> float:
        """The MACs of the clip as a multiple of those of a step."""
        return float(self.clip.total / self.step.total)


def cost(entry: Entry) -> Cost:
    """What a network costs; with many layers, counting takes seconds."""
    net = entry.build()
    variables = declared(net)
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(variables.get(collection, {})))
        for collection in ("params", "constants")
    )
    step = co.flops(net, entry.step)
    return Cost(
        parameters=trained + frozen,
        trained=trained,
        timing=net.timing,
        step=step.macs,
        # In such a step every layer emits, whatever its stride.
        answering=sum((layer.each for layer in step.layers if layer.each), Macs()),
        clip=co.flops(entry.regular(), entry.clip, mode="forward").macs,
    )


HEADER = (
    *("network", "parameters (trained)", "field", "delay", "step", "products"),
    *("clip of", "clip", "times", "`continual`", "times", "notes"),
)


def row(name: str, entry: Entry, cost: Cost) -> tuple[str, ...]:
    """The cells of a row of the table; MACs in 10^9."""
    trained = "" if cost.trained == cost.parameters else f" ({cost.trained:,})"
    answering = "" if cost.timing.stride == 1 else f" ({_giga(cost.answering.linear)})"
    return (
        name,
        f"{cost.parameters:,}{trained}",
        str(cost.timing.receptive_field),
        str(cost.timing.delay),
        f"{_giga(cost.step.linear)}{answering}",
        _giga(cost.step.matmul),
        f"{entry.length}x{'x'.join(map(str, entry.step[2:])) or entry.step[1]}",
        _giga(cost.clip.total),
        f"{cost.reduction:.1f}",
        "" if entry.giga is None else f"{entry.giga:.2f}",
        "" if entry.reduction is None else f"{entry.reduction:.1f}",
        ", ".join(entry.notes),
    )


def _giga(macs: Any) -> str:
    return f"{float(macs) / 1e9:#.3g}" if macs else "0"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under :data:`HEADER`, and its notes."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(aligned)} |"

    rule = line(["-" * width for width in widths])
    notes = [f"{key}: {text}." for key, text in NOTES.items()]
    return "\n".join([line(HEADER), rule, *map(line, rows), "", *notes])


def as_json(entry: Entry, cost: Cost) -> dict[str, Any]:
    """All figures of a network: exact MACs, and those of ``continual`` as published."""

    def exactly(macs: Macs) -> dict[str, float]:
        return {"linear": float(macs.linear), "matmul": float(macs.matmul)}

    return {
        "parameters": cost.parameters,
        "trained": cost.trained,
        **cost.timing._asdict(),
        "step": {"shape": entry.step, **exactly(cost.step)},
        "step_with_output": exactly(cost.answering),
        "clip": {"shape": entry.clip, **exactly(cost.clip)},
        "reduction": cost.reduction,
        "continual": {"giga": entry.giga, "reduction": entry.reduction},
        "notes": [NOTES[key] for key in entry.notes],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and, if asked to, writes its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - ZOO.keys():
        parser.error(f"no networks of the zoo: {', '.join(unknown)}; there are {', '.join(ZOO)}")
    costs = {name: cost(ZOO[name]) for name in options.names or ZOO}
    print(table([row(name, ZOO[name], found) for name, found in costs.items()]))
    if options.json:
        figures = {name: as_json(ZOO[name], found) for name, found in costs.items()}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
