"""What is said of a network without running it, held against running it."""

import math
import sys
from collections.abc import Iterator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import subjaxprs
from torch.utils.flop_counter import FlopCounterMode

import cojax as co
from benchmarks.peers import to_torch_nn
from cojax.analysis.macs import _REGISTERED, _unknown
from cojax.analysis.timeline import EMITTED, FLUSHED
from cojax.demo.network import activity_network, trained_variables
from cojax.frames import Signal, flat_streams
from cojax.module import TimeLocal, walk
from cojax.timing import in_sequence
from tests import laws
from tests.networks import random_network, random_variables

SEEDS = range(12)


def macs_by_torch(net, variables, x):
    """What torch counts while the network's peer runs on such a clip: two for each MAC."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        to_torch_nn(net, variables).double()(torch.zeros(x, dtype=torch.float64))
    return Fraction(counter.get_total_flops(), 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clip_costs_what_torch_counts(seed):
    net, shape = random_network(seed)
    macs = co.flops(net, shape, mode="forward")
    assert macs.total == macs_by_torch(net, random_variables(net, seed), shape)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (co.Conv1d(6, 4, 3, 2, 1, 2, groups=2), (2, 6, 12)),
        (co.Conv2d(4, 8, (3, 5), (2, 3), (1, 2), (1, 2), groups=4, bias=False), (1, 4, 7, 11)),
        (co.Conv3d(3, 5, (3, 3, 2), (1, 2, 1), (2, 1, 0)), (1, 3, 6, 8, 5)),
        (co.Conv3d(3, 6, 3, groups=3, padding=1, padding_mode="circular"), (1, 3, 4, 5, 5)),
        (co.Linear(7, 3), (2, 4, 5, 7)),
        (co.Linear(4, 3, bias=False, channel_dim=1), (2, 4, 5, 7, 2)),
    ],
)
def test_a_layer_costs_what_torch_counts_in_clips_and_in_steps(net, shape):
    macs = co.flops(net, shape, mode="forward")
    assert macs.total == macs.macs.linear == macs_by_torch(net, random_variables(net, 0), shape)
    assert macs.per_output == co.flops(net, (*shape[:2], *shape[3:])).per_output


def multiplied(jaxpr):
    """The MACs of the matrix products in a program without loops."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(
                left[axis] for axis in contracted
            )
    return total + sum(map(multiplied, subjaxprs(jaxpr)))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (co.LSTM(5, 4, num_layers=3, proj_size=2), (2, 5, 1)),
        (co.GRU(5, 4), (2, 5, 1)),
        (co.SingleOutputMultiheadAttention(6, 3, sequence_len=5), (2, 6, 9)),
        (co.SingleOutputMultiheadAttention(6, 3, sequence_len=5, query_index=1), (2, 6, 9)),
        (
            co.SingleOutputMultiheadAttention(
                6, 2, add_bias_kv=True, sequence_len=4, single_output_forward=False
            ),
            (2, 6, 9),
        ),
        (co.RetroactiveMultiheadAttention(6, 2, add_zero_attn=True, sequence_len=4), (2, 6, 9)),
        (co.WindowMultiheadAttention(6, 3), (2, 6, 4, 5)),
        (co.WindowMultiheadAttention(6, 3, add_bias_kv=True, query_index=0), (2, 6, 4, 5)),
    ],
)
def test_recurrence_and_attention_cost_the_matrix_products_they_are(net, shape):
    step, clip = multiplied_by(net, shape)
    assert co.flops(net, (*shape[:2], *shape[3:])).total == step
    assert co.flops(net, shape, mode="forward").total == clip


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (co.WindowMultiheadAttention(6, 3, query_index=0), (2, 6, 4, 5)),
        (
            co.TransformerEncoder(co.TransformerEncoderLayerFactory(6, 2, 8, sequence_len=4), 3),
            (2, 6, 9),
        ),
    ],
)
def test_attention_of_one_token_is_computed_in_fewer_products_than_it_counts(net, shape):
    step, clip = multiplied_by(net, shape)
    assert co.flops(net, (*shape[:2], *shape[3:])).total > step
    assert co.flops(net, shape, mode="forward").total > clip


