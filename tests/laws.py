"""The laws that every module keeps, checked for any network and clip.

``check_laws(net, x)`` checks them all. What a network is exempt from is named by the caller.
"""

import collections
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cojax as co
from cojax.frames import flat_streams, map_streams, spec_of, without_time
from tests.networks import random_variables

_compilations: collections.Counter[str] = collections.Counter()


def _count(event: str, _seconds: float, fun_name: str = "", **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compilations[fun_name] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


@contextmanager
def compilations(expected: int, of: str) -> Iterator[None]:
    """Fails unless the jitted function of this name is compiled so many times within."""
    before = _compilations[f"jit({of})"]
    yield
    assert _compilations[f"jit({of})"] - before == expected


def variables_of(net: co.CoModule, seed: int = 0) -> dict[str, Any]:
    """Random variables, batch statistics included (variances and scales positive)."""
    return random_variables(net, seed)


def clip_of(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def tolerance(dtype: Any) -> dict[str, float]:
    return {"rtol": 1e-9, "atol": 1e-10} if dtype == jnp.float64 else {"rtol": 1e-4, "atol": 1e-5}


def assert_close(a: Any, b: Any, what: str, dtype: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b), what
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape, f"{what}: {x.shape} and {y.shape}"
        np.testing.assert_allclose(x, y, **tolerance(dtype), err_msg=what)


def assert_same_bits(a: Any, b: Any, what: str) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b), what
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), what


def at(x: Any, t: int) -> Any:
    return map_streams(lambda stream: stream[:, :, t], x)


def part(x: Any, start: int, stop: int) -> Any:
    return map_streams(lambda stream: stream[:, :, start:stop], x)


def picked(frames: Any, places: np.ndarray) -> Any:
    """The outputs at these input steps, ``(B, C, len(places), *S)``."""
    return map_streams(lambda frame: frame.value[:, :, places], frames)


class Bench:
    """A network, its variables, a clip, and its modes compiled once each.

    The clip, the frames and the states are numpy's, whose slices need no compilation.
    """

    def __init__(self, net: co.CoModule, x: Any, variables: Any = None):
        self.net, self.x = net, map_streams(np.asarray, x)
        self.variables = variables_of(net) if variables is None else variables
        self.params = self.variables.get("params", {})
        self.rest = {k: v for k, v in self.variables.items() if k != "params"}
        first = flat_streams(x)[0]
        self.steps, self.dtype = first.shape[2], first.dtype
        self.spec = map_streams(lambda stream: without_time(spec_of(stream)), x)
        self.step = jax.jit(self._step)
        self.chunk = jax.jit(self._chunk, static_argnames=("pad_end", "at_once"))

    def fresh(self) -> Any:
        return jax.device_get(self.net.init_state(self.spec))

    def _step(self, state: Any, x_t: Any) -> Any:
        return self.net.apply(self.variables, state, x_t, method="forward_step")

    def _chunk(self, state: Any, xs: Any, pad_end: bool = False, at_once: bool = False) -> Any:
        return self.net.apply(
            self.variables, state, xs, pad_end, at_once=at_once, method="forward_steps"
        )

    def applied(self, params: Any, x: Any, method: str) -> Any:
        return self.net.apply({"params": params, **self.rest}, x, method=method)

    def stepped(self) -> tuple[list[Any], list[Any]]:
        """The frame of every step of the clip, and the states before each and after the last."""
        state, frames, states = self.fresh(), [], []
        for t in range(self.steps):
            states.append(state)
            frame, state = jax.device_get(self.step(state, at(self.x, t)))
            frames.append(frame)
        return frames, [*states, state]


def check_laws(
    net: co.CoModule,
    x: Any,
    *,
    variables: Any = None,
    receptive_field: bool = True,
    stream_equals_clip: bool = True,
    gradients: bool = True,
    rows: bool = True,
) -> None:
    """Checks every law for a network and a clip (or a tuple of clips)."""
    bench = Bench(net, x, variables)
    check_dtypes(bench)
    frames, states = check_steps(bench)
    check_chunks(bench, frames, states)
    check_independent_streams(bench, states, rows)
    if stream_equals_clip:
        check_stream_equals_clip(bench, frames, gradients)
    if receptive_field:
        check_receptive_field(bench)


def check_steps(bench: Bench) -> tuple[list[Any], list[Any]]:
    """Laws 3 and 5: validity is the timing's; states are values; one compilation serves all."""
    with compilations(1, of="_step"):
        frames, states = bench.stepped()
    for t, frame in enumerate(frames):
        for each in flat_streams(frame):
            assert bool(each.valid) == bench.net.timing.emits(t), f"valid at step {t}"
    middle = bench.steps // 2
    again, _ = bench.step(states[middle], at(bench.x, middle))
    assert_same_bits(again, frames[middle], "a state used twice")
    return frames, states


