"""Times of several ways to do one thing, taken side by side.

On a noisy machine only a ratio of neighbours means anything: every round runs each way in turn,
and what is reported is the median, with quartiles, over the rounds' ratios.
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
        """Raises a ValueError for fewer than two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def side_by_side(
    ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each way in each round; every round runs each way once, in turn.

    In front of each is a pause of so many seconds.
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
    """How many times longer the slow way took than the fast one, round by round."""
    return Spread.of([s / f for s, f in zip(times[slow], times[fast], strict=True)])


def conditions() -> dict[str, Any]:
    """Where and when a measurement was taken."""
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
