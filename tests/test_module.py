"""The contract: frames, checks, compilation, training in every mode."""

import copy
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from tests.laws import check_laws, clip_of, compilations, variables_of

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def net():
    return co.Sequential(
        {
            "stem": co.Conv1d(3, 4, 3, padding=1),
            "norm": co.BatchNorm1d(4),
            "block": co.Residual(co.Sequential(co.ReLU(), co.Conv1d(4, 4, 5, padding=2))),
            "pool": co.AvgPool1d(2),
            "head": co.Linear(4, 2, channel_dim=1),
        }
    )


@pytest.fixture(scope="module")
def variables(net):
    return variables_of(net)


def test_a_childs_path_is_its_torch_path(variables):
    assert set(variables["params"]) == {
        "layers_stem",
        "layers_norm",
        "layers_block",
        "layers_head",
    }
    inner = variables["params"]["layers_block"]["layers_1"]["layers_1"]
    chex.assert_shape(inner["kernel"], (5, 4, 4))
    assert set(variables["batch_stats"]["layers_norm"]) == {"mean", "var", "num_batches_tracked"}


def test_all_ways_of_initialising_agree(net):
    key = jax.random.key(3)
    x = clip_of((2, 3, 12))
    state = net.init_state(x[:, :, 0])
    declared = net.init(key, method="declare")
    for args, method in (
        ((x,), "__call__"),
        ((x,), "forward_stream"),
        ((state, x[:, :, 0]), "forward_step"),
        ((state, x), "forward_steps"),
    ):
        chex.assert_trees_all_equal(net.init(key, *args, method=method), declared)


def test_state_needs_no_variables_and_is_keyed_like_them(net):
    state = net.init_state((2, 3), jnp.float32)
    chex.assert_trees_all_equal(state, net.init_state(jax.ShapeDtypeStruct((2, 3), jnp.float32)))
    chex.assert_trees_all_equal(state, net.init_state(jnp.zeros((2, 3))))
    chex.assert_shape(state["layers_stem"]["window"], (2, 2, 3))
    assert set(state) == {"layers_stem", "layers_block", "layers_pool"}


def test_temporal_properties_need_no_variables():
    conv = co.Conv3d(1, 1, kernel_size=(3, 5, 5), stride=(2, 1, 1), padding=1)
    assert (conv.receptive_field, conv.delay) == (3, 1)
    assert (conv.stride, conv.padding) == ((2, 1, 1), (1, 1, 1))
    both = co.Sequential(conv, co.AvgPool3d(1))
    assert (both.stride, both.padding, both.receptive_field) == ((2,), (1,), 3)


def test_frames_give_what_continual_gives(net, variables):
    x = clip_of((2, 3, 9))
    frames, _ = net.apply(variables, net.init_state(x[:, :, 0]), x, method="forward_steps")
    assert frames.value.shape == (2, 2, 9)
    assert frames.dense().shape == (2, 2, int(frames.valid.sum()))
    first, _ = net.apply(variables, net.init_state(x[:, :, 0]), x[:, :, 0], method="forward_step")
    assert first.or_none() is None
    none, _ = net.apply(variables, net.init_state(x[:, :, 0]), x[:, :, :1], method="forward_steps")
    assert none.dense() is None
    with pytest.raises(ValueError, match="use dense"):
        frames.or_none()
    with pytest.raises(ValueError, match="use or_none"):
        first.dense()


def test_one_donated_program_serves_a_whole_stream(net, variables):
    step = jax.jit(
        lambda state, x_t: net.apply(variables, state, x_t, method="forward_step"),
        donate_argnums=0,
    )
    x = clip_of((2, 3, 16))
    state, steps = net.init_state(x[:, :, 0]), [x[:, :, t] for t in range(16)]
    with compilations(1, of="<lambda>"):
        for x_t in steps:
            _, state = step(state, x_t)


def test_counters_do_not_overflow():
    net = co.Sequential(co.Conv1d(1, 1, 3, stride=2), co.Delay(2), co.AvgPool1d(3, stride=3))
    variables = variables_of(net)
    x = clip_of((1, 1, 100))
    frames, state = net.apply(variables, net.init_state((1, 1)), x, method="forward_steps")
    counts = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
    assert all(0 <= int(count) < 20 for count in counts)
    assert len(counts) == 3
    assert [bool(v) for v in frames.valid] == [net.timing.emits(t) for t in range(100)]


