"""Plots, which need matplotlib, an optional dependency."""

from typing import Any


def pyplot() -> Any:
    """Returns matplotlib's pyplot, drawing to files; raises an ImportError if not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'cojax[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
