"""Steps of a stream in cojax and in ``continual``, side by side.

    python -m benchmarks.step [--batch 1 8] [--device cpu|gpu] [--json FILE] [NAME ...]

Each network and batch size runs in a fresh process. Both libraries have the same weights, the same
steps and the same number of threads, and their outputs are compared first. The steady state is
timed: Python loops over the steps, until the last output is available. The ways alternate, round by
round; the result is the median of the rounds' ratios, with quartiles. At batch 1, each library also
computes a prediction from its whole window.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import continual
import jax
import numpy as np
import torch
from torch import Tensor, nn

import cojax as co
from benchmarks.forward import Clips
from benchmarks.harness import (
    Disagreement,
    Job,
    aligned,
    beside,
    compared,
    compiled,
    deviation,
    machine_rates,
    noted,
    on_device,
    on_jax,
    on_torch,
    parser,
    per_turn,
    prepared,
    run,
    set_up,
    short,
    spread,
)
from benchmarks.kernels import kernels
from benchmarks.networks import NETWORKS
from benchmarks.pairs import Spread, ratios
from benchmarks.peers import overwriting, to_continual

# How many outputs are compared, and how many steps are repeated while timing.
_COMPARED, _FRAMES = 4, 8


class Stepping:
    """A stream in cojax, run by a compiled step that takes the variables and the state.

    If the network has a temporal stride, the step skips what no output needs, and the figures of a
    step are means over the steps from one output to the next.

    Attributes:
      compile_seconds: the seconds for lowering and compiling.
      first_seconds: the seconds until the output of the first step, including compilation.
    """

    def __init__(self, net: co.CoModule, variables: Any, x: Any):
        def step(variables: Any, state: Any, x_t: Any) -> Any:
            return net.apply(variables, state, x_t, skip=skip, method="forward_step")

        skip = net.timing.stride > 1
        fresh = jax.jit(net.init_state)
        self.variables, self.state = variables, fresh(x)
        start = time.perf_counter()
        jitted = jax.jit(step, donate_argnums=1)
        self.compiled, self.compile_seconds = compiled(jitted, variables, self.state, x)
        self(x).value.block_until_ready()
        self.first_seconds = time.perf_counter() - start
        self.state = fresh(x)

    def __call__(self, x: Any) -> Any:
        frame, self.state = self.compiled(self.variables, self.state, x)
        return frame


def measure(job: Job) -> dict[str, Any]:
    """All figures of a network at a batch size."""
    set_up(job)
    network = NETWORKS[job.network]
    net = network.build()
    with beside():
        unfolded = network.variables(net, job.dtype, job.device)
    notes: list[str] = [*network.notes, *network.clip_notes]
    peer = on_device(overwriting(to_continual(net, unfolded, notes=notes)), job)
    net, variables = prepared(net, unfolded, job)
    with torch.inference_mode():
        frames = [network.frame(job.batch, t) for t in range(_FRAMES)]
        given = [on_jax(x, job) for x in frames], [on_torch(x, job) for x in frames]
        stepping = Stepping(net, variables, given[0][0])
        first, differs = _compared(net, stepping, peer, *given, job)
        ways = _steps(net, stepping, peer, *given, job)
        clips = None
        # At larger batches, clips fill the machine even one at a time.
        if network.length is not None and job.batch == 1 and not job.brief:
            clips = Clips(network, unfolded, job)
            differs["window"] = clips.deviation
        ran = _kernels(ways, net.timing.stride) if job.device == "gpu" else None
        rates = machine_rates(job)
        times = per_turn(ways, job, net.timing.stride)
        windows = clips and _windows(clips, ways["cojax"], net.timing.stride, job)
    seconds = float(np.median(times["cojax"]))
    weights, state = bytes_of(variables), bytes_of(stepping.state)
    macs = float(co.flops(net, (job.batch, *network.step)).total)
    return {
        "step": network.step,
        "delay": net.delay,
        "stride": net.timing.stride,
        "notes": notes,
        "deviation": differs,
        "steps": compared(times, "continual"),
        "window": windows and {"length": network.length} | windows,
        "kernels": ran,
        "macs": macs,
        "machine": rates,
        "matrix_fraction": 2 * macs / seconds / rates["flops"],
        "memory_fraction": (weights + state) / seconds / rates["bytes"],
        "weight_bytes": weights,
        "state_bytes": {"cojax": state / job.batch, "continual": state_bytes(peer) / job.batch},
        "compile_seconds": stepping.compile_seconds,
        "first_step_seconds": {"cojax": stepping.first_seconds, "continual": first},
    }


def _compared(
    net: co.CoModule, stepping: Stepping, peer: Any, arrays: Any, tensors: Any, job: Job
) -> tuple[float, dict[str, float]]:
    """The seconds of the first step of ``continual``, and the deviation of the outputs.

    Afterwards, both streams are in their steady state.
    """
    ours, theirs, first = [], [], 0.0
    steps = net.delay + (_COMPARED - 1) * net.timing.stride + 1
    for t, which in enumerate(np.random.default_rng(0).integers(len(arrays), size=steps)):
        frame = stepping(arrays[which])
        start = time.perf_counter()
        y = peer.forward_step(tensors[which])
        if job.device == "gpu":
            torch.cuda.synchronize()
        first = first or time.perf_counter() - start
        if bool(frame.valid) != (y is not None):
            raise Disagreement(f"one library answers step {t}, and the other does not")
        if y is not None:
            ours.append(np.asarray(frame.value, np.float32))
            theirs.append(y.float().cpu().numpy())
    if len(ours) != _COMPARED:
        raise Disagreement(f"expected {_COMPARED} outputs, got {len(ours)}")
    return first, {"step": deviation(np.stack(ours), np.stack(theirs), job, "the outputs")}


def _steps(
    net: co.CoModule, stepping: Stepping, peer: Any, arrays: Any, tensors: Any, job: Job
) -> dict[str, Callable[[int], None]]:
    """The ways to step, as functions of the number of steps."""

    def run_continual(steps: int) -> None:
        for t in range(steps):
            peer.forward_step(tensors[t % _FRAMES])
        if job.device == "gpu":
            torch.cuda.synchronize()

    def run_step(steps: int) -> None:
        for t in range(steps):
            frame = stepping(arrays[t % _FRAMES])
        frame.value.block_until_ready()

    ways = {"continual": run_continual, "cojax": run_step}
    if job.brief:
        return ways
    # A Stream gets its frames from the host; on a GPU, from the GPU, as the other ways do.
    given = arrays if job.device == "gpu" else [np.asarray(x) for x in arrays]
    stream = co.Stream(net, stepping.variables, arrays[0])
    for t in range(net.delay + 1):
        stream(given[t % _FRAMES])

    def run_stream(steps: int) -> None:
        """Takes a multiple of the stride: the last step emits, and its output completes all."""
        for t in range(steps):
            y = stream(given[t % _FRAMES])
        jax.block_until_ready(y)

    return {**ways, "cojax Stream": run_stream}


def _windows(
    clips: Clips, run_step: Callable[[int], None], stride: int, job: Job
) -> dict[str, Any]:
    """Times of a prediction from its whole window, computed wherever a step would emit."""
    ways = {"cojax step": run_step, **clips.ways(stride)}
    few = dataclasses.replace(job, rounds=max(3, job.rounds // 4))
    times = per_turn(ways, few, stride)
    return {
        name: {
            "ms": Spread.of([t * 1e3 for t in times[name]])._asdict(),
            "times": ratios(times, name, "cojax step")._asdict(),
        }
        for name in ("cojax", "torch")
    }


def _kernels(ways: Mapping[str, Callable[[int], None]], stride: int) -> dict[str, Any]:
    """What runs on the GPU for a step, in each library."""
    steps = stride * max(1, 8 // stride)
    ran = {
        "cojax": kernels(ways["cojax"], steps, "jax"),
        "continual": kernels(ways["continual"], steps, "torch"),
    }
    return {name: of and of._asdict() for name, of in ran.items()}


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays in a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def state_bytes(peer: nn.Module) -> int:
    """The bytes that a module of ``continual`` keeps from one step to the next."""
    kept: dict[int, Tensor] = {}
    for module in peer.modules():
        if isinstance(module, continual.RecyclingPositionalEncoding):
            state: Any = module.state_index
        else:
            state = module.get_state() if hasattr(module, "get_state") else None
        kept |= {id(tensor): tensor for tensor in _tensors(state)}
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state or () for tensor in _tensors(part)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tables of the times and the costs of a step."""
    times = aligned(
        (
            *("network", "batch", "continual, ms", "cojax, ms", "continual takes x times"),
            *("Stream", "window, cojax", "torch"),
        ),
        [
            (
                row["network"],
                str(row["batch"]),
                short(row["steps"]["continual"]["ms"]["median"]),
                short(row["steps"]["cojax"]["ms"]["median"]),
                spread(row["steps"]["cojax"]["times"]),
                short(_within(row, "steps", "cojax Stream", "times", "median")),
                *(
                    short(_within(row, "window", name, "times", "median"))
                    for name in ("cojax", "torch")
                ),
            )
            for row in rows
        ],
    )
    costs = aligned(
        (
            *("network", "batch", "matrix rate", "memory rate", "state, kB", "continual's"),
            *("compiled, s", "first step, s", "continual's", "deviation"),
        ),
        [
            (
                row["network"],
                str(row["batch"]),
                f"{row['matrix_fraction']:.1%}",
                f"{row['memory_fraction']:.1%}",
                short(row["state_bytes"]["cojax"] / 1e3),
                short(row["state_bytes"]["continual"] / 1e3),
                short(row["compile_seconds"]),
                short(row["first_step_seconds"]["cojax"]),
                short(row["first_step_seconds"]["continual"]),
                f"{max(row['deviation'].values()):.0e}",
            )
            for row in rows
        ],
    )
    explained = (
        "Stream: how many times as long continual takes. window: how many times as long as a step\n"
        "of cojax it takes to recompute the clip that the regular network is run on.\n"
        "memory rate: of what main memory gives; small networks stay in caches."
    )
    ran = aligned(
        ("network", "batch", "kernels", "continual's", "run for, ms", "continual's"),
        [
            (
                row["network"],
                str(row["batch"]),
                *(
                    short(_within(row, "kernels", name, of))
                    for of in ("number", "ms")
                    for name in ("cojax", "continual")
                ),
            )
            for row in rows
        ],
    )
    on_gpu = ran if any(row["kernels"] for row in rows) else ""
    return "\n\n".join(part for part in (times, explained, costs, on_gpu, noted(rows)) if part)


def _within(row: Any, *path: str) -> float | None:
    """The value at this path, or None if it was not measured."""
    for name in path:
        row = row.get(name) if row else None
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the tables and writes the figures as JSON."""
    options = parser(__doc__.split("\n")[0], tuple(NETWORKS), batches=(1, 8))
    run(options, tuple(NETWORKS), measure, table, arguments)


if __name__ == "__main__":
    main()
