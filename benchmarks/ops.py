"""Steps of single layers alone, within a cond and within a scan, and their gradients.

    python -m benchmarks.ops [--batch 1] [--device cpu|gpu] [--json FILE] [NAME ...]

How XLA compiles an operation depends on its context. A layer's compiled step is timed by itself, as
the taken branch of a ``lax.cond``, and as a step of a ``lax.scan``; so are the gradients of one
step and of a scan. The gradient of a scan is with regard to frames and parameters. That of one step
also takes the gradient with regard to the memory from a later step and returns its own, as within a
scan. States are donated, and frames have their channels last, as within a network. The table has
the time of one step by itself, and the other times as multiples of it; the gradient of a scan is a
multiple of that of one step. The row "nothing" has the time that it takes to pass a frame to a scan
and back.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cojax as co
from benchmarks.harness import (
    Disagreement,
    Job,
    aligned,
    compiled,
    on_jax,
    parser,
    per_turn,
    run,
    set_up,
    short,
)
from benchmarks.pairs import Spread, ratios

_STEPS = 16


class Op(NamedTuple):
    """A layer, and the shape of its step without the batch."""

    layer: co.CoModule
    step: tuple[int, ...]


def _conv(channels: int, out: int, size: int, kernel: Any, stride: int = 1, groups: int = 1) -> Op:
    time, *space = kernel
    padding = (time // 2, *(k // 2 for k in space))
    conv = co.Conv3d(channels, out, kernel, (1, stride, stride), padding, groups=groups)
    return Op(conv, (channels, size, size))


OPS = {
    "pointwise": _conv(108, 48, 28, (1, 1, 1)),
    "spatial": _conv(128, 128, 28, (1, 3, 3)),
    "stem": _conv(3, 24, 112, (1, 3, 3), stride=2),
    "temporal, to fewer": _conv(1024, 256, 14, (3, 1, 1)),
    "temporal": Op(co.Conv2d(128, 128, (9, 1)), (128, 50)),
    "depthwise": _conv(54, 54, 56, (3, 3, 3), groups=54),
    "strided depthwise": _conv(54, 54, 112, (3, 3, 3), stride=2, groups=54),
    "maximum": Op(co.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), (64, 56, 56)),
    "mean": Op(co.AvgPool3d((64, 7, 7), 1), (432, 7, 7)),
    "norm": Op(co.BatchNorm3d(54), (54, 56, 56)),
    "nothing": Op(co.Identity(), (54, 56, 56)),
    "delay": Op(co.Delay(16), (54, 56, 56)),
    "attention": Op(co.SingleOutputMultiheadAttention(256, 8, sequence_len=64), (256,)),
    "LSTM": Op(co.LSTM(128, 128), (128,)),
}


class Ways:
    """The compiled steps of a layer, in each place.

    Attributes:
      compile_seconds: the seconds for lowering and compiling, by place.
    """

    def __init__(self, op: Op, job: Job):
        rng = np.random.default_rng(0)
        channels, *space = op.step
        xs = rng.standard_normal((_STEPS, job.batch, *space, channels), np.float32)
        self._xs = on_jax(xs, job)
        self._x = self._xs[0]
        variables = op.layer.init(jax.random.key(0), method="declare")
        self._variables = jax.tree.map(lambda leaf: on_jax(np.asarray(leaf), job), variables)
        self._fresh = partial(op.layer.init_state, (job.batch, *op.step))

        def step(variables: Any, state: Any, x: Any) -> Any:
            x = jnp.moveaxis(x, -1, 1)
            frame, state = op.layer.apply(variables, state, x, method="forward_step")
            return jnp.moveaxis(frame.value, 1, -1), state

        def steps(variables: Any, state: Any, xs: Any) -> Any:
            def body(state: Any, x: Any) -> Any:
                y, state = step(variables, state, x)
                return state, y

            state, ys = jax.lax.scan(body, state, xs)
            return ys, state

        def in_cond(variables: Any, state: Any, x: Any) -> Any:
            y = jax.eval_shape(step, variables, state, x)[0]

            def not_taken(variables: Any, state: Any, x: Any) -> Any:
                return jnp.zeros(y.shape, y.dtype), state

            return jax.lax.cond(jnp.isfinite(x.ravel()[0]), step, not_taken, variables, state, x)

        def gradient(variables: Any, state: Any, x: Any) -> Any:
            memory, back = state
            floats, counters = _parted(memory)

            def run(params: Any, floats: Any, x: Any) -> Any:
                y, after = step({**others, "params": params}, floats | counters, x)
                floats, rest = _parted(after)
                return (y, floats), rest

            params = variables.get("params", {})
            (y, floats), pull, counters = jax.vjp(run, params, floats, x, has_aux=True)
            params, back, x = pull((2 * y, back))
            return (params, x), (floats | counters, back)

        def gradient_of_scan(variables: Any, state: Any, xs: Any) -> Any:
            def energy(given: Any) -> Any:
                params, xs = given
                y, after = steps({**others, "params": params}, state, xs)
                return jnp.sum(y.astype(jnp.float32) ** 2), after

            return jax.grad(energy, has_aux=True)((variables.get("params", {}), xs))

        def with_gradient() -> Any:
            state = self._fresh()
            return state, _parted(self._fresh())[0]

        others = {name: tree for name, tree in self._variables.items() if name != "params"}
        places = {
            "alone": (step, self._fresh, self._x),
            "cond": (in_cond, self._fresh, self._x),
            "scan": (steps, self._fresh, self._xs),
            "gradient": (gradient, with_gradient, self._x),
            "gradient of scan": (gradient_of_scan, self._fresh, self._xs),
        }
        self._places, self.compile_seconds = {}, {}
        self._given = {name: (state, x) for name, (_, state, x) in places.items()}
        for name, (function, state, x) in places.items():
            jitted = jax.jit(function, donate_argnums=1)
            given = self._variables, state(), x
            self._places[name], self.compile_seconds[name] = compiled(jitted, *given)

    def check(self) -> None:
        """Raises a Disagreement unless a step has the same output in each place."""
        variables, x = self._variables, self._x
        alone, _ = self._places["alone"](variables, self._fresh(), x)
        branch, _ = self._places["cond"](variables, self._fresh(), x)
        scanned, _ = self._places["scan"](variables, self._fresh(), self._xs)
        for y in (branch, scanned[0]):
            if not np.allclose(
                np.asarray(y, np.float32), np.asarray(alone, np.float32), 1e-2, 1e-2
            ):
                raise Disagreement("a step gives something else elsewhere")

    def ways(self) -> dict[str, Callable[[int], None]]:
        """A function for each place, which takes the number of calls."""

        def way(name: str, times: int) -> None:
            fresh, x = self._given[name]
            state = fresh()
            for _ in range(times):
                out, state = self._places[name](self._variables, state, x)
            jax.block_until_ready(out)

        return {name: partial(way, name) for name in self._places}


def _parted(state: Any) -> tuple[Any, Any]:
    """The parts of a state that have a gradient, and its counters."""
    floats = {n: v for n, v in state.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    return floats, {n: v for n, v in state.items() if n not in floats}


def measure(job: Job) -> dict[str, Any]:
    """All figures of a layer at a batch size."""
    set_up(job)
    ways = Ways(OPS[job.network], job)
    ways.check()
    times = per_turn(ways.ways(), job)
    times = {
        name: [seconds / (_STEPS if "scan" in name else 1) for seconds in took]
        for name, took in times.items()
    }
    pairs = {"cond": "alone", "scan": "alone", "gradient": "alone", "gradient of scan": "gradient"}
    return {
        "step": OPS[job.network].step,
        "us": {name: Spread.of([t * 1e6 for t in took])._asdict() for name, took in times.items()},
        "times": {name: ratios(times, name, base)._asdict() for name, base in pairs.items()},
        "compile_seconds": ways.compile_seconds,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the time of a step by itself, and of its multiples in other places."""
    header = ("layer", "step", "alone, us", "cond", "scan", "gradient", "gradient of scan")
    cells = [
        (
            row["network"],
            "x".join(map(str, row["step"])),
            short(row["us"]["alone"]["median"]),
            *(short(row["times"][name]["median"]) for name in ("cond", "scan", "gradient")),
            short(row["times"]["gradient of scan"]["median"]),
        )
        for row in rows
    ]
    explained = (
        "cond, scan, gradient: how many times as long as alone. gradient of scan: how many times\n"
        "as long, a step, as the gradient of one."
    )
    return f"{aligned(header, cells)}\n\n{explained}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures as JSON."""
    run(parser(__doc__.split("\n")[0], tuple(OPS), (1,)), tuple(OPS), measure, table, arguments)


if __name__ == "__main__":
    main()
