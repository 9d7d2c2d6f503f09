"""Text tables."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Protocol


def table(header: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str]) -> str:
    """Rows under a header, and a foot under a rule. The first two columns are left-aligned."""
    lines = [header, *rows, foot]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    width = sum(widths) + 2 * (len(widths) - 1)

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    rule = "-" * width
    return "\n".join([line(header), rule, *map(line, rows), rule, line(foot)])


def number(value: int | Fraction) -> str:
    """Formats a number with thousands separators, and a fraction with two decimals."""
    value = Fraction(value)
    return f"{value.numerator:,}" if value.denominator == 1 else f"{float(value):,.2f}"


class _Row(Protocol):
    @property
    def path(self) -> tuple[str, ...]: ...
    @property
    def kind(self) -> str: ...


def listed(rows: Iterable[_Row]) -> str:
    """Lists the types of these modules, each with the path of the first one."""
    places: dict[str, list[str]] = {}
    for row in rows:
        places.setdefault(row.kind, []).append(".".join(row.path) or "the network")
    return ", ".join(
        f"{kind} ({first}{f' and {len(others)} more' if others else ''})"
        for kind, (first, *others) in places.items()
    )