def multiplied_by(net, shape):
    """The MACs of the matrix products of a step, and of a clip."""
    variables = laws.variables_of(net)
    step = (*shape[:2], *shape[3:])
    state = jax.eval_shape(lambda: net.init_state(step))
    x, x_t = (jax.ShapeDtypeStruct(each, "float32") for each in (shape, step))
    run = jax.make_jaxpr(lambda state, x: net.apply(variables, state, x, method="forward_step"))
    clip = jax.make_jaxpr(lambda x: net.apply(variables, x))
    return multiplied(run(state, x_t).jaxpr), multiplied(clip(x).jaxpr)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flushed_stream_makes_the_frames_of_the_clip_and_none_twice(seed):
    net, shape = random_network(seed)
    clip, stream = (co.flops(net, shape, mode=mode) for mode in ("forward", "forward_stream"))
    assert {layer.path: layer.macs for layer in stream.layers} == {
        layer.path: layer.macs for layer in clip.layers
    }
    assert stream.outputs == clip.outputs


# Strides in branches and behind them, padding, and branches of unequal delay.
STRIDED = co.Sequential(
    co.Residual(co.Conv1d(2, 2, 5, padding=2)),
    co.BroadcastReduce(
        {
            "wide": co.Sequential(co.Conv1d(2, 4, 5, 2, 2), co.Conv1d(4, 4, 3, padding=1)),
            "thin": co.Conv1d(2, 4, 3, 2, 1),
        }
    ),
    co.Broadcast(),
    co.Parallel(co.Conv1d(4, 2, 1, 3), co.MaxPool1d(3, 3, 1)),
    co.Reduce("concat"),
)


def prefixes(
    net: co.CoModule, path: tuple[str, ...] = (), before: tuple[co.CoModule, ...] = ()
) -> Iterator[tuple[tuple[str, ...], co.Sequential]]:
    """For each module, the network from the input up to its output, as the containers say it."""
    yield path, co.Sequential(*before, net)
    if not isinstance(net, co.Sequential) and before and isinstance(before[-1], co.Broadcast):
        before = before[:-1]
    for name, child in net.children().items():
        if isinstance(net, co.Sequential):
            yield from prefixes(child, (*path, name), before)
            before = (*before, child)
        else:
            yield from prefixes(child, (*path, name), (*before, co.Delay(net.shifts()[name])))


def emitted_alone(net: co.CoModule, shape: tuple[int, ...]) -> dict[tuple[str, ...], list[int]]:
    """The steps at which each module's outputs leave, found by running the network up to there."""
    steps = shape[2]
    networks = dict(prefixes(net))

    @jax.jit
    def run(clip):
        frames = {}
        for path, network in networks.items():
            specs = jax.eval_shape(lambda n=network: n.init(jax.random.key(0), method="declare"))
            variables = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)
            state = network.init_state(clip[:, :, 0])
            frame, _ = network.apply(variables, state, clip, True, method="forward_steps")
            frames[path] = flat_streams(frame)[0].valid
        return frames

    last = steps + net.timing.end
    return {
        path: np.flatnonzero(valid)[np.flatnonzero(valid) < last].tolist()
        for path, valid in run(jnp.zeros(shape)).items()
    }


