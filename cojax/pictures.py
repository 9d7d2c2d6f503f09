"""Pictures, which need matplotlib, an extra."""

from typing import Any


def pyplot() -> Any:
    """The pyplot of matplotlib, drawing into files; an ImportError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'cojax[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
