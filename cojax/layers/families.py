"""Docstrings shared by the classes of a family, which differ only in their spatial axes."""


def over_axes(docstring: str | None, axes: int) -> str:
    """Adapts a family's docstring, written for three axes, to ``axes`` of them, time included.

    In names, ``3d`` becomes e.g. ``1d``; in shapes, the two spatial lengths ``4, 4`` become as many
    as there are spatial axes.
    """
    return (docstring or "").replace("3d", f"{axes}d").replace(", 4, 4", ", 4" * (axes - 1))