@pytest.mark.parametrize(
    ("net", "shape"), [(STRIDED, (1, 2, 37)), *(random_network(seed) for seed in (5, 9, 14))]
)
def test_what_is_said_to_leave_when_leaves_then(net, shape):
    emitted, steps = emitted_alone(net, shape), shape[2]
    step = (*shape[:2], *shape[3:])

    timeline = co.timeline(net, step, steps)
    assert timeline.end == net.timing.end
    for row in timeline.rows[1:]:
        marks = list(enumerate(row.marks, start=timeline.first))
        assert [t for t, mark in marks if mark in (EMITTED, FLUSHED)] == emitted[row.path]
        assert all((t >= steps) == (mark == FLUSHED) for t, mark in marks if mark in "■□")

    stream = co.flops(net, shape, mode="forward_stream")
    fresh = co.flops(net, shape, mode="forward_steps")
    settled = co.flops(net, step)
    period = math.lcm(*(layer.times.denominator for layer in settled.layers))
    for flushed, unflushed, mean in zip(stream.layers, fresh.layers, settled.layers, strict=True):
        times = emitted[mean.path]
        assert flushed.times == len(times)
        assert unflushed.times == sum(t < steps for t in times)
        cycle = [t for t in times if times[0] <= t < times[0] + period]
        assert mean.times == Fraction(len(cycle), period)


def test_the_steps_of_a_cycle_cost_their_mean():
    net = co.Sequential(co.Conv1d(2, 3, 3, 2), co.Conv1d(3, 4, 1), co.Conv1d(4, 5, 2, 3))
    first, second, third = 2 * 3 * 3, 3 * 4, 4 * 5 * 2
    macs = co.flops(net, (1, 2))
    assert macs.cycle == (first + second + third, 0, first + second, 0, first + second, 0)
    assert macs.total == macs.per_input == Fraction(sum(macs.cycle), 6)
    assert macs.per_output == sum(macs.cycle)
    assert [layer.times for layer in macs.layers] == [Fraction(1, n) for n in (6, 2, 2, 6)]


def test_a_traced_choice_costs_both_branches_and_a_static_one_the_branch_taken():
    branches = co.Conv1d(2, 2, 1), co.Sequential(co.Conv1d(2, 3, 1), co.Conv1d(3, 2, 1))
    traced = co.Conditional(lambda module, x, train: jnp.any(x > 0), *branches)
    assert co.flops(traced, (1, 2)).total == 4 + 12
    for taken, cost in ((True, 4), (False, 12)):
        static = co.Conditional(lambda module, x, train, taken=taken: taken, *branches)
        for x, mode in (((1, 2), "forward_step"), ((1, 2, 1), "forward")):
            assert co.flops(static, x, mode).total == cost


