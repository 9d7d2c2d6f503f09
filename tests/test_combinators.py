"""What combinators promise beside the laws."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from tests.laws import clip_of, compilations, variables_of


def test_modules_come_one_by_one_as_a_list_or_named():
    parts = [co.Conv1d(1, 2, 1), co.ReLU()]
    assert co.Sequential(*parts).order == co.Sequential(parts).order == ("0", "1")
    named = co.Sequential({"conv": parts[0], "act": parts[1]})
    assert named.order == ("conv", "act")
    assert named.append(co.Delay(1)).order == ("conv", "act", "2")
    assert named.order == ("conv", "act")


def test_children_run_in_their_order_under_every_transform():
    net = co.Sequential({str(11 - i): co.Lambda(lambda x, i=i: x * 2 + i) for i in range(12)})
    x = clip_of((1, 1, 3))
    expected = x
    for i in range(12):
        expected = expected * 2 + i
    frames, _ = net.apply({}, {}, x, method="forward_steps")
    for y in (net.apply({}, x), net.apply({}, x, method="forward_stream"), frames.value):
        np.testing.assert_allclose(y, expected, rtol=1e-6)

    class Outer(nn.Module):
        """A network within a Flax module of one's own, under one of its transforms."""

        inner: co.CoModule
        lifted: str

        def __call__(self, x):
            run = {
                "remat": nn.remat(lambda module, x: module.inner(x)),
                "jit": nn.jit(lambda module, x: module.inner(x)),
                "vmap": lambda module, x: nn.vmap(
                    lambda module, x: module.inner(x[None])[0], variable_axes={"params": None}
                )(module, x),
                "cond": lambda module, x: nn.cond(
                    x.sum() < jnp.inf, lambda m, x: m.inner(x), lambda m, x: x, module, x
                ),
                "scan": lambda module, x: nn.scan(
                    lambda module, _, x: (None, module.inner(x)), length=1
                )(module, None, x[None])[1][0],
            }
            return run[self.lifted](self, x)

    for lifted in ("remat", "jit", "vmap", "cond", "scan"):
        y = Outer(net, lifted).apply({}, x)
        np.testing.assert_allclose(y, expected, rtol=1e-6, err_msg=lifted)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: co.BroadcastReduce(
                {"slow": co.Conv1d(1, 1, 1, stride=2), "fast": co.Identity()}
            ),
            "must share one temporal stride, but have {'slow': 2, 'fast': 1}",
        ),
        (lambda: co.Parallel(co.Conv1d(1, 1, 1), co.AvgPool1d(2)), "{'0': 1, '1': 2}"),
        (lambda: co.Conditional(lambda m, x, t: t, co.AvgPool1d(2)), "{'0': 2, '1': 1}"),
        (lambda: co.Residual(co.AvgPool1d(2)), "the residual's is 1 and that of AvgPool1d is 2"),
        (lambda: co.Residual(co.Conv1d(1, 1, 3)), "2 steps shorter; pad it, or crop"),
        (
            lambda: co.Residual(co.Conv1d(1, 1, 4), residual_shrink=True),
            "3 steps shorter, which is odd",
        ),
        (lambda: co.Residual(co.Conv1d(1, 1, 4, padding=2)), "1 steps longer"),
        (
            lambda: co.Residual(co.Identity(), residual_shrink="left"),
            "residual_shrink must be one of",
        ),
        (lambda: co.BroadcastReduce(co.Identity()), "at least two modules"),
        (lambda: co.Reduce("mean"), "one of 'sum', 'mul', 'max', 'concat'"),
        (
            lambda: co.Parallel(co.Delay(1), co.Identity(), auto_delay=False),
            "must share one delay, but have {'0': 1, '1': 0}",
        ),
        (lambda: co.Sequential({"a.b": co.ReLU()}), "no '.' or '/'"),
        (lambda: co.ParallelDispatch([0, "1"]), "made of sequences of stream numbers"),
        (
            lambda: co.Conditional(lambda m, x, t: t, co.Conv1d(1, 1, 3)),
            r"must shrink a clip alike, but do so by {'0': 2, '1': 0} steps",
        ),
        (lambda: co.Conditional(True, co.ReLU()), r"callable with \(module, x, train\), got True"),
        (
            lambda: co.Conditional(lambda module, x: True, co.ReLU()),
            "too many positional arguments",
        ),
        (
            lambda: co.Conditional(lambda m, x, t: t, co.ReLU(), advance="never"),
            "advance must be one of",
        ),
    ],
)
def test_modules_that_do_not_go_together_are_refused_at_construction(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("wrong", [jnp.tanh, 3, jax.nn.relu])
def test_only_modules_are_composed(wrong):
    with pytest.raises(TypeError, match="module '1' must be a CoModule"):
        co.Sequential(co.ReLU(), wrong)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (co.Broadcast(), "does not know its number of streams"),
        (co.Sequential(co.Broadcast(2), co.Conv1d(2, 2, 1)), "takes one stream, got 2"),
        (
            co.Sequential(co.Broadcast(3), co.Parallel(co.ReLU(), co.ReLU())),
            "runs 2 streams, got 3",
        ),
        (co.Reduce(), "a reduction takes several streams"),
        (co.ParallelDispatch([1]), "refers to stream 1, but was given a single stream"),
        (
            co.BroadcastReduce(co.Conv1d(2, 3, 1), co.Conv1d(2, 4, 1)),
            r"steps of shapes \(1, 3\), \(1, 4\) cannot be reduced",
        ),
        (
            co.Conditional(lambda m, x, t: t, co.Conv1d(2, 3, 1), co.Conv1d(2, 4, 1)),
            "the branches have different outputs",
        ),
        (
            co.Conditional(lambda m, x, t: jnp.ones(5, bool), co.Identity()),
            r"of shape \(\) or \(1,\), got bool \(5,\)",
        ),
    ],
)
def test_streams_that_do_not_fit_are_refused(net, words):
    with pytest.raises(co.InputError, match=words):
        net.init_state((1, 2))


