"""A step of the demo network in cojax and in ``continual``, side by side.

    python -m benchmarks.step [--rounds 40] [--steps 200] [--json FILE]

Both run the same weights on the same recording with the same threads; their outputs are compared
first. The times are of whole Python loops over a stream, a sample at a time, until the last output
is there.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import cojax as co
from benchmarks.pairs import Spread, conditions, ratios, side_by_side
from benchmarks.peers import to_continual
from cojax.demo.network import activity_network, trained_variables
from cojax.demo.recordings import load


def ways(steps: int) -> dict[str, Callable[[], Any]]:
    """Each way to take that many steps of the demo network's stream."""
    net = activity_network()
    variables = trained_variables(net)
    peer = to_continual(net, variables)
    clip = np.tile(load("test").x[:1], (1, 1, -(-steps // 100)))[:, :, :steps]
    samples = [np.ascontiguousarray(clip[:, :, t]) for t in range(steps)]
    tensors = [torch.from_numpy(sample) for sample in samples]
    windows = [clip[:, :, max(0, t - net.receptive_field) : t] for t in range(1, steps + 1)]
    windows = [window for window in windows if window.shape[2] == net.receptive_field]
    _compare(net, variables, peer, clip)

    step = jax.jit(
        lambda state, x_t: net.apply(variables, state, x_t, method="forward_step"),
        donate_argnums=0,
    )
    stream = co.Stream(net, variables, (1, 6))
    forward = jax.jit(lambda window: net.apply(variables, window))
    state = net.init_state((1, 6))

    def run_step() -> None:
        nonlocal state
        for sample in samples:
            frame, state = step(state, sample)
        frame.value.block_until_ready()

    def run_stream() -> None:
        for sample in samples:
            y = stream(sample)
        y.block_until_ready()

    def run_window() -> None:
        for window in windows:
            y = forward(window)
        y.block_until_ready()

    def run_continual() -> None:
        with torch.inference_mode():
            for tensor in tensors:
                peer.forward_step(tensor)

    return {
        "continual, forward_step": run_continual,
        "cojax, jitted step": run_step,
        "cojax, Stream": run_stream,
        "cojax, window recomputed": run_window,
    }


def _compare(net: co.CoModule, variables: Any, peer: Any, clip: np.ndarray) -> None:
    with torch.inference_mode():
        expected = peer.forward_steps(torch.from_numpy(clip)).numpy()
        peer.clean_state()
    np.testing.assert_allclose(net.apply(variables, clip), expected, rtol=1e-4, atol=1e-5)


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """The table, as JSON."""
    times = side_by_side(ways(steps), rounds)
    window_steps = steps - activity_network().receptive_field + 1
    counts = dict.fromkeys(times, steps) | {"cojax, window recomputed": window_steps}
    per_step = {name: [t / counts[name] for t in seconds] for name, seconds in times.items()}
    rows = {
        name: {
            "us_per_step": Spread.of([t * 1e6 for t in seconds])._asdict(),
            "continual_takes_times": ratios(per_step, "continual, forward_step", name)._asdict(),
        }
        for name, seconds in per_step.items()
    }
    return {"network": "demo", "batch": 1, "rounds": rounds, "steps": steps, "rows": rows}


def main() -> None:
    """Measures, prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    result = conditions() | {"threads": threads} | measure(options.rounds, options.steps)
    print(", ".join(f"{name} {value}" for name, value in conditions().items()))
    print(f"\n{'demo network, batch 1':28}{'us per step':>26}{'continual takes x times':>30}")
    for name, row in result["rows"].items():
        took, ratio = (Spread(**row[key]) for key in ("us_per_step", "continual_takes_times"))
        print(f"{name:28}{f'{took:.0f}':>26}{f'{ratio:.1f}':>30}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
