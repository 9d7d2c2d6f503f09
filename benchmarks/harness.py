"""What the benchmarks share: processes, timing, the command line and tables."""

import argparse
import dataclasses
import datetime
import json
import math
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from benchmarks.networks import NETWORKS
from benchmarks.pairs import Spread, conditions, ratios, side_by_side

# The largest difference between outputs, relative to the largest output, that counts as rounding.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
# Of one way, in a round.
_MOST_TURNS = 1000


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement of a network, or of a layer, at a batch size.

    Attributes:
      network: the name of the network or layer.
      batch: the number of streams or clips.
      device: "cpu" or "gpu".
      dtype: the dtype of inputs, weights and states: "float32" or "bfloat16".
      rounds: how many times each way is timed.
      seconds: roughly how long each way runs in a round.
      fold: whether cojax folds batch norms into the convolutions before them.
      together: how many measurements are prepared at the same time.
      patience: how many seconds they wait for each other before those that are ready are timed.
      brief: whether only jitted steps are measured, without Streams and windows.
    """

    network: str
    batch: int
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 20
    seconds: float = 0.2
    fold: bool = False
    together: int = 1
    patience: float = 900
    brief: bool = False


class NoDevice(RuntimeError):  # noqa: N818 - a result, not a failure of the program
    """There is no such device, or one of the libraries does not find it."""


class Disagreement(AssertionError):  # noqa: N818 - a result, not a failure of the program
    """The libraries compute different results."""


def set_up(job: Job) -> None:
    """Sets up both libraries: the device, equal numbers of threads, and full float32 precision.

    Raises:
      NoDevice: if one of them finds no such device.
    """
    import jax
    import torch

    if job.device == "gpu":
        if not torch.cuda.is_available():
            raise NoDevice("--device gpu: torch finds no GPU (torch.cuda.is_available())")
        with suppress(RuntimeError):
            jax.config.update("jax_default_device", jax.devices("gpu")[0])
        if jax.config.jax_default_device is None:
            raise NoDevice("--device gpu: JAX finds no GPU; is it installed for CUDA?")
        # Otherwise the libraries would differ in which products they round to ten bits.
        jax.config.update("jax_default_matmul_precision", "float32")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # On a CPU, the measurement that is being timed uses all threads.
    sharing = job.together if job.device == "gpu" else 1
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // sharing))
    torch.manual_seed(0)


def circumstances(job: Job) -> dict[str, Any]:
    """The device, the date, the versions and the settings of a measurement."""
    import jax
    import torch

    set_up(job)
    gpu = job.device == "gpu"
    return conditions() | {
        "platform": job.device,
        "device": torch.cuda.get_device_name() if gpu else _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "dtype": job.dtype,
        "jax_platform": jax.default_backend(),
        "fold_batch_norm": job.fold,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "prepared_together": job.together,
    }


def _cpu() -> str:
    """The name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    import platform

    return platform.processor() or platform.machine()


def prepared(net: Any, variables: Any, job: Job) -> tuple[Any, Any]:
    """The network, folded if the job asks for it, and its variables on the device."""
    import jax

    if job.fold:
        import cojax as co

        with beside():
            net, variables = co.fold_batch_norm(net, variables)
    return net, jax.device_put(variables, jax.config.jax_default_device)


def beside() -> Any:
    """A context in which small computations run on the CPU, which compiles them faster."""
    import jax

    return jax.default_device(jax.devices("cpu")[0])


def on_torch(x: np.ndarray, job: Job) -> Any:
    """The array as a tensor on the job's device, in the job's dtype."""
    import torch

    dtype = getattr(torch, job.dtype)
    return torch.from_numpy(x).to(device="cuda" if job.device == "gpu" else "cpu", dtype=dtype)


def on_jax(x: np.ndarray, job: Job) -> Any:
    """The array as a JAX array on the job's device, in the job's dtype."""
    import jax.numpy as jnp

    return jnp.asarray(x, job.dtype)


def on_device(peer: Any, job: Job) -> Any:
    """The torch module on the job's device."""
    return peer.to("cuda") if job.device == "gpu" else peer


def waiting(way: Callable[..., Any], job: Job) -> Callable[..., Any]:
    """A function of torch that returns when its last kernel has finished."""
    if job.device == "cpu":
        return way

    def run(*arguments: Any) -> None:
        import torch

        way(*arguments)
        torch.cuda.synchronize()

    return run


def compiled(jitted: Any, *arguments: Any) -> tuple[Callable[..., Any], float]:
    """A jitted function compiled for arguments like these, and how many seconds that took."""
    start = time.perf_counter()
    return jitted.lower(*arguments).compile(), time.perf_counter() - start