@pytest.fixture(scope="module")
def called(net, variables):
    """The call of the network, compiled once for every mode."""
    return jax.jit(lambda *inputs: net.apply(variables, *inputs))


def test_a_compiled_call_never_runs_in_another_mode(net, variables, called):
    x, state = clip_of((2, 3, 12)), net.init_state((2, 3))
    clip = called(x)
    with co.call_mode("forward_step"):
        frame, after = called(state, x[:, :, 0])
        with co.call_mode("forward_stream"):
            stream = called(x)
        with pytest.raises(TypeError):
            called(x)
    assert isinstance(frame, co.Frame)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    np.testing.assert_allclose(stream, clip, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(called(x), clip)


def test_a_network_has_a_call_mode_of_its_own(net, variables):
    stepping = net.clone(call_mode="forward_step")
    assert (net.call_mode, stepping.call_mode) == ("forward", "forward_step")
    assert stepping != net
    frame, _ = stepping.apply(variables, net.init_state((2, 3)), clip_of((2, 3)))
    assert isinstance(frame, co.Frame)
    with co.call_mode("forward"):
        assert stepping.apply(variables, clip_of((2, 3, 12))).shape == (2, 2, 6)


def test_a_call_mode_is_not_changed_under_compiled_functions(net):
    with pytest.raises(AttributeError, match="clone"):
        net.call_mode = "forward_step"
    with pytest.raises(ValueError, match="forward_steps"):
        net.clone(call_mode="step")
    with pytest.raises(ValueError, match="forward_steps"):
        co.call_mode("step")


def test_an_empty_chunk_changes_nothing(net, variables):
    x = clip_of((2, 3, 5))
    _, state = net.apply(variables, net.init_state((2, 3)), x, method="forward_steps")
    frames, same = net.apply(variables, state, x[:, :, :0], method="forward_steps")
    assert frames.dense() is None
    chex.assert_trees_all_equal(state, same)


def test_a_chunk_at_once_is_no_loop(net, variables):
    def steps(state, xs, at_once):
        return net.apply(variables, state, xs, at_once=at_once, method="forward_steps")

    state, xs = net.init_state((2, 3)), clip_of((2, 3, 12))
    scanned, whole = (str(jax.make_jaxpr(steps, 2)(state, xs, each)) for each in (False, True))
    assert "scan" in scanned
    assert "scan" not in whole
    assert "while" not in whole


@pytest.mark.parametrize("taken", [0, 1])
def test_what_cannot_be_computed_at_once_is_scanned(taken):
    layer = co.Conv1d(2, 2, 3, stride=2)
    frozen = co.Conditional(lambda _, x, train: x.mean() > 0, layer, layer, advance="taken")
    for net in (
        co.Sequential(co.Lambda(jnp.tanh, forward_steps_only_fn=jnp.cos), co.Conv1d(2, 2, 3)),
        co.Sequential(frozen, co.AvgPool1d(2, 1)),
        co.Sequential(co.Conv1d(2, 2, 2), Cumulative(), co.MaxPool1d(2, 2)),
    ):
        variables, xs = variables_of(net), clip_of((1, 2, 9), seed=taken)
        results = []
        for at_once in (False, True):
            frames, state = net.apply(
                variables, net.init_state((1, 2)), xs, at_once=at_once, method="forward_steps"
            )
            results.append((frames.dense(), frames.valid, state))
        chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


class Cumulative(co.CoModule):
    """The sum of all there was, every second step: a layer that has only its step."""

    @property
    def timing(self):
        return co.Timing(stride=2)

    def output_spec(self, x):
        return x

    def fresh_state(self, x):
        return {"total": jnp.zeros(x.shape, x.dtype), "phase": jnp.zeros((), jnp.int32)}

    def step(self, state, signal, train=False):
        total = state["total"] + signal.clean()
        phase = jnp.where(signal.valid, 1 - state["phase"], state["phase"])
        return signal.leaves(total, phase == 1, self.timing), {"total": total, "phase": phase}


def test_invalid_frames_are_skipped_wherever_they_come(net, variables):
    x = clip_of((2, 3, 12))
    valid = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1], bool)
    frames, state = net.apply(
        variables, net.init_state((2, 3)), co.Frame(x, jnp.asarray(valid)), method="forward_steps"
    )
    kept = x[:, :, np.flatnonzero(valid)]
    expected, same = net.apply(variables, net.init_state((2, 3)), kept, method="forward_steps")
    np.testing.assert_array_equal(frames.dense(), expected.dense())
    chex.assert_trees_all_equal(state, same)


