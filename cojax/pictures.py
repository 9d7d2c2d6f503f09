"""Plots, which need matplotlib, an optional dependency."""

from typing import Any

from cojax.optional import require


def pyplot() -> Any:
    """Returns matplotlib's pyplot, drawing to files; raises an ImportError if not installed."""
    require("matplotlib", "--plot", "matplotlib", "plot").use("agg")
    from matplotlib import pyplot

    return pyplot