def deviation(ours: Any, theirs: Any, job: Job, what: str) -> float:
    """The largest difference between outputs, relative to the largest output.

    Raises:
      Disagreement: if it is too large to be rounding, if the shapes differ, or if the outputs are
        not finite or all alike.
    """
    a, b = (np.asarray(y, np.float32) for y in (ours, theirs))
    if a.shape != b.shape:
        raise Disagreement(f"{what} have shapes {a.shape} and {b.shape}")
    if not np.isfinite(b).all() or not np.isfinite(a).all():
        raise Disagreement(f"{what} are not finite")
    if np.std(b) < 1e-3 * np.abs(b).max():
        raise Disagreement(f"{what} are all alike, so that nothing can be compared")
    difference = float(np.abs(a - b).max() / np.abs(b).max())
    if difference > TOLERANCE[job.dtype]:
        raise Disagreement(f"{what} differ by {difference:.1e} of the largest")
    return difference


def per_turn(
    ways: Mapping[str, Callable[[int], Any]], job: Job, multiple: int = 1
) -> dict[str, list[float]]:
    """The seconds of one turn of each way, by round; the ways are interleaved.

    In a round, a way takes enough turns to run for about ``job.seconds``, in multiples of
    ``multiple``.
    """
    with alone():
        turns = {name: _turns(way, job.seconds, multiple) for name, way in ways.items()}
        runs = {name: partial(way, turns[name]) for name, way in ways.items()}
        # The threads of torch keep spinning for more than 10 ms after their work: right after it, a
        # step of the LSTM takes 22 us instead of 14.
        times = side_by_side(runs, job.rounds, warm_up=1, pause=0.05)
    return {name: [t / turns[name] for t in seconds] for name, seconds in times.items()}


def _turns(way: Callable[[int], Any], seconds: float, multiple: int) -> int:
    """A multiple of turns that take about so long, judged by turns that take a quarter of it."""
    way(multiple)
    turns, took = 0, 0.0
    while took < seconds / 4 and turns < _MOST_TURNS:
        turns = max(1, 4 * turns)
        start = time.perf_counter()
        way(turns * multiple)
        took = time.perf_counter() - start
    return multiple * max(1, min(_MOST_TURNS, math.ceil(turns * seconds / took)))


def compared(times: Mapping[str, list[float]], slow: str) -> dict[str, Any]:
    """The milliseconds of each way, and how many times as long the slow one takes, as JSON."""
    return {
        name: {
            "ms": Spread.of([t * 1e3 for t in seconds])._asdict(),
            "times": ratios(times, slow, name)._asdict(),
        }
        for name, seconds in times.items()
    }


def machine_rates(job: Job) -> dict[str, float]:
    """The peak rates of the machine: floating-point operations and bytes read per second."""
    import jax
    import jax.numpy as jnp
    import torch

    with alone():
        if job.device == "gpu":
            size, numbers = 8192, 2**28
            tensor = torch.rand(size, size, dtype=getattr(torch, job.dtype), device="cuda")
            multiply = _best(waiting(lambda: tensor @ tensor, job))
        else:
            size, numbers = 2048, 2**26
            array = jnp.ones((size, size), job.dtype)
            product = jax.jit(jnp.dot)
            multiply = _best(lambda: product(array, array).block_until_ready())
        data = torch.ones(numbers, device="cuda" if job.device == "gpu" else "cpu")
        return {
            "flops": 2 * size**3 / multiply,
            "bytes": 4 * numbers / _best(waiting(data.sum, job)),
        }


def _best(way: Callable[[], Any], times: int = 7) -> float:
    """The seconds of the fastest of several runs, the first left out."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        way()
        took.append(time.perf_counter() - start)
    return min(took[1:])


# The command line, and a process for each measurement.


def parser(description: str, names: Sequence[str], batches: Sequence[int] | None = None) -> Any:
    """A parser of the arguments of all benchmarks; without batches, each network has its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--batch", type=int, nargs="+", default=batches and list(batches))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each way in a round, about")
    parser.add_argument("--fold", action="store_true", help="fold batch norms, in cojax")
    parser.add_argument("--brief", action="store_true", help="neither Streams nor windows")
    parser.add_argument("--together", type=int, default=1, help="so many are prepared at once")
    parser.add_argument("--patience", type=float, default=900, help="seconds they wait for others")
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser


def parsed(parser: Any, names: Iterable[str], arguments: Sequence[str] | None) -> Any:
    """The options; exits with an error if one of their names is not among these."""
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def run(
    parser: Any,
    names: Sequence[str],
    measure: Callable[[Job], dict[str, Any]],
    table: Callable[[Sequence[Mapping[str, Any]]], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measures what the command line asks for, prints a table and writes the figures as JSON.

    Exits with 1 if a measurement failed; the others are kept.
    """
    options = parsed(parser, names, arguments)
    if options.rounds < 2 or min(options.together, *(options.batch or [1])) < 1:
        parser.error(
            "--rounds must be at least 2, for a spread, and --batch and --together positive"
        )
    os.environ["JAX_PLATFORMS"] = "cpu" if options.device == "cpu" else "cuda,cpu"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Torch needs memory too.
    jobs = [
        Job(
            name,
            batch,
            options.device,
            options.dtype,
            options.rounds,
            options.seconds,
            options.fold,
            options.together,
            options.patience,
            options.brief,
        )
        for name in options.names or names
        for batch in options.batch or (NETWORKS[name].lesson[0],)
    ]
    ((_, asked),) = in_processes(circumstances, jobs[:1])
    try:
        where = asked.result()
    except NoDevice as error:
        parser.error(str(error))
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    found: dict[Job, dict[str, Any]] = {}
    left = iter(jobs)
    while group := list(islice(left, options.together)):
        asked_for = ", ".join(f"{job.network}, batch {job.batch}" for job in group)
        print(f"measuring {asked_for} ...", file=sys.stderr, flush=True)
        for job, measured in in_processes(measure, group):
            found[job] = _row(job, measured)
            if options.json:  # After each one: a long run may be interrupted.
                rows = [found[job] for job in jobs if job in found]
                figures = {"conditions": where, "rows": rows}
                options.json.write_text(json.dumps(figures, indent=1) + "\n")
    rows = [found[job] for job in jobs]
    done = [row for row in rows if "error" not in row]
    print(f"\n{table(done)}" if done else "\nnothing could be measured")
    for row in rows:
        if "error" in row:
            print(f"{row['network']}, batch {row['batch']}: {row['error']}")
    if len(done) < len(rows):
        raise SystemExit(1)


def _row(job: Job, measured: Future[dict[str, Any]]) -> dict[str, Any]:
    # Each row has its own date: an interrupted run may be continued on another day.
    day = datetime.date.today().isoformat()
    row: dict[str, Any] = {"network": job.network, "batch": job.batch, "date": day}
    try:
        return row | measured.result()
    except Exception as error:
        traceback.print_exception(error)
        return row | {"error": f"{type(error).__name__}: {error}"}


def in_processes(
    function: Callable[[Job], Any], jobs: Sequence[Job]
) -> Iterator[tuple[Job, Future[Any]]]:
    """Runs a function for each job, in fresh processes, and yields the results as they arrive.

    The processes run at the same time, up to where they have to be :func:`alone`.
    """
    context = get_context("spawn")
    meeting = context.Barrier(len(jobs), timeout=jobs[0].patience), context.Lock()
    with ProcessPoolExecutor(len(jobs), context, initializer=_meet, initargs=meeting) as pool:
        asked = {pool.submit(_arriving, function, job): job for job in jobs}
        for future in as_completed(asked):
            yield asked[future], future


# In a process that runs beside others: the barrier at which they wait, and the lock for timing.
_meeting: tuple[Any, Any] | None = None
_arrived = False


def _meet(barrier: Any, lock: Any) -> None:
    global _meeting
    _meeting = barrier, lock


def _arriving(function: Callable[[Job], Any], job: Job) -> Any:
    """The result of a function; if it fails before it is alone, the others do not wait for it."""
    try:
        return function(job)
    finally:
        _arrive()


def _arrive() -> None:
    global _arrived
    if _meeting and not _arrived:
        _arrived = True
        with suppress(BrokenBarrierError):  # Patience has run out.
            _meeting[0].wait()


@contextmanager
def alone() -> Iterator[None]:
    """Encloses what is timed: the other processes are ready, and wait until this one is done."""
    if _meeting is None:
        yield
        return
    _arrive()
    with _meeting[1]:
        yield


# Tables.


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned left and whose others are aligned right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        parts = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def spread(figures: Mapping[str, float] | None, digits: int = 3) -> str:
    """A median with its quartiles, to ``digits`` significant digits."""
    if figures is None:
        return ""
    low, median, high = (short(figures[key], digits) for key in ("low", "median", "high"))
    return f"{median} ({low}-{high})"


def short(value: float | None, digits: int = 3) -> str:
    """A number to ``digits`` significant digits, never with an exponent."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return str(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def noted(rows: Sequence[Mapping[str, Any]]) -> str:
    """The notes on the networks in a table, each note once."""
    networks: dict[str, list[str]] = {}
    for row in rows:
        for note in row.get("notes", ()):
            names = networks.setdefault(note, [])
            if row["network"] not in names:
                names.append(row["network"])
    lines = (f"{', '.join(names)}: {note}." for note, names in networks.items())
    return "\n".join(textwrap.fill(line, 110, subsequent_indent="  ") for line in lines)
