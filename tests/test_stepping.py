"""Functions and Flax modules that are local in time, made to step."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from tests.laws import check_laws, clip_of


class Gate(nn.Module):
    """Dense, batch norm and dropout, of clips with the channels last."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = x * nn.sigmoid(nn.Dense(x.shape[-1])(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dropout(self.rate, deterministic=not train)(x)


class Told(nn.Module):
    """Answers what it is told of training."""

    @nn.compact
    def __call__(self, x, *, training, deterministic, use_running_average):
        return x + jnp.asarray([training, deterministic, use_running_average], x.dtype)


class Noisy(nn.Module):
    """Drops out by random numbers of its own, and sows what it saw."""

    @nn.compact
    def __call__(self, x, train):
        self.sow("intermediates", "mean", x.mean())
        return nn.Dropout(0.5, rng_collection="noise")(x, deterministic=not train)


def network():
    gate = co.forward_stepping(Gate(), channels_last=True)
    return co.Sequential(co.Conv1d(3, 4, 3), gate, co.Conv1d(4, 2, 2))


def test_a_flax_module_keeps_the_laws_within_a_network():
    net, x = network(), clip_of((2, 3, 9))
    check_laws(net, x, variables=net.init(jax.random.key(0), x))


def test_a_function_of_clips_keeps_the_laws():
    net = co.forward_stepping(partial(nn.softmax, axis=-1), channels_last=True)
    x = clip_of((2, 3, 4, 2))
    check_laws(net, x)
    np.testing.assert_allclose(net.apply({}, x), nn.softmax(x, axis=1), rtol=1e-6)
    assert co.forward_stepping(jnp.tanh) == co.Lambda(jnp.tanh, takes_time=True)


def test_the_variables_are_those_of_the_module_itself():
    x = clip_of((2, 3, 5, 4))
    module = nn.LayerNorm(feature_axes=1, reduction_axes=1)
    net = co.forward_stepping(module)
    variables = module.init(jax.random.key(0), x)
    assert jax.tree.structure(net.init(jax.random.key(0), x)) == jax.tree.structure(variables)
    np.testing.assert_array_equal(net.apply(variables, x), module.apply(variables, x))


def test_training_is_told_by_the_names_that_a_module_has_for_it():
    net = co.forward_stepping(Told(), channels_last=True)
    x = jnp.zeros((1, 3, 1))
    for train, told in ((True, [1, 0, 0]), (False, [0, 1, 1]), (np.bool_(True), [1, 0, 0])):
        y = net.apply({}, x, train=train)
        np.testing.assert_array_equal(y[0, :, 0], np.array(told))


def test_a_flax_module_trains_on_clips_and_not_on_steps():
    net, x = network(), clip_of((2, 3, 9))
    variables = net.init(jax.random.key(0), x)
    run = partial(net.apply, variables, train=True, rngs={"dropout": jax.random.key(1)})
    _, updated = run(x, mutable=["batch_stats"])
    before, after = (
        tree["batch_stats"]["layers_1"]["BatchNorm_0"]["mean"] for tree in (variables, updated)
    )
    assert not jnp.allclose(before, after)
    state = net.init_state(x[:, :, 0])
    with pytest.raises(co.InputError, match="in layers_1: Gate would track statistics of frames"):
        run(state, x, method="forward_steps", mutable=["batch_stats"])


def test_dropout_alone_is_live_in_steps():
    net = co.forward_stepping(nn.Dropout(0.5))
    x, key = jnp.ones((1, 50, 4)), jax.random.key(0)
    frames, _ = net.apply(
        {},
        {},
        x,
        train=True,
        method="forward_steps",
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )[0]
    masks = np.asarray(frames.value[0] != 0).T
    assert 0.2 < masks.mean() < 0.8
    assert len({mask.tobytes() for mask in masks}) == 4


def test_a_network_with_a_flax_module_is_summarised_without_variables():
    net, x = network(), clip_of((2, 3, 9))
    variables = net.init(jax.random.key(0), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    summary = co.summary(net, x[:, :, 0])
    assert sum(row.parameters for row in summary.rows) == count
    assert co.flops(net, x[:, :, 0]).total > 0
    assert len(co.timeline(net, x[:, :, 0]).rows) > len(net.layers)


def test_variables_that_depend_on_a_clip_are_not_declared():
    net, x = network(), clip_of((2, 3, 9))
    with pytest.raises(TypeError, match=r"in layers_1: the shapes of Gate's variables depend on"):
        net.init(jax.random.key(0), method="declare")
    variables = net.init(jax.random.key(0), x)
    for exchange in (lambda: co.to_torch(net, variables), lambda: co.load_torch(net, {})):
        with pytest.raises(TypeError, match=r"layers_1 is a Flax module, Gate: .* no known names"):
            exchange()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv(3, (3,), padding="VALID"), "Conv is not local in time: of a clip of shape"),
        (nn.Dense(1), "Dense is not local in time"),
        (nn.RNN(nn.GRUCell(3), return_carry=True), "RNN must return one array, got a tuple"),
        (nn.Conv(3, (3, 3, 3, 3)), "Conv failed on a step of shape"),
        (lambda x: jnp.mean(x, 2, keepdims=True), "the function is not local in time"),
        (lambda x: x[:, :, 0], "the function is not local in time"),
        (lambda x: jnp.repeat(x, 2, axis=2), "the function is not local in time"),
    ],
)
def test_what_does_not_keep_the_length_of_a_clip_is_refused(module, words):
    net = co.forward_stepping(module, channels_last=isinstance(module, nn.Conv | nn.RNN))
    with pytest.raises(co.InputError, match=words):
        net.init_state((2, 3))


def test_what_is_no_flax_module_and_no_function_is_refused():
    with pytest.raises(TypeError, match=r"a torch module such as ReLU .* co.continual\(module\)"):
        co.forward_stepping(torch.nn.ReLU())
    with pytest.raises(TypeError, match="takes a function or a Flax module, got 3"):
        co.forward_stepping(3)
    net = co.ReLU()
    assert co.forward_stepping(net) is net


def test_integers_come_out_as_they_are():
    embed = co.forward_stepping(nn.Embed(5, 3))
    tokens = jnp.array([[[1, 4, 2]]])
    variables = embed.init(jax.random.key(0), tokens)
    y = embed.apply(variables, tokens)
    assert y.dtype == jnp.float32
    assert y.shape == (1, 1, 3, 3)


def test_a_flax_module_within_a_scan_draws_and_sows():
    net = co.Sequential(co.Delay(1), co.forward_stepping(Noisy()))
    x = clip_of((1, 2, 40))
    (frames, _), sown = net.apply(
        {},
        net.init_state(x[:, :, 0]),
        x,
        train=True,
        rngs={"noise": jax.random.key(0)},
        mutable=["intermediates"],
        method="forward_steps",
    )
    y = np.asarray(frames.dense())
    kept = y != 0
    assert 0.2 < kept.mean() < 0.8
    assert not (kept == kept[:, :, :1]).all()  # every step draws anew
    np.testing.assert_allclose(y[kept], 2 * np.asarray(x[:, :, :-1])[kept], rtol=1e-6)
    (mean,) = jax.tree.leaves(sown)
    np.testing.assert_allclose(mean[1:], x[:, :, :-1].mean((0, 1)), rtol=1e-5, atol=1e-6)
