"""A chunk of a stream in cojax, processed at once or scanned step by step, side by side.

    python -m benchmarks.prefill [--batch 1] [--device cpu|gpu] [--json FILE] [NAME ...]

Both ways take a stream that is past its delay through as many steps as the regular network's clip
has, or, for a strided network, through the largest multiple of the stride that is no longer. Their
outputs and their final states are compared first.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cojax as co
from benchmarks.harness import (
    Disagreement,
    Job,
    aligned,
    compared,
    compiled,
    deviation,
    on_jax,
    parser,
    per_turn,
    prepared,
    run,
    set_up,
    short,
    spread,
)
from benchmarks.networks import NETWORKS

NAMES = tuple(name for name, network in NETWORKS.items() if network.length is not None)


class Chunk:
    """The state of a stream and the steps that follow, which are processed either way.

    Attributes:
      compile_seconds: the seconds for lowering and compiling, by way.
      deviation: the largest relative differences of outputs and states.
      shape: the shape of the chunk.
    """

    def __init__(self, net: co.CoModule, variables: Any, chunk: np.ndarray, job: Job):
        def steps(variables: Any, state: Any, xs: Any, at_once: bool) -> Any:
            return net.apply(variables, state, xs, at_once=at_once, method="forward_steps")

        self.shape, self._variables, self._xs = chunk.shape, variables, on_jax(chunk, job)
        self._state = net.init_state(self._xs[:, :, 0])
        self._steps, self.compile_seconds = {}, {}
        for name, at_once in (("scanned", False), ("at once", True)):
            jitted = jax.jit(partial(steps, at_once=at_once))
            self._steps[name], self.compile_seconds[name] = compiled(
                jitted, variables, self._state, self._xs
            )
        # Past the delay, every chunk of this length has outputs.
        for _ in range(-(-net.delay // chunk.shape[2])):
            _, self._state = self._taken("at once")
        self.deviation = self._compared(job)

    def _taken(self, name: str) -> Any:
        return self._steps[name](self._variables, self._state, self._xs)

    def _compared(self, job: Job) -> dict[str, float]:
        (ours, state), (scanned, expected) = self._taken("at once"), self._taken("scanned")
        if not np.array_equal(ours.valid, scanned.valid) or not np.any(scanned.valid):
            raise Disagreement("the two ways do not answer the same steps, or none")
        outputs = deviation(ours.dense(), scanned.dense(), job, "the outputs")
        states = [0.0]
        for (path, a), b in zip(
            jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True
        ):
            name = f"the states {jax.tree_util.keystr(path)}"
            if jnp.issubdtype(b.dtype, jnp.floating):
                states.append(deviation(a, b, job, name))
            elif not np.array_equal(a, b):
                raise Disagreement(f"{name} are {a} and {b}")
        return {"outputs": outputs, "states": max(states)}

    def ways(self) -> dict[str, Callable[[int], None]]:
        """The ways to process the chunk, as functions of the number of repetitions."""

        def way(name: str, times: int) -> None:
            for _ in range(times):
                taken = self._taken(name)
            jax.block_until_ready(taken)

        return {name: partial(way, name) for name in self._steps}


def measure(job: Job) -> dict[str, Any]:
    """All figures of a network at a batch size."""
    set_up(job)
    network = NETWORKS[job.network]
    net = network.build()
    net, variables = prepared(net, network.variables(net, job.dtype), job)
    clip = network.clip(job.batch)
    length = clip.shape[2] - clip.shape[2] % net.timing.stride
    chunk = Chunk(net, variables, clip[:, :, :length], job)
    return {
        "chunk": chunk.shape,
        "deviation": chunk.deviation,
        "prefill": compared(per_turn(chunk.ways(), job), "scanned"),
        "compile_seconds": chunk.compile_seconds,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the times of a chunk."""
    header = ("network", "chunk", "scan, ms", "at once, ms", "a scan takes x times", "deviation")
    return aligned(
        header,
        [
            (
                row["network"],
                "x".join(map(str, row["chunk"])),
                short(row["prefill"]["scanned"]["ms"]["median"]),
                short(row["prefill"]["at once"]["ms"]["median"]),
                spread(row["prefill"]["at once"]["times"]),
                f"{max(row['deviation'].values()):.0e}",
            )
            for row in rows
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures as JSON."""
    run(parser(__doc__.split("\n")[0], NAMES, batches=(1,)), NAMES, measure, table, arguments)


if __name__ == "__main__":
    main()