def test_a_step_in_training_uses_its_own_statistics(net, variables):
    x = clip_of((4, 3, 8))
    norm = co.BatchNorm1d(3)
    stats = variables_of(norm)
    frames, updates = norm.apply(
        stats, {}, x, train=True, method="forward_steps", mutable=["batch_stats"]
    )
    value = frames[0].value
    np.testing.assert_allclose(value, norm.apply(stats, x, method="forward_stream", train=True,
                               mutable=["batch_stats"])[0])  # fmt: skip
    state = stats
    for t in range(8):
        y, state = norm.apply(
            {**stats, **state}, x[:, :, t : t + 1], train=True, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(value[:, :, t : t + 1], y, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(updates["batch_stats"], state["batch_stats"], rtol=1e-5, atol=1e-6)


def test_statistics_ignore_invalid_and_flushed_frames():
    net = co.Sequential(
        co.Conv1d(3, 4, 3, padding=1), co.BatchNorm1d(4), co.Conv1d(4, 4, 3, padding=1)
    )
    variables = variables_of(net)
    x = clip_of((4, 3, 6))
    valid = jnp.array([True, False] * 6)
    gapped = co.Frame(jnp.repeat(x, 2, axis=2).at[:, :, 1::2].set(jnp.nan), valid)
    stats = []
    for xs in (x, gapped):
        _, updates = net.apply(
            variables, net.init_state((4, 3)), xs, pad_end=True, train=True,
            method="forward_steps", mutable=["batch_stats"],
        )  # fmt: skip
        stats.append(updates["batch_stats"]["layers_1"])
    chex.assert_trees_all_close(stats[0], stats[1], rtol=1e-6)
    # Six real outputs leave the convolution: five in the stream, one in the flush.
    assert int(stats[0]["num_batches_tracked"]) == 6


def test_dropout_draws_a_mask_for_every_step():
    net = co.Sequential(co.Dropout(0.5), co.Delay(1))
    x = jnp.ones((2, 50, 6))
    key = jax.random.key(1)
    y = net.apply({}, x, train=True, method="forward_stream", rngs={"dropout": key})
    zeros = (y == 0).mean(axis=(0, 1))
    assert ((zeros > 0.25) & (zeros < 0.75)).all()
    assert len({y[:, :, t].tobytes() for t in range(6)}) == 6
    assert set(np.unique(y)) == {0.0, 2.0}
    np.testing.assert_array_equal(net.apply({}, x, method="forward_stream"), x)


def test_training_works_in_every_mode(net, variables):
    x, y = clip_of((4, 3, 12)), clip_of((4, 2, 6), seed=1)
    rest = {"batch_stats": variables["batch_stats"]}

    @jax.jit
    def gradients(params):
        def loss(params, method):
            args = (x,) if method != "forward_steps" else (net.init_state((4, 3)), x, True)
            out, _ = net.apply(
                {"params": params, **rest}, *args, train=True, method=method, mutable="batch_stats"
            )
            if method == "forward_steps":
                out = out[0].value[:, :, jnp.array(net.timing.outputs(12))]
            return jnp.mean((out - y) ** 2)

        return [jax.grad(loss)(params, m) for m in ("forward", "forward_stream", "forward_steps")]

    clip, stream, steps = gradients(variables["params"])
    chex.assert_trees_all_close(stream, steps, rtol=1e-4, atol=1e-6)
    for grads in (clip, stream):
        chex.assert_tree_all_finite(grads)
        assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads["layers_head"]))


def message(error):
    return str(error.value)


