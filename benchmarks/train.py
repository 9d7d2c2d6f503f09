"""Training on clips in cojax and in torch, side by side.

    python -m benchmarks.train [--device cpu|gpu] [--json FILE] [NAME ...]

A training step is a forward and backward pass over a batch of clips, in training mode without
dropout, and an update by SGD with momentum, of optax and of torch. The loss is the cross-entropy of
the mean output. Clips are small enough for a CPU: see ``lesson`` in ``benchmarks.networks``. The
losses of the first steps are compared first; the second one shows whether the gradients agree.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in torch

from benchmarks.harness import (
    Disagreement,
    Job,
    aligned,
    compared,
    compiled,
    on_device,
    on_jax,
    on_torch,
    parser,
    per_turn,
    run,
    set_up,
    short,
    spread,
    waiting,
)
from benchmarks.networks import NETWORKS, Network
from benchmarks.peers import overwriting, to_torch_nn

NAMES = tuple(name for name, network in NETWORKS.items() if network.training is not None)
_RATE, _MOMENTUM = 1e-3, 0.9
_STEPS = 3  # How many losses are compared.
# A loss is a mean, in which rounding errors average out. Gradients carry them along: for CoS-TR*,
# gradients in float32 differ by 1 % from those in float64.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
_OF_CHANGE = 0.02


def lesson(network: Network, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random clips and their labels."""
    rng = np.random.default_rng(0)
    shape = (batch, *network.lesson[1:])
    return rng.standard_normal(shape, np.float32), np.arange(batch) % 4


class Ours:
    """The network that is trained in cojax.

    Attributes:
      compile_seconds: the seconds for lowering and compiling its training step.
    """

    def __init__(self, net: Any, variables: Any, x: Any, labels: np.ndarray):
        optimizer = optax.sgd(_RATE, _MOMENTUM)
        params = variables["params"]
        others = {name: tree for name, tree in variables.items() if name != "params"}
        statistics = tuple(name for name in others if name == "batch_stats")

        def loss_of(params: Any, others: Any, x: Any) -> Any:
            y, updates = net.apply({"params": params, **others}, x, train=True, mutable=statistics)
            logits = y.astype(jnp.float32).mean(2)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), {**others, **updates}

        def step(params: Any, others: Any, momentum: Any, x: Any) -> Any:
            grown = jax.value_and_grad(loss_of, has_aux=True)(params, others, x)
            (loss, others), gradients = grown
            updates, momentum = optimizer.update(gradients, momentum)
            return loss, (optax.apply_updates(params, updates), others, momentum)

        self._x = x
        self._state = jax.tree.map(jnp.copy, (params, others, optimizer.init(params)))
        jitted = jax.jit(step, donate_argnums=(0, 1, 2))
        self._step, self.compile_seconds = compiled(jitted, *self._state, x)

    def __call__(self) -> Any:
        loss, self._state = self._step(*self._state, self._x)
        return loss


class Theirs:
    """The network that is trained in torch."""

    def __init__(self, module: Any, x: Any, labels: Any):
        self._module, self._x, self._labels = module.train(), x, labels
        trained = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(trained, _RATE, _MOMENTUM)

    def __call__(self) -> Any:
        self._optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self._module(self._x).float().mean(2), self._labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def _compared(ours: Ours, theirs: Theirs, job: Job) -> list[float]:
    """The relative differences between the losses of the first steps."""
    apart: list[float] = []
    first = math.nan
    for number in range(1, _STEPS + 1):
        a, b = float(ours()), float(theirs())
        first = b if number == 1 else first
        apart.append(abs(a - b) / abs(b))
        allowed = _TOLERANCE[job.dtype] * abs(b) + _OF_CHANGE * abs(b - first)
        # Not written as >, so that a NaN is a disagreement too.
        if not abs(a - b) <= allowed:
            raise Disagreement(f"the loss of step {number} is {a} in cojax and {b} in torch")
    return apart


def measure(job: Job) -> dict[str, Any]:
    """All figures of a network at a batch size."""
    set_up(job)
    network = NETWORKS[job.network]
    if network.training is None:
        raise ValueError(f"{job.network} is not trained here")
    x, labels = lesson(network, job.batch)
    net = network.training()
    variables = network.variables(net, job.dtype)
    module = on_device(overwriting(to_torch_nn(net, variables)), job)
    device = next(module.parameters()).device
    ours = Ours(net, variables, on_jax(x, job), labels)
    theirs = Theirs(module, on_torch(x, job), torch.from_numpy(labels).to(device))
    apart = _compared(ours, theirs, job)

    def run_cojax(steps: int) -> None:
        for _ in range(steps):
            loss = ours()
        loss.block_until_ready()

    def run_torch(steps: int) -> None:
        for _ in range(steps):
            theirs()

    ways: dict[str, Callable[[int], None]] = {"cojax": run_cojax, "torch": waiting(run_torch, job)}
    return {
        "clip": x.shape,
        "deviation": apart,
        "train": compared(per_turn(ways, job), "torch"),
        "compile_seconds": ours.compile_seconds,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the times of a training step."""
    header = ("network", "clips", "torch, ms", "cojax, ms", "torch takes x times", "compiled, s")
    cells = [
        (
            row["network"],
            "x".join(map(str, row["clip"])),
            short(row["train"]["torch"]["ms"]["median"]),
            short(row["train"]["cojax"]["ms"]["median"]),
            spread(row["train"]["cojax"]["times"]),
            short(row["compile_seconds"]),
            f"{max(row['deviation']):.0e}",
        )
        for row in rows
    ]
    return aligned((*header, "losses differ by"), cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures as JSON."""
    run(parser(__doc__.split("\n")[0], NAMES), NAMES, measure, table, arguments)


if __name__ == "__main__":
    main()
