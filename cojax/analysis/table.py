"""Tables of text."""

from collections.abc import Sequence
from fractions import Fraction


def table(header: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str]) -> str:
    """Columns under a header, a foot under a rule. The first two columns are flush left."""
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
    """The number with its thousands apart; a fraction to two places."""
    value = Fraction(value)
    return f"{value.numerator:,}" if value.denominator == 1 else f"{float(value):,.2f}"