def check_chunks(bench: Bench, frames: list[Any], states: list[Any]) -> None:
    """Law 2: any way of cutting a stream gives the same outputs and states, scanned or at once."""
    half = bench.steps // 2
    first, state = bench.chunk(bench.fresh(), part(bench.x, 0, half))
    second, state = bench.chunk(state, part(bench.x, half, 2 * half))
    assert_close(state, states[2 * half], "state after chunks", bench.dtype)
    chunks = [(0, first), (half, second)]
    for start in sorted({0, 1, half}):
        given = part(bench.x, start, start + half)
        chunk, state = bench.chunk(states[start], given, at_once=True)
        assert_close(state, states[start + half], "state after a chunk at once", bench.dtype)
        chunks.append((start, chunk))
    for start, chunk in jax.device_get(chunks):
        for t in range(half):
            for each, stepped in zip(
                flat_streams(chunk), flat_streams(frames[start + t]), strict=True
            ):
                assert bool(each.valid[t]) == bool(stepped.valid), f"valid in chunk at {t}"
                if stepped.valid:
                    assert_close(
                        each.value[:, :, t], stepped.value, f"chunk at {start + t}", bench.dtype
                    )


def check_stream_equals_clip(bench: Bench, frames: list[Any], gradients: bool) -> None:
    """Laws 1 and 7: a flushed stream equals the clip, and so do gradients.

    The stream has gaps. A NaN in an invalid frame reaches no output, no state and no gradient.
    """
    timing, steps = bench.net.timing, bench.steps
    valid = np.zeros(2 * steps + 1, bool)
    valid[1::2] = True
    (places,) = np.nonzero(valid)
    # Where outputs leave, given that the stream is flushed behind its gaps.
    leaving = np.array([places[t] if t < steps else t + steps + 1 for t in timing.outputs(steps)])

    def clip(params: Any, x: Any, blank: jax.Array) -> Any:
        return bench.applied(params, x, "forward"), None

    def stream(params: Any, x: Any, blank: jax.Array) -> Any:
        def gapped(x: jax.Array) -> co.Frame:
            value = jnp.full((*x.shape[:2], len(valid), *x.shape[3:]), blank, x.dtype)
            return co.Frame(value.at[:, :, places].set(x), jnp.asarray(valid))

        frames, state = bench.net.apply(
            {"params": params, **bench.rest}, bench.fresh(), map_streams(gapped, x),
            pad_end=True,
            method="forward_steps",
        )  # fmt: skip
        return picked(frames, leaving), (state, [frame.valid for frame in flat_streams(frames)])

    @jax.jit
    def both(*args: Any) -> Any:
        def loss(*args: Any, way: Any) -> tuple[jax.Array, Any]:
            y, rest = way(*args)
            # Unequal weights, so that a misplaced output shows.
            total = sum(
                jnp.sum(jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) * leaf)
                for leaf in flat_streams(y)
            )
            return total, (y, rest)

        if not gradients:
            return [(*way(*args), 0) for way in (clip, stream)]
        graded = (
            jax.value_and_grad(functools.partial(loss, way=way), (0, 1), has_aux=True)(*args)
            for way in (clip, stream)
        )
        return [(y, rest, grads) for (_, (y, rest)), grads in graded]

    (y, _, grads), streamed = jax.device_get(both(bench.params, bench.x, np.nan))
    _, clean = jax.device_get(both(bench.params, bench.x, 0.0))
    assert_same_bits(streamed, clean, "outputs, states and gradients beside NaN frames")
    outputs, (_, emitted), stream_grads = streamed
    for each in emitted:
        np.testing.assert_array_equal(np.nonzero(each)[0], leaving, "where outputs leave")
    assert_close(outputs, y, "a stream with gaps and the clip", bench.dtype)
    assert_close(stream_grads, grads, "gradients", bench.dtype)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stream_grads)), "gradients"

    whole = jax.jit(lambda x: bench.applied(bench.params, x, "forward_stream"))(bench.x)
    assert_close(whole, y, "forward_stream and forward", bench.dtype)
    for k, t in enumerate(t for t in timing.outputs(steps) if t < steps):
        for each, frame in zip(flat_streams(y), flat_streams(frames[t]), strict=True):
            assert_close(frame.value, each[:, :, k], f"step {t} is output {k}", bench.dtype)


def check_skipping(net: co.CoModule, x: Any, variables: Any = None, seed: int = 0) -> None:
    """A stream with gaps gives the same frames and states whether or not its steps skip."""
    bench = Bench(net, x, variables)
    valid = np.random.default_rng(seed).random(bench.steps) < 0.8

    def gapped(x: jax.Array, t: int) -> co.Frame:
        return co.Frame(x[:, :, t] if valid[t] else x[:, :, t] * jnp.nan, jnp.asarray(valid[t]))

    @jax.jit
    def skipping(state: Any, x_t: Any) -> Any:
        return net.apply(bench.variables, state, x_t, skip=True, method="forward_step")

    state, answers = bench.fresh(), 0
    expected = state
    with compilations(1, of="skipping"), compilations(1, of="_step"):
        for t in range(bench.steps):
            x_t = map_streams(lambda x, t=t: gapped(x, t), bench.x)
            frames, state = skipping(state, x_t)
            masked, expected = bench.step(expected, x_t)
            for each, other in zip(flat_streams(frames), flat_streams(masked), strict=True):
                assert bool(each.valid) == bool(other.valid), f"valid at step {t}"
                if each.valid:
                    answers += 1
                    assert_close(each.value, other.value, f"skipping at step {t}", bench.dtype)
            assert_close(state, expected, f"state, skipping at step {t}", bench.dtype)
            assert jax.tree.map(spec_and_type, state) == jax.tree.map(spec_and_type, expected)
    assert answers, "the stream is too short to show anything"