def test_wrong_channels_are_named_with_their_place(net, variables):
    for call in (
        lambda: net.apply(variables, jnp.zeros((1, 5, 9))),
        lambda: net.init_state((1, 5)),
        lambda: net.apply(
            variables, net.init_state((1, 3)), jnp.zeros((1, 5)), method="forward_step"
        ),
        lambda: net.apply(variables, jnp.zeros((1, 5, 9)), method="forward_stream"),
    ):
        with pytest.raises(co.InputError) as error:
            call()
        assert message(error).startswith("in layers_stem: Conv1d expects 3 channels, got 5")


def test_nested_modules_are_named_by_their_path():
    net = co.Sequential({"a": co.Residual(co.Sequential(co.Identity(), co.Conv1d(2, 2, 1)))})
    with pytest.raises(co.InputError, match="in layers_a/layers_1/layers_1: Conv1d expects 2"):
        net.init_state((1, 3))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 4, 4)])
def test_wrong_rank_is_refused(net, variables, shape):
    with pytest.raises(co.InputError, match=r"axes|expects steps"):
        net.apply(variables, jnp.zeros(shape))


def test_integers_are_refused_with_what_to_do(net, variables):
    with pytest.raises(co.InputError, match=r"must be a floating one, got int32; cast"):
        net.apply(variables, jnp.zeros((1, 3, 9), jnp.int32))


def test_a_clip_too_short_says_how_long(net, variables):
    with pytest.raises(co.InputError, match="a clip of 2 steps is too short for Conv1d"):
        co.Conv1d(3, 1, 5, padding=1).apply(
            variables_of(co.Conv1d(3, 1, 5, padding=1)), jnp.zeros((1, 3, 2))
        )
    with pytest.raises(co.InputError, match="too short for Sequential: its first output needs"):
        net.apply(variables, jnp.zeros((1, 3, 1)), method="forward_stream")


def test_state_of_another_network_batch_or_dtype_is_refused(net, variables):
    x = jnp.zeros((2, 3))
    foreign = co.Conv1d(3, 4, 3).init_state(x)
    with pytest.raises(
        co.InputError, match=r"layers_stem/window: missing(.|\n)*window: unexpected"
    ):
        net.apply(variables, foreign, x, method="forward_step")
    with pytest.raises(co.InputError, match=r"float32\[1, 2, 3\], expected float32\[2, 2, 3\]"):
        net.apply(variables, net.init_state((1, 3)), x, method="forward_step")
    with pytest.raises(co.InputError, match=r"bfloat16\[2, 2, 3\], expected float32\[2, 2, 3\]"):
        net.apply(variables, net.init_state((2, 3), jnp.bfloat16), x, method="forward_step")
    with pytest.raises(co.InputError, match="the state does not fit"):
        net.apply(variables, net.init_state((1, 3)), jnp.zeros((2, 3, 4)), method="forward_steps")


def test_validity_of_another_shape_is_refused(net, variables):
    state, x = net.init_state((2, 3)), jnp.zeros((2, 3, 4))
    with pytest.raises(co.InputError, match=r"a bool of shape \(4,\) beside"):
        net.apply(variables, state, co.Frame(x, jnp.ones(3, bool)), method="forward_steps")
    with pytest.raises(co.InputError, match=r"a bool of shape \(\) beside .* got int32"):
        net.apply(variables, state, co.Frame(x[..., 0], jnp.int32(1)), method="forward_step")


def test_networks_are_hashable_and_static_arguments(net):
    @functools.partial(jax.jit, static_argnums=0)
    def fresh(net):
        return net.init_state((1, 3))

    twin = co.Sequential(dict(net.layers))
    assert hash(twin) == hash(net)
    with compilations(1, of="fresh"):
        fresh(net)
        fresh(twin)


def test_networks_with_arrays_among_their_fields_are_compared_by_these():
    def build(value):
        return co.Sequential(co.ReLU(), co.Add(np.full((1, 2, 1), value)))

    net, x = build(2.0), jnp.zeros((1, 2, 3))
    assert net == copy.deepcopy(net)
    assert hash(net) == hash(build(2.0))
    assert net != build(3.0)
    y = jax.jit(lambda net, x: net.apply({}, x), static_argnums=0)(net, x)
    assert (y == 2).all()