def size_of(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_of(state):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("seed", [5, 7, 9, 13, 14])
def test_a_summary_adds_up_to_the_variables_and_the_state(seed):
    net, shape = random_network(seed)
    step = (*shape[:2], *shape[3:])
    params, state = random_variables(net, seed).get("params", {}), net.init_state(step)
    for depth in (None, 0, 1, 2):
        table = co.summary(net, step, depth)
        assert table.parameters == size_of(params)
        assert table.state_bytes == bytes_of(state)
        assert table.macs == co.flops(net, step).macs
        assert table.rows[0].timing == net.timing
        assert table.rows[0].output == net.output_spec(jax.ShapeDtypeStruct(step, np.float32))
        idle = [row.path for row in table.rows if row.output is None]
        assert {row.path for row in table.rows} == {
            path
            for path, _ in walk(net)
            if (depth is None or len(path) <= depth)
            and not any(path[: len(above)] == above != path for above in idle)
        }
        if depth == 1:
            for row in table.rows[1:]:
                assert row.parameters == size_of(params.get(f"layers_{row.path[0]}"))
                assert row.state_bytes == bytes_of(state.get(f"layers_{row.path[0]}"))


def test_parameters_and_state_are_those_of_a_network_that_runs():
    net = activity_network()
    table = co.summary(net, (1, 6))
    assert table.parameters == size_of(trained_variables(net)["params"])
    assert table.state_bytes == bytes_of(co.Stream(net, trained_variables(net), (1, 6)).state)
    assert table.macs.total == co.flops(net, np.zeros((1, 6), np.float32)).per_output
    text = str(table)
    assert max(map(len, text.splitlines())) <= 100
    for row in table.rows[1:]:
        assert any(
            line.split()[:2] == [row.path[-1], row.kind] and f"{row.output.shape}" in line
            for line in text.splitlines()
        )
    assert f"{table.parameters:,}" in text.splitlines()[-1]
    assert f"{table.state_bytes:,}" in text.splitlines()[-1]


def test_modules_that_share_parameters_have_them_once_and_their_own_state():
    shared = co.Conv1d(2, 2, 3)
    net = co.Sequential(shared, co.ReLU(), shared)
    table = co.summary(net, (1, 2))
    assert table.parameters == size_of(random_variables(net, 0))
    assert table.state_bytes == bytes_of(net.init_state((1, 2)))
    assert [row.parameters for row in table.rows[1:]] == [2 * 2 * 3 + 2, 0, 0]
    assert [row.state_bytes > 0 for row in table.rows[1:]] == [True, False, True]
    assert table.macs.total == 2 * 2 * 2 * 3


class Filter(co.CoModule):
    """A layer of a user's, with a cost that nobody was told."""

    def clip(self, x, train=False):
        return x

    def step(self, state, signal, train=False):
        return signal.becomes(signal.clean()), state


class Known(Filter):
    pass


class Product(Filter):
    pass


class Twice(co.CoModule):
    """A container of a user's: its modules are fields, and it says nothing but what it must."""

    first: co.CoModule
    second: co.CoModule

    @property
    def timing(self):
        return in_sequence([self.first.timing, self.second.timing])

    def children(self):
        return {"a": self.first, "b": self.second}

    def output_spec(self, x):
        return self.second.output_spec(self.first.output_spec(x))

    def clip(self, x, train=False):
        return self.second.clip(self.first.clip(x, train), train)

    def fresh_state(self, x):
        second = self.second.fresh_state(self.first.output_spec(x))
        return {"first": self.first.fresh_state(x), "second": second}

    def step(self, state, signal, train=False):
        signal, first = self.first.step(state["first"], signal, train)
        signal, second = self.second.step(state["second"], signal, train)
        return signal, {"first": first, "second": second}


class Local(Twice, TimeLocal):
    """A container without memory, which defines its clip alone."""

    def fresh_state(self, x):
        return {}

    step = TimeLocal.step


def unknown(result):
    return [f"{'.'.join(each.path)} {each.kind}" for each in result.not_counted]


def test_the_modules_of_a_users_containers_are_found():
    inner = Twice(co.Conv1d(2, 3, 3, stride=2), co.Delay(1))
    local = Local(co.Conv1d(3, 4, 1), co.Linear(4, 5, channel_dim=1))
    net = co.Sequential(inner, local, co.Conv1d(5, 1, 2))
    costs = {("0", "a"): 18, ("1", "a"): 12, ("1", "b"): 20, ("2",): 10}
    times = {("0", "a"): 4, ("1", "a"): 4, ("1", "b"): 4, ("2",): 3}
    step, clip = co.flops(net, (1, 2)), co.flops(net, (1, 2, 9), mode="forward")
    assert {layer.path: layer.macs.total for layer in step.layers if layer.macs.total} == {
        path: Fraction(cost, 2) for path, cost in costs.items()
    }
    assert {layer.path: layer.macs.total for layer in clip.layers if layer.macs.total} == {
        path: cost * times[path] for path, cost in costs.items()
    }
    assert unknown(step) == unknown(clip) == ["0 Twice", "1 Local"]
    table = co.summary(net, (1, 2))
    timings = {row.path: row.timing for row in table.rows}
    assert timings["0", "b"] == timings["1", "b"] == inner.timing
    assert timings["2",] == net.timing
    assert table.parameters == size_of(random_variables(net, 0)["params"])
    assert table.state_bytes == bytes_of(net.init_state((1, 2)))
    rows = {row.path: row.marks for row in co.timeline(net, (1, 2), 9).rows}
    assert rows["0", "a"] == "··■x■x■x■  "
    assert rows["0", "b"] == rows["1", "b"] == "····■x■x■x□"


def test_what_is_not_known_is_named_and_can_be_taught():
    net = co.Sequential({"in": co.Conv1d(2, 2, 1), "f": Filter(), "k": Known(), "p": Product()})
    assert unknown(co.flops(net, (1, 2))) == ["f Filter", "k Known", "p Product"]
    assert unknown(co.summary(net, (1, 2))) == ["f Filter", "k Known", "p Product"]

    @co.analysis.register_macs(Known)
    def _(layer, x, y):
        return math.prod(x.shape)

    @co.analysis.register_macs(Product)
    def _(layer, x, y):
        return co.analysis.Macs(linear=1, matmul=math.prod(y.shape))

    macs = co.flops(net, (3, 2))
    assert unknown(macs) == ["f Filter"]
    assert macs.macs == co.analysis.Macs(linear=12 + 6 + 1, matmul=6)
    assert "not counted: Filter (f)" in str(macs)
    assert "matmul" in str(macs)
    assert "MACs not counted: Filter (f)" in str(co.summary(net, (3, 2)))
    assert "matmul MACs" in str(co.summary(net, (3, 2)))


def test_what_a_layer_costs_may_differ_between_clips_and_steps():
    class Attends(Filter):
        pass

    co.analysis.register_macs(Attends, mode="forward_step")(lambda layer, x, y: 5 * x.shape[1])
    assert unknown(co.flops(Attends(), (1, 2, 7), mode="forward")) == [" Attends"]
    co.analysis.register_macs(Attends, mode="forward")(lambda layer, x, y: x.shape[2] ** 2)
    assert co.flops(Attends(), (1, 2)).total == 10
    assert co.flops(Attends(), (1, 2, 7), mode="forward_steps").total == 70
    assert co.flops(Attends(), (1, 2, 7), mode="forward").total == 49
    with pytest.raises(ValueError, match="mode must be one of None, 'forward_step', 'forward'"):
        co.analysis.register_macs(Attends, mode="clip")


def test_functions_are_free_unless_they_multiply_matrices():
    free, product = jnp.sin, jax.vmap(lambda x: jnp.stack([x, x]) @ x)
    for takes_time in (False, True):
        for fn, names in ((free, []), (product, ["0 Lambda"])):
            if takes_time and fn is product:
                fn = jax.vmap(fn, in_axes=2, out_axes=2)
            net = co.Sequential(co.Lambda(fn, takes_time=takes_time))
            assert unknown(co.flops(net, (1, 2))) == names
            assert unknown(co.flops(net, (1, 2, 4), mode="forward")) == names
    net = co.BroadcastReduce(co.ReLU(), co.Identity(), reduce=lambda clips: clips[0])
    assert unknown(co.flops(net, (1, 2))) == [" BroadcastReduce"]
    assert "not counted: BroadcastReduce (the network)" in str(co.flops(net, (1, 2)))


def test_every_layer_of_the_library_is_known():
    for kind in vars(co).values():
        bases = (co.CoModule, co.TimeLocal)
        if isinstance(kind, type) and issubclass(kind, co.CoModule) and kind not in bases:
            for registered in _REGISTERED.values():
                assert registered.dispatch(kind) is not _unknown, kind


class Anew(Twice):
    def step(self, state, signal, train=False):
        signal, first = self.first.step(state["first"], signal, train)
        signal = Signal(signal.value, signal.valid, signal.past)
        signal, second = self.second.step(state["second"], signal, train)
        return signal, {"first": first, "second": second}


def test_a_signal_of_unknown_timing_is_refused():
    net = co.Sequential(Anew(co.Conv1d(2, 2, 3, 2), co.ReLU()))
    with pytest.raises(TypeError, match=r"0\.b \(ReLU\) was given a Signal made anew"):
        co.flops(net, (1, 2))


def test_nothing_is_compiled_and_no_weight_is_drawn():
    def forbidden(key, shape, dtype):
        if not isinstance(key, jax.core.Tracer):
            raise AssertionError("drawn")
        return jnp.zeros(shape, dtype)

    net = co.Sequential(co.Conv1d(2, 3, 3, kernel_init=forbidden), co.Residual(co.Delay(2)))
    before = sum(laws._compilations.values())
    for x, mode in (
        ((1, 2), "forward_step"),
        ((1, 2, 9), "forward"),
        ((1, 2, 9), "forward_stream"),
    ):
        assert co.flops(net, jax.ShapeDtypeStruct(x, jnp.float32), mode).total
    co.summary(net, (1, 2))
    co.timeline(net, (1, 2))
    assert sum(laws._compilations.values()) == before


@pytest.mark.parametrize("function", [co.flops, co.summary, co.timeline])
def test_a_step_that_does_not_fit_is_refused(function):
    with pytest.raises(co.InputError, match="in layers_0: Conv1d expects 6 channels, got 5"):
        function(co.Sequential(co.Conv1d(6, 2, 3)), (1, 5))


def test_modes_and_steps_that_there_are_not_are_refused():
    net = co.Conv1d(6, 2, 3)
    with pytest.raises(ValueError, match="mode must be one of 'forward', 'forward_step'"):
        co.flops(net, (1, 6), mode="step")
    with pytest.raises(co.InputError, match="too short"):
        co.flops(net, (1, 6, 2), mode="forward")
    with pytest.raises(ValueError, match="steps=0 must be positive"):
        co.timeline(net, (1, 6), steps=0)
    assert co.flops(net, (1, 6, 2), mode="forward_steps").per_output is None


def test_several_streams_are_taken_and_given():
    spec = jax.ShapeDtypeStruct((1, 2), np.float32)
    net = co.Parallel(co.Conv1d(2, 3, 3), co.Sequential(co.ReLU(), co.Linear(2, 3, channel_dim=1)))
    assert co.flops(net, (spec, spec)).total == 2 * 3 * 3 + 2 * 3
    table = co.summary(net, (spec, spec))
    assert table.state_bytes == bytes_of(net.init_state((spec, spec)))
    assert "2 of (1, 3)" in str(table)
    rows = {row.path: row.marks for row in co.timeline(net, (spec, spec), 5).rows}
    assert rows["0",] == rows["1", "1"] == rows["1", "0"] == "··■■■"


def test_the_timeline_shows_the_figure_of_the_library_paper():
    """Two layers: field 3, padding 2 and stride 2; then field 3. Seven steps."""
    net = co.Sequential(co.Conv1d(1, 1, 3, stride=2, padding=2), co.Conv1d(1, 1, 3))
    timeline = co.timeline(net, (1, 1), steps=7)
    assert timeline.first == -2
    given, first, second = (row.marks for row in timeline.rows)
    assert given[:9] == "○○■■■■■■■"
    assert first[:9] == "  ■x■x■x■"
    assert second[:9] == "  ····■x■"
    lines = str(timeline).splitlines()
    assert lines[1].endswith("input    ○ ○|■ ■ ■ ■ ■ ■ ■|○ ○")
    assert lines[3].endswith("1  Conv1d      |· · · · ■ x ■|x □")


def test_padding_stands_where_the_layers_behind_fill_in():
    net = co.Sequential(co.Conv1d(1, 1, 3), co.MaxPool1d(3, 2, 1, ceil_mode=True), co.Delay(1))
    rows = [row.marks for row in co.timeline(net, (1, 1), 8).rows]
    clip = 8 - 2
    assert rows[1].count("■") == clip
    assert rows[1].strip().startswith("·○■")
    last = (net.children()["1"].timing.n_out(clip) - 1) * 2 - 1 + 2
    assert rows[1].count("○") == 1 + max(0, last - (clip - 1))


def test_wide_timelines_stand_close():
    lines = str(co.timeline(co.AvgPool1d(50, 1), (1, 1))).splitlines()
    assert lines[1].endswith("■" * 52)
    assert lines[2].endswith("·" * 49 + "■" * 3)
    assert lines[0].split() == ["step", "0", "10", "20", "30", "40", "50"]


def test_timelines_are_drawn(tmp_path):
    picture = tmp_path / "timeline.png"
    co.timeline(STRIDED, (1, 2)).plot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'cojax\[plot\]'"):
        co.timeline(co.ReLU(), (1, 1)).plot(tmp_path / "timeline.png")