def spec_and_type(leaf: jax.Array) -> tuple[Any, bool]:
    """Shape and dtype, and whether the type is weak."""
    return spec_of(leaf), leaf.weak_type


def check_independent_streams(bench: Bench, states: list[Any], rows: bool) -> None:
    """Law 6: vmapped streams, each at its own place, and batch rows do not touch each other."""
    places = sorted({1, bench.steps // 2, bench.steps - 1})
    steps = [at(bench.x, t) for t in places]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[states[t] for t in places])
    inputs = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    frames, after = jax.device_get(jax.jit(jax.vmap(bench._step))(stacked, inputs))
    for i, t in enumerate(places):
        own_frame, own_state = jax.device_get(bench.step(states[t], steps[i]))
        state = jax.tree.map(lambda leaf, i=i: leaf[i], after)
        assert_close(state, own_state, "vmapped state", bench.dtype)
        for each, own in zip(flat_streams(frames), flat_streams(own_frame), strict=True):
            assert bool(each.valid[i]) == bool(own.valid)
            if own.valid:
                assert_close(each.value[i], own.value, f"stream at step {t}", bench.dtype)
    last = bench.steps - 1
    if rows and flat_streams(bench.x)[0].shape[0] > 1:
        other = map_streams(lambda x: np.concatenate([x[:1], -3 * x[1:]]), steps[-1])
        changed, _ = jax.device_get(bench.step(states[last], other))
        frame, _ = jax.device_get(bench.step(states[last], steps[-1]))
        for a, b in zip(flat_streams(changed), flat_streams(frame), strict=True):
            assert_same_bits(a.value[0], b.value[0], "a row beside another row")


def check_dtypes(bench: Bench) -> None:
    """Law 10, and states whose structure, shapes, dtypes and strong types are fixed."""
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        if dtype == jnp.float64 and not jax.config.jax_enable_x64:
            continue
        spec = map_streams(lambda s, dtype=dtype: jax.ShapeDtypeStruct(s.shape, dtype), bench.spec)
        state = jax.eval_shape(lambda spec=spec: bench.net.init_state(spec))
        frame, after = jax.eval_shape(bench._step, state, spec)
        assert all(not leaf.weak_type for leaf in jax.tree.leaves(after)), "weak types in a state"
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), state
        )
        clip = map_streams(
            lambda s: jax.ShapeDtypeStruct((*s.shape[:2], bench.steps, *s.shape[2:]), s.dtype), spec
        )
        y = jax.eval_shape(lambda x: bench.net.apply(bench.variables, x), clip)
        for out in [*(f.value for f in flat_streams(frame)), *flat_streams(y)]:
            assert out.dtype == dtype, f"{dtype} became {out.dtype}"
        assert map_streams(lambda f: f.value.shape, frame) == map_streams(
            lambda s: s.shape, bench.net.output_spec(spec)
        ), "output_spec and the step"
    batch = flat_streams(bench.spec)[0].shape[0]
    for leaf in jax.tree.leaves(bench.net.init_state(bench.spec)):
        assert not leaf.weak_type
        assert leaf.ndim == 0 or leaf.shape[0] == batch


def check_receptive_field(bench: Bench) -> None:
    """Law 4: the declared receptive field is the measured one."""
    timing = bench.net.timing
    # An output that sees no padding, not even within the network, and comes before the end.
    first = -(-(max(timing.padding, 0) + timing.receptive_field) // timing.stride)
    start = first * timing.stride - timing.padding
    steps = start + 2 * timing.receptive_field + timing.stride + timing.delay

    def reached(x: Any) -> Any:
        y = bench.applied(bench.params, x, "forward")
        return sum(jnp.sum(jnp.abs(leaf[:, :, first])) for leaf in flat_streams(y))

    def seen(seed: jax.Array) -> jax.Array:
        x = map_streams(
            lambda s: jax.random.normal(seed, (*s.shape[:2], steps, *s.shape[2:]), s.dtype),
            bench.spec,
        )
        grads = jax.grad(reached)(x)
        marks = [jnp.any(g != 0, axis=(0, 1, *range(3, g.ndim))) for g in flat_streams(grads)]
        return jnp.any(jnp.stack(marks), axis=0)

    seeds = jax.random.split(jax.random.key(0), 24)
    marks = np.asarray(jnp.any(jax.jit(jax.vmap(seen))(seeds), axis=0))
    (touched,) = np.nonzero(marks)
    assert (touched.min(), touched.max()) == (start, start + timing.receptive_field - 1), timing
