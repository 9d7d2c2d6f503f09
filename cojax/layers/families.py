"""What the classes of a family, alike but for their spatial axes, share."""


def over_axes(docstring: str | None, axes: int) -> str:
    """A family's docstring, which speaks of three axes, for its class over so many, time included.

    In names ``3d`` becomes ``1d``, and in shapes the lengths ``4, 4`` of space become as many.
    """
    return (docstring or "").replace("3d", f"{axes}d").replace(", 4, 4", ", 4" * (axes - 1))
