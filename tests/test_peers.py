"""cojax beside its peers with the same weights: torch.nn, which decides, and ``continual``."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

import cojax as co
from benchmarks.peers import NoPeer, to_continual, to_torch_nn
from cojax.frames import map_streams
from tests.laws import Bench, at, check_receptive_field, clip_of, part
from tests.networks import random_network, random_variables
from tests.peer_cases import (
    AGREED,
    BUILDING,
    DELAY,
    FAULTS,
    FIELD,
    FORWARD,
    FUNCTIONAL,
    FUNCTIONS,
    MODES,
    PAD_END,
    RESUMED,
    STEP,
    STEPS,
    WITHOUT_CONTINUAL,
    gated,
)

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


# Random networks are compiled with all optimisations, in test_compositions.
pytestmark = pytest.mark.usefixtures("quick_compilation")


def streams(value: Any) -> list[np.ndarray] | None:
    """The arrays of one stream or several; None where there is no output."""
    if isinstance(value, tuple | list):
        each = [streams(one) for one in value]
        return None if None in each else [array for arrays in each for array in arrays]
    return None if value is None else [np.asarray(value)]


def emitted(read: Callable[[co.Frame], Any], frames: Any) -> list[np.ndarray] | None:
    return streams(map_streams(read, jax.tree.map(np.asarray, frames)))


Outputs = list[list[np.ndarray] | None]


def assert_alike(ours: Outputs, others: Outputs, what: str) -> None:
    assert len(ours) == len(others), what
    for t, (our, other) in enumerate(zip(ours, others, strict=True)):
        assert (our is None) == (other is None), f"{what}: only one is None, at {t}"
        for a, b in zip(our or [], other or [], strict=True):
            assert a.shape == b.shape, what
            np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=f"{what}, at {t}")


def thirds(steps: int) -> tuple[int, int]:
    """Where a stream of single steps becomes a chunk (of half its length), and steps again."""
    return steps // 4, steps // 4 + steps // 2


class Ours:
    """What cojax gives. Clips and frames are numpy's, whose slices need no compilation."""

    def __init__(self, net: co.CoModule, variables: Any, x: jax.Array):
        self.bench = Bench(net, np.asarray(x), variables)
        self.forward, self.stream = jax.jit(
            lambda x: [net.apply(variables, x, method=m) for m in ("forward", "forward_stream")]
        )(x)

    def steps(self, state: Any, start: int, stop: int) -> tuple[Outputs, Any]:
        outputs = []
        for t in range(start, stop):
            frame, state = self.bench.step(state, at(self.bench.x, t))
            outputs.append(emitted(co.Frame.or_none, frame))
        return outputs, state

    def chunk(self, state: Any, start: int, stop: int, pad_end: bool) -> tuple[Outputs, Any]:
        frames, state = self.bench.chunk(state, part(self.bench.x, start, stop), pad_end=pad_end)
        return [emitted(co.Frame.dense, frames)], state

    def run(self, mode: str) -> Outputs:
        steps, fresh = self.bench.steps, self.bench.fresh()
        if mode == FORWARD:
            return [streams(self.forward)]
        if mode in (STEP, FUNCTIONAL):
            return self.steps(fresh, 0, steps)[0]
        if mode == PAD_END:
            return self.chunk(fresh, 0, steps, True)[0]
        half = steps // 2
        if mode in (STEPS, RESUMED):
            before, state = self.chunk(fresh, 0, half, mode == RESUMED)
            after, _ = self.chunk(state, half, 2 * half, False)
            return after if mode == RESUMED else before + after
        first, last = thirds(steps)
        before, state = self.steps(fresh, 0, first)
        between, state = self.chunk(state, first, last, False)
        after, state = self.steps(state, last, steps)
        return before + between + after