def test_branches_of_unequal_length_are_not_reduced():
    net = co.BroadcastReduce(co.Conv1d(1, 1, 3), co.Conv1d(1, 1, 3, padding=1))
    with pytest.raises(co.InputError, match=r"have \[6, 8\] steps; pad the branches alike"):
        net.apply(variables_of(net), jnp.zeros((1, 1, 8)))


def test_a_branch_of_one_step_is_not_broadcast_over_time():
    branches = co.Identity(), co.MaxPool1d(3, stride=1)
    short = co.BroadcastReduce(*branches)
    explicit = co.Sequential(co.Broadcast(), co.Parallel(*branches), co.Reduce())
    for net in (short, explicit):
        with pytest.raises(co.InputError, match=r"have \[3, 1\] steps"):
            net.apply({}, jnp.ones((1, 1, 3)))


def test_networks_are_built_within_flax_modules():
    class Model(nn.Module):
        mode: str = "forward"

        @nn.compact
        def __call__(self, x):
            body = co.Sequential(co.Conv1d(2, 2, 3), co.Delay(1), co.Reshape(1, 2), name="body")
            return getattr(co.Residual(body, residual_shrink=True), self.mode)(x)

    x = clip_of((1, 2, 8))
    variables = Model().init(jax.random.key(0), x)
    stream = Model("forward_stream").apply(variables, x)
    np.testing.assert_allclose(stream, Model().apply(variables, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [co.AvgPool1d(2), co.MaxPool1d(2), co.Residual(co.Conv1d(2, 2, 3, padding=1)), co.Delay(1)],
)
def test_networks_are_tabulated(net):
    table = co.Sequential(net).tabulate(jax.random.key(0), jnp.ones((1, 2, 6)))
    assert "layers_0" in table


def test_what_derives_from_a_container_is_constructed_alike():
    class Scaled(co.Sequential):
        factor: float = 1.0

        def clip(self, x, train=False):
            return self.factor * super().clip(x, train)

    net = Scaled({"add": co.Add(1.0), "relu": co.ReLU()}, factor=2.0)
    assert net.order == ("add", "relu")
    assert net.clone() == net
    assert net.apply({}, jnp.ones((1, 1, 2))).ravel().tolist() == [4, 4]


def test_broadcast_counts_the_branches_behind_it():
    net = co.Sequential(co.Broadcast(), co.Parallel(co.ReLU(), co.Identity()), co.Reduce("concat"))
    assert net.apply({}, jnp.ones((1, 2, 3))).shape == (1, 4, 3)


def test_the_explicit_residual_is_the_short_one():
    conv = co.Conv1d(2, 2, 3, padding=1)
    short = co.Residual(conv)
    explicit = co.Sequential(co.Broadcast(2), co.Parallel(conv, co.Delay(2)), co.Reduce("sum"))
    x, weights = clip_of((1, 2, 9)), variables_of(conv)["params"]
    y = short.apply({"params": {"layers_1": weights}}, x, method="forward_stream")
    z = explicit.apply({"params": {"layers_1": {"layers_0": weights}}}, x, method="forward_stream")
    np.testing.assert_allclose(y, z, rtol=1e-6)


def test_branches_that_fit_some_clips_are_refused_for_others():
    net = co.Conditional(
        lambda module, x, train: True, co.Conv1d(1, 1, 3, stride=2, padding=1), co.AvgPool1d(2)
    )
    variables = variables_of(net)
    assert net.apply(variables, jnp.zeros((1, 1, 8))).shape == (1, 1, 4)
    with pytest.raises(co.InputError, match="for 9 steps the branches give clips of"):
        net.apply(variables, jnp.zeros((1, 1, 9)))


def test_a_static_predicate_costs_nothing():
    branch = co.Conv1d(2, 2, 3, padding=1)
    net = co.Conditional(lambda module, x, train: train, co.Delay(1), branch)
    variables = {"params": {"layers_1": variables_of(branch)["params"]}}
    x_t = jnp.zeros((1, 2))

    def operations(net, variables):
        step = jax.jit(lambda s, x: net.apply(variables, s, x, method="forward_step"))
        text = step.lower(net.init_state(x_t), x_t).as_text()
        return sum("dot_general" in line for line in text.splitlines())

    assert operations(net, variables) == operations(branch, variables_of(branch)) == 1


def test_a_static_predicate_keeps_the_state_of_the_other_branch():
    net = co.Conditional(lambda module, x, train: train, co.Delay(1), co.Delay(1))
    state = net.init_state((1, 1))
    _, after = net.apply({}, state, jnp.ones((1, 1)), train=True, method="forward_step")
    assert int(after["layers_0"]["count"]) == 1
    assert int(after["layers_1"]["count"]) == 0


def test_a_branch_not_taken_is_frozen_when_asked():
    def louder(module, x, train):
        return jnp.abs(x).max() > 1

    lagging = co.Delay(1, auto_shrink="lagging")
    net = co.Conditional(louder, co.Conv1d(1, 1, 2), lagging, advance="taken")
    variables = variables_of(net)
    step = jax.jit(lambda s, x: net.apply(variables, s, x, method="forward_step"))
    state, zero = net.init_state((1, 1)), jnp.zeros((1, 1))
    loud, quiet = zero + 2, zero + 0.5
    with compilations(1, of="<lambda>"):
        frame, state = step(state, loud)
        _, state = step(state, quiet)
    assert frame.or_none() is None
    assert (int(state["layers_0"]["count"]), int(state["layers_1"]["count"])) == (1, 1)
    frame, state = step(state, loud)
    kernel, bias = (variables["params"]["layers_0"][k] for k in ("kernel", "bias"))
    np.testing.assert_allclose(frame.value, [2 * kernel.sum() + bias], rtol=1e-6)
    assert "cond" in str(jax.make_jaxpr(step)(state, loud))


def test_a_predicate_ignores_what_comes_after_the_end():
    seen = co.Conditional(
        lambda module, x, train: x[0, 0] > 0,
        co.Sequential(co.Conv1d(1, 1, 3, padding=1, bias=False)),
        co.Multiply(-1.0),
    )
    variables = {"params": {"layers_0": {"layers_0": {"kernel": jnp.ones((3, 1, 1))}}}}
    x = jnp.array([[[1.0, 2.0, 3.0]]])
    y = seen.apply(variables, x, method="forward_stream")
    np.testing.assert_allclose(y, [[[3.0, 6.0, 5.0]]])
    np.testing.assert_allclose(y, seen.apply(variables, x))


def test_squeeze_and_excitation_scales_the_oldest_frame_of_its_window():
    se = co.Residual(
        co.Sequential(
            co.AdaptiveAvgPool2d((1, 1), kernel_size=4), co.Conv2d(2, 2, 1), co.Sigmoid()
        ),
        reduce="mul",
        residual_shrink="lagging",
    )
    variables, x = variables_of(se), clip_of((1, 2, 4, 3))
    stream = se.apply(variables, x, method="forward_stream")
    np.testing.assert_allclose(stream, se.apply(variables, x), rtol=1e-5)
    assert stream.shape == (1, 2, 1, 3)