def test_arguments_in_another_order_are_told_so(net, variables):
    state, x = net.init_state((2, 3)), jnp.zeros((2, 3, 4))
    for args, method in (((x[..., 0], state), "forward_step"), ((x, state), "forward_steps")):
        with pytest.raises(co.InputError, match=r"is given the state, .* and then the frame"):
            net.apply(variables, *args, method=method)
    with pytest.raises(co.InputError, match="a clip has the axes"):
        net.apply(variables, x[..., 0], method="forward_stream")
    for method in ("forward", "forward_stream"):
        with pytest.raises(co.InputError, match=f"{method} takes clips"):
            net.apply(variables, co.Frame(x, jnp.ones(4, bool)), method=method)


def test_what_is_no_array_of_numbers_is_refused(net, variables):
    for x in (None, "a clip", [object()]):
        with pytest.raises(co.InputError, match="expected an array"):
            net.apply(variables, x)
    with pytest.raises(co.InputError, match="expected an array, got a Tensor; call its numpy"):
        net.init_state(torch.ones(2, 3))
    with pytest.raises(co.InputError, match="no negative sizes"):
        net.init_state((-1, 3))
    with pytest.raises(co.InputError, match="unknown dtype='float99'"):
        net.init_state((1, 3), "float99")


def test_a_dtype_beside_an_array_is_refused(net):
    with pytest.raises(co.InputError, match="dtype goes with a shape"):
        net.init_state(jnp.zeros((1, 3)), jnp.float32)


def test_abstract_modules_say_what_to_define():
    class Half(co.CoModule):
        pass

    with pytest.raises(NotImplementedError, match="Half must define clip"):
        Half().apply({}, jnp.zeros((1, 1, 1)))


def test_what_is_no_comodule_is_refused_with_what_wraps_it():
    for part, words in ((nn.Dense(4), "co.forward_stepping"), (jnp.tanh, "in co.Lambda")):
        with pytest.raises(TypeError, match=words):
            co.Sequential(co.ReLU(), part)


def test_frames_of_streams_under_vmap_are_not_mistaken_for_those_of_many_steps():
    frames = co.Frame(jnp.zeros((8, 1, 4)), jnp.arange(8) > 3)
    with pytest.raises(ValueError, match=r"shapes \(8, 1, 4\) and \(8,\).* under vmap"):
        frames.dense()
    with pytest.raises(ValueError, match="under vmap"):
        frames.or_none()


def test_a_subclass_that_steps_otherwise_does_not_inherit_how_chunks_are_computed():
    class Shifted(co.Conv1d):
        def clip(self, x, train=False):
            return super().clip(x, train) + 1

        def step(self, state, signal, train=False):
            signal, state = super().step(state, signal, train)
            return signal.becomes(signal.value + 1), state

    check_laws(Shifted(2, 2, 3), clip_of((1, 2, 7)))