class Theirs:
    """What ``continual`` gives."""

    def __init__(self, build: Callable[[], Any], x: jax.Array):
        self.build, self.x = build, torch.from_numpy(np.array(x))

    @torch.no_grad()
    def run(self, mode: str) -> Outputs:
        peer, x, steps = self.build(), self.x, self.x.shape[2]
        if mode == FORWARD:
            y = peer.forward(x)
            # On its own, a recurrent layer returns its hidden state too.
            return [streams(y[0] if isinstance(peer, nn.RNNBase) else y)]
        if mode == STEP:
            return [streams(peer.forward_step(x_t)) for x_t in x.unbind(2)]
        if mode == FUNCTIONAL:
            state, outputs = None, []
            for x_t in x.unbind(2):
                y, state = peer._forward_step(x_t, state)
                outputs.append(streams(y))
            return outputs
        if mode == PAD_END:
            return [streams(peer.forward_steps(x, pad_end=True))]
        half = steps // 2
        if mode in (STEPS, RESUMED):
            before = [streams(peer.forward_steps(x[:, :, :half], pad_end=mode == RESUMED))]
            after = [streams(peer.forward_steps(x[:, :, half : 2 * half]))]
            return after if mode == RESUMED else before + after
        first, last = thirds(steps)
        before = [streams(peer.forward_step(x_t)) for x_t in x[:, :, :first].unbind(2)]
        between = [streams(peer.forward_steps(x[:, :, first:last]))]
        after = [streams(peer.forward_step(x_t)) for x_t in x[:, :, last:].unbind(2)]
        return before + between + after


def due(net: co.CoModule, y: list[np.ndarray], mode: str, steps: int) -> Outputs:
    """What a mode must give, by torch's clip and the network's timing."""
    leaving = {t: k for k, t in enumerate(net.timing.outputs(steps))}

    def step(t: int) -> list[np.ndarray] | None:
        return [stream[:, :, leaving[t]] for stream in y] if t in leaving else None

    def chunk(start: int, stop: int) -> list[np.ndarray] | None:
        numbers = [leaving[t] for t in range(start, stop) if t in leaving]
        return [stream[:, :, numbers] for stream in y] if numbers else None

    if mode in (FORWARD, PAD_END):
        return [y]
    half = steps // 2
    if mode in (STEPS, RESUMED):
        return [chunk(0, half), chunk(half, 2 * half)][mode == RESUMED :]
    if mode in (STEP, FUNCTIONAL):
        return [step(t) for t in range(steps)]
    first, last = thirds(steps)
    return [*map(step, range(first)), chunk(first, last), *map(step, range(last, steps))]


@torch.no_grad()
def torch_outputs(net: co.CoModule, variables: Any, x: jax.Array, as_stream: bool) -> Any:
    peer = to_torch_nn(net, variables, FUNCTIONS, as_stream=as_stream)
    return streams(peer(torch.from_numpy(np.array(x))))


def checked_against_torch(
    net: co.CoModule, variables: Any, x: jax.Array, modes: Iterable[str] = MODES
) -> Ours:
    """cojax, after all its modes were compared with torch."""
    ours, steps = Ours(net, variables, x), x.shape[2]
    clip = torch_outputs(net, variables, x, as_stream=False)
    stream = torch_outputs(net, variables, x, as_stream=True)
    assert_alike([streams(ours.stream)], [stream], "forward_stream and torch")
    for mode in modes:
        y = clip if mode == FORWARD else stream
        assert_alike(ours.run(mode), due(net, y, mode, steps), f"{mode} and torch")
    return ours


def check_beside_peers(net: co.CoModule, variables: Any, x: jax.Array) -> None:
    ours = checked_against_torch(net, variables, x)
    theirs = Theirs(lambda: to_continual(net, variables, FUNCTIONS), x)
    for mode in MODES:
        assert_alike(ours.run(mode), theirs.run(mode), f"{mode} and continual")


@pytest.mark.parametrize("name", AGREED)
def test_every_mode_equals_torch_and_continual(name):
    net, shape = AGREED[name].net(), AGREED[name].shape
    check_beside_peers(net, random_variables(net, 0), clip_of(shape))


@pytest.mark.parametrize("name", WITHOUT_CONTINUAL)
def test_every_mode_equals_torch_where_continual_has_no_peer(name):
    net, shape = WITHOUT_CONTINUAL[name].net(), WITHOUT_CONTINUAL[name].shape
    variables = random_variables(net, 0)
    checked_against_torch(net, variables, clip_of(shape))
    with pytest.raises(NoPeer):
        to_continual(net, variables)


