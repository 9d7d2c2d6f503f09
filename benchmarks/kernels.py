"""The kernels that a GPU runs, as reported by the profiler of each library."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import torch

# How many names of kernels are kept.
_SHOWN = 5


class Kernels(NamedTuple):
    """What ran on the GPU for a step.

    Attributes:
      number: the number of kernels, copies and fills.
      ms: the sum of their times; larger if other processes use the GPU too.
      longest: the milliseconds of those that took longest, by name.
    """

    number: float
    ms: float
    longest: dict[str, float]


def kernels(run: Callable[[int], Any], steps: int, library: str) -> Kernels | None:
    """What ran on the GPU per step, or None if the profiler saw nothing.

    Args:
      run: takes this many steps, until the last output is available.
      steps: the number of steps.
      library: the library whose profiler is used, "jax" or "torch".
    """
    run(steps)
    took = list({"jax": _by_jax, "torch": _by_torch}[library](lambda: run(steps)))
    if not took:
        return None
    total: Counter[str] = Counter()
    for name, seconds in took:
        total[name] += seconds
    longest = {name: 1e3 * seconds / steps for name, seconds in total.most_common(_SHOWN)}
    return Kernels(len(took) / steps, 1e3 * sum(total.values()) / steps, longest)


def _by_jax(run: Callable[[], Any]) -> Iterable[tuple[str, float]]:
    """Names and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = options.host_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
    for plane in trace.planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            # The other lines repeat this by operation, module and step.
            for event in line.events if (line.name or "").startswith("Stream") else ():
                yield event.name, event.duration_ns / 1e9


def _by_torch(run: Callable[[], Any]) -> Iterable[tuple[str, float]]:
    """Names and seconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    for event in profile.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            yield event.name, event.time_range.elapsed_us() / 1e6
