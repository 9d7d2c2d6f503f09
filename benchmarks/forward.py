"""Clips in cojax and in torch, side by side: the forward pass in evaluation mode.

    python -m benchmarks.forward [--batch 1] [--device cpu|gpu] [--json FILE] [NAME ...]

The networks are the regular ones of ``benchmarks.networks``, on clips that give one prediction: X3D
on 13 or 16 images of 160, 224 or 312 pixels, Slow and I3D on 8 images of 224 pixels, skeleton
networks on 300 frames of two persons, OadTR on its window of 64 steps. In torch they are built from
plain ``torch.nn`` modules. Outputs are compared first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import torch

import cojax as co
from benchmarks.harness import (
    Job,
    aligned,
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
    waiting,
)
from benchmarks.networks import NETWORKS, Network
from benchmarks.peers import overwriting, to_torch_nn

NAMES = tuple(name for name, network in NETWORKS.items() if network.length is not None)


class Clips:
    """A regular network in both libraries, on the same random clip.

    Attributes:
      deviation: the largest difference between the outputs, relative to the largest output.
      compile_seconds: the seconds for lowering and compiling in cojax.
      macs: the multiply-accumulates of the clip.
      shape: the clip's shape.
    """

    def __init__(self, network: Network, variables: Any, job: Job):
        net, clip = network.regular(), network.clip(job.batch)
        self.shape = clip.shape
        self._module = on_device(overwriting(to_torch_nn(net, variables)), job)
        self.macs = float(co.flops(net, clip.shape, mode="forward").total)
        net, self._variables = prepared(net, variables, job)
        self._array, self._tensor = on_jax(clip, job), on_torch(clip, job)
        self._forward, self.compile_seconds = compiled(
            jax.jit(net.apply), self._variables, self._array
        )
        ours = self._forward(self._variables, self._array)
        theirs = self._module(self._tensor).float().cpu().numpy()
        self.deviation = deviation(ours, theirs, job, "the outputs for a clip")
        self._job = job

    def ways(self, stride: int = 1) -> dict[str, Callable[[int], None]]:
        """The ways to compute the outputs of a number of steps, one every ``stride`` steps."""

        def run_cojax(steps: int) -> None:
            for _ in range(steps // stride):
                y = self._forward(self._variables, self._array)
            y.block_until_ready()

        def run_torch(steps: int) -> None:
            for _ in range(steps // stride):
                self._module(self._tensor)

        return {"cojax": run_cojax, "torch": waiting(run_torch, self._job)}


def measure(job: Job) -> dict[str, Any]:
    """All figures of a network at a batch size."""
    set_up(job)
    network = NETWORKS[job.network]
    with torch.inference_mode():
        clips = Clips(network, network.variables(network.regular(), job.dtype), job)
        rates = machine_rates(job)
        times = compared(per_turn(clips.ways(), job), "torch")
    seconds = times["cojax"]["ms"]["median"] / 1e3
    return {
        "clip": clips.shape,
        "deviation": clips.deviation,
        "forward": times,
        "macs": clips.macs,
        "machine": rates,
        "matrix_fraction": 2 * clips.macs / seconds / rates["flops"],
        "compile_seconds": clips.compile_seconds,
        "notes": network.clip_notes,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the times of a clip."""
    header = ("network", "clip", "torch, ms", "cojax, ms", "torch takes x times", "matrix rate")
    cells = [
        (
            row["network"],
            "x".join(map(str, row["clip"])),
            short(row["forward"]["torch"]["ms"]["median"]),
            short(row["forward"]["cojax"]["ms"]["median"]),
            spread(row["forward"]["cojax"]["times"]),
            f"{row['matrix_fraction']:.1%}",
            short(row["compile_seconds"]),
            f"{row['deviation']:.0e}",
        )
        for row in rows
    ]
    return f"{aligned((*header, 'compiled, s', 'deviation'), cells)}\n\n{noted(rows)}".rstrip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures as JSON."""
    run(parser(__doc__.split("\n")[0], NAMES, batches=(1,)), NAMES, measure, table, arguments)


if __name__ == "__main__":
    main()