def is_wrong(mode: str, ours: Ours, theirs: Theirs) -> bool:
    """Whether ``continual`` differs from cojax, or fails."""
    timing = ours.bench.net.timing
    try:
        peer = theirs.build()
        if mode == FIELD:
            return peer.receptive_field != timing.receptive_field
        if mode == DELAY:
            emitted = [output is not None for output in theirs.run(STEP)]
            return peer.delay != emitted.index(True) == timing.delay
        assert_alike(ours.run(mode), theirs.run(mode), mode)
    except (AssertionError, RuntimeError, TypeError, LookupError, AttributeError):
        return True
    return False


@pytest.mark.parametrize("name", FAULTS)
def test_torch_decides_for_cojax_where_continual_is_wrong(name):
    case = FAULTS[name]
    net, x = case.net(), clip_of(case.shape)
    variables = random_variables(net, 0)
    runs = [mode for mode in (*MODES, FUNCTIONAL, RESUMED) if mode in (*MODES, *case.wrong)]
    ours = checked_against_torch(net, variables, x, runs)
    if FIELD in case.wrong:
        check_receptive_field(ours.bench)

    def built() -> Any:
        if case.peer is None:
            return to_continual(net, variables, FUNCTIONS)
        peer = case.peer().eval()
        peer.load_state_dict(co.to_torch(net, variables, delayed_names=True), strict=True)
        return peer

    theirs = Theirs(built, x)
    compared = {BUILDING} if BUILDING in case.wrong else {*MODES, *case.wrong}
    assert {mode for mode in compared if is_wrong(mode, ours, theirs)} == set(case.wrong)


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_equal_torch_in_every_mode(seed):
    net, shape = random_network(seed)
    checked_against_torch(net, random_variables(net, seed), clip_of(shape, seed))


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_equal_continual_in_every_mode(seed):
    net, shape = random_network(seed, for_continual=True)
    check_beside_peers(net, random_variables(net, seed), clip_of(shape, seed))


@pytest.mark.parametrize(
    "net",
    [
        co.AdaptiveAvgPool2d((1, 2), kernel_size=4),
        co.AdaptiveMaxPool2d((1, 3), kernel_size=3, stride=2),
    ],
)
def test_steps_of_adaptive_pools_equal_torch_over_the_last_steps(net):
    x, length = clip_of((2, 3, 9, 4)), net.kernel_size[0]
    bench = Bench(net, x, {"params": {}})
    pool, peer = to_torch_nn(net, bench.variables), to_continual(net, bench.variables)
    clip = torch.from_numpy(np.array(x))
    frames, _ = bench.stepped()
    for t, frame in enumerate(frames):
        y = peer.forward_step(clip[:, :, t])
        assert (y is None) == (frame.or_none() is None) == (not net.timing.emits(t))
        if y is not None:
            window = pool(clip[:, :, t - length + 1 : t + 1])[:, :, 0]
            assert_alike([streams(frame.value)] * 2, [streams(window), streams(y)], f"step {t}")


# The builders themselves.


class Unheard(co.CoModule):
    """A layer of which no peer knows."""


@pytest.mark.parametrize("build", [to_continual, to_torch_nn])
def test_a_layer_without_a_peer_is_named(build):
    with pytest.raises(NoPeer, match="Unheard"):
        build(co.Sequential(co.ReLU(), Unheard()), {"params": {}})


@pytest.mark.parametrize("build", [to_continual, to_torch_nn])
def test_a_function_without_a_translation_is_named(build):
    with pytest.raises(NoPeer, match="gated"):
        build(co.Lambda(gated), {"params": {}})


def test_a_predicate_of_the_data_has_no_peer():
    net = co.Conditional(lambda module, x, train: x.mean() > 0, co.ReLU())
    with pytest.raises(NoPeer, match="predicate"):
        to_torch_nn(net, {"params": {}})(torch.zeros(1, 2, 3))