def test_modules_in_fields_are_children():
    class Gated(co.CoModule):
        conv: co.CoModule

        @property
        def timing(self):
            return self.conv.timing

        def output_spec(self, x):
            y = self.conv.output_spec(x)
            return jax.ShapeDtypeStruct((y.shape[0], y.shape[1] // 2, *y.shape[2:]), y.dtype)

        def fresh_state(self, x):
            return self.conv.fresh_state(x)

        def clip(self, x, train=False):
            value, gate = jnp.split(self.conv.clip(x, train), 2, axis=1)
            return value * jax.nn.sigmoid(gate)

        def step(self, state, signal, train=False):
            signal, state = self.conv.step(state, signal, train)
            value, gate = jnp.split(signal.value, 2, axis=1)
            return signal.becomes(value * jax.nn.sigmoid(gate)), state

    net = co.Sequential(Gated(co.Conv1d(2, 6, 3)), co.Conv1d(3, 2, 3))
    check_laws(net, clip_of((1, 2, 9)))
    assert co.summary(net, (1, 2)).rows[2].path == ("0", "conv")


def test_a_layer_of_ones_own_composes():
    class Gain(co.CoModule):
        """Doubles its input; declares what it needs and no more."""

        def clip(self, x, train=False):
            return 2 * x

        def step(self, state, signal, train=False):
            return signal.becomes(2 * signal.clean()), state

    net = co.Sequential(co.Conv1d(1, 1, 3), Gain(), co.Delay(1))
    variables, x = variables_of(net), clip_of((1, 1, 7))
    np.testing.assert_allclose(
        net.apply(variables, x, method="forward_stream"), net.apply(variables, x), rtol=1e-6
    )


def test_float64_needs_no_other_code():
    net = co.Sequential(co.Conv1d(3, 4, 3, padding=1), co.BatchNorm1d(4), co.AvgPool1d(2))
    with jax.enable_x64(True):
        variables = variables_of(net)
        x = clip_of((1, 3, 9), dtype=np.float64)
        y, z = net.apply(variables, x), net.apply(variables, x, method="forward_stream")
        assert y.dtype == z.dtype == jnp.float64
        np.testing.assert_allclose(y, z, rtol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda **misspelt: co.Delay(2, **misspelt),
        lambda **misspelt: co.Sequential(co.ReLU(), **misspelt),
        lambda **misspelt: co.BroadcastReduce(co.ReLU(), co.ReLU(), **misspelt),
        lambda **misspelt: co.Conditional(lambda m, x, train: True, co.ReLU(), **misspelt),
        lambda **misspelt: co.PReLU(**misspelt),
        lambda **misspelt: co.Reshape(2, 3, **misspelt),
    ],
)
def test_misspelt_arguments_are_refused(build):
    with pytest.raises(TypeError, match="unexpected keyword argument 'auto_delya'"):
        build(auto_delya=True)


def test_an_identity_keeps_its_call_mode():
    net = co.Identity(54, unused=True).clone(call_mode="forward_step", name="same")
    assert (net.call_mode, net.name) == ("forward_step", "same")


def test_an_encoder_of_no_layer_is_refused():
    with pytest.raises(ValueError, match="takes a TransformerEncoderLayerFactory"):
        co.TransformerEncoder(num_layers=3)


def test_counters_stay_narrow_where_numbers_are_wide():
    with jax.enable_x64(True):
        net = co.Sequential(co.GRU(2, 3), co.Conv1d(3, 2, 3))
        variables = net.init(jax.random.key(0), method="declare")
        stream = co.Stream(net, variables, (1, 2))
        x = np.ones((1, 2, 6), np.float32)
        stream.steps(x[:, :, :5])
        expected = net.apply(variables, x)[:, :, -1]
        np.testing.assert_allclose(stream(x[:, :, 5]), expected, rtol=1e-5)


def test_bools_stay_bools_in_chunks():
    net = co.BroadcastReduce(co.Delay(2), co.Identity(), reduce="max")
    x = jnp.ones((1, 2, 6), bool)
    for at_once in (False, True):
        state = net.init_state(x[:, :, 0])
        frames, _ = net.apply({}, state, x, at_once=at_once, method="forward_steps")
        assert frames.value.dtype == bool


@pytest.mark.parametrize(
    ("net", "space"),
    [
        (co.Conv1d(4, 4, 3, groups=2), ()),
        (co.Conv1d(4, 4, 3, groups=4), ()),
        (co.Conv1d(4, 2, 3), ()),
        (co.Conv3d(4, 4, 3), (5, 5)),
        (co.LSTM(4, 2), ()),
        (co.GroupNorm(2, 4, per_step=True), (3,)),
        (co.RetroactiveMultiheadAttention(4, 2, sequence_len=3), ()),
    ],
)
def test_a_batch_may_be_empty(net, space):
    variables, x = variables_of(net), jnp.zeros((0, 4, 12, *space))
    expected = net.apply(variables, x)
    for at_once in (False, True):
        state = net.init_state(x[:, :, 0])
        frames, _ = net.apply(variables, state, x, at_once=at_once, method="forward_steps")
        assert frames.dense().shape == expected.shape


def test_a_state_holds_arrays():
    net = co.Delay(2)
    state = net.init_state((1, 2)) | {"count": 0}
    with pytest.raises(co.InputError, match=r"count: a Python int, expected int32\[\]"):
        net.apply({}, state, jnp.zeros((1, 2)), method="forward_step")
