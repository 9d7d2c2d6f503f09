"""Times of several ways to do the same thing, measured side by side.

On a noisy machine, only times measured next to each other can be compared. Every round therefore
runs each way in turn; the result is the median of the rounds' ratios, with quartiles.
"""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The quartiles of a sample."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The quartiles of the values; raises a ValueError for fewer than two."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def side_by_side(
    ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2, pause: float = 0.0
) -> dict[str, list[float]]:
    """The seconds of each way, by round; every round runs each way once, in turn.

    Before each run there is a pause of ``pause`` seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            time.sleep(pause)
            start = time.perf_counter()
            way()
            if number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(times: Mapping[str, list[float]], slow: str, fast: str) -> Spread:
    """How many times as long as the fast way the slow one took: quartiles over the rounds."""
    return Spread.of([s / f for s, f in zip(times[slow], times[fast], strict=True)])


def conditions() -> dict[str, Any]:
    """The machine, the date and the versions of a measurement."""
    import jax

    packages = ("cojax", "jax", "jaxlib", "flax", "torch", "continual-inference")
    return {
        "date": datetime.date.today().isoformat(),
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
