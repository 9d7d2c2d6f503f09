"""Norms beside torch: clips, training, and the steps that are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from benchmarks.peers import to_torch_nn
from tests.laws import clip_of
from tests.networks import random_variables

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

# Norms that look across time, and the shapes of their clips.
ACROSS_TIME = {
    "groupnorm": (lambda: co.GroupNorm(2, 4), (2, 4, 5)),
    "groupnorm, one group": (lambda: co.GroupNorm(1, 4, affine=False), (2, 4, 5, 3)),
    "groupnorm, no bias": (lambda: co.GroupNorm(4, 4, 0.1, bias=False), (2, 4, 5, 2, 3)),
    "instancenorm1d": (lambda: co.InstanceNorm1d(4), (2, 4, 5)),
    "instancenorm2d": (lambda: co.InstanceNorm2d(4, affine=True), (2, 4, 5, 3)),
    "instancenorm3d": (lambda: co.InstanceNorm3d(4, 0.1, affine=True), (2, 4, 5, 2, 3)),
    "layernorm of time": (lambda: co.LayerNorm(5), (2, 4, 5)),
    "layernorm of time and space": (lambda: co.LayerNorm((5, 3), bias=False), (2, 4, 5, 3)),
    "layernorm of all": (lambda: co.LayerNorm((4, 5, 3), elementwise_affine=False), (2, 4, 5, 3)),
}


def as_torch(x):
    return torch.from_numpy(np.array(x))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ACROSS_TIME)
def test_clips_are_normalised_as_in_torch_gradients_included(name, train):
    build, shape = ACROSS_TIME[name]
    net, x = build(), 3 * clip_of(shape) + 2
    variables = random_variables(net, 1)

    def run(params, x):
        return net.apply({"params": params}, x, train=train)

    y, pull = jax.vjp(run, variables.get("params", {}), x)
    seed = clip_of(shape, 1)
    grads, grad = pull(seed)
    peer, theirs = to_torch_nn(net, variables).train(train), as_torch(x).requires_grad_()
    expected = peer(theirs)
    expected.backward(as_torch(seed))
    np.testing.assert_allclose(y, expected.detach(), **TOLERANCE)
    np.testing.assert_allclose(grad, theirs.grad, **TOLERANCE)
    for name, tensor in co.to_torch(net, {"params": grads}).items():
        torch.testing.assert_close(tensor, peer.get_parameter(name).grad, **TOLERANCE)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ACROSS_TIME)
def test_steps_across_time_are_refused_where_the_clip_is_not(name, train):
    build, shape = ACROSS_TIME[name]
    net = co.Sequential({"first": co.ReLU(), "block": co.Sequential({"norm": build()})})
    variables, x = random_variables(net, 0), clip_of(shape)
    assert net.apply(variables, x, train=train).shape == shape
    refusal = "in layers_block/layers_norm: .*Norm.* statistics of the whole clip, time included"
    with pytest.raises(co.InputError, match=refusal):
        net.init_state(x[:, :, 0])
    for args, method in (
        (({}, x[:, :, 0]), "forward_step"),
        (({}, x), "forward_steps"),
        ((x,), "forward_stream"),
    ):
        with pytest.raises(co.InputError, match=refusal):
            net.apply(variables, *args, train=train, method=method)


class Careless(co.CoModule):
    """A module that asks its norm for no state."""

    norm: co.CoModule

    def step(self, state, signal, train=False):
        return self.norm.step({}, signal, train=train)

    def chunk(self, state, chunk):
        return self.norm.chunk({}, chunk)


@pytest.mark.parametrize("norm", [co.GroupNorm(1, 3), co.InstanceNorm2d(3), co.LayerNorm((1, 4))])
def test_steps_across_time_are_refused_to_who_asks_for_no_state(norm):
    net = Careless(norm)
    with pytest.raises(co.InputError, match="which a step does not have"):
        net.init(jax.random.key(0), {}, jnp.zeros((2, 3, 4)), method="forward_step")
    clip = jnp.zeros((2, 3, 5, 4))
    with pytest.raises(co.InputError, match="which a step does not have"):
        net.init(jax.random.key(0), {}, clip, at_once=True, method="forward_steps")


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (co.GroupNorm(1, 3), "with per_step=True"),
        (co.LayerNorm(4), "channel_dim=1, or the last axes of each step, with per_step=True"),
        (co.InstanceNorm1d(3), "track running statistics$"),
        (co.InstanceNorm2d(3), "track running statistics; or .* with per_step=True"),
    ],
)
def test_a_refusal_names_the_way_out(norm, words):
    with pytest.raises(co.InputError, match=words):
        norm.init_state((2, 3, 4)[: 3 if isinstance(norm, co.InstanceNorm2d) else 2])


def test_a_layer_norm_of_the_channels_is_one_of_each_step_of_a_1d_clip():
    x = clip_of((2, 3, 5))
    by_axis, by_step = co.LayerNorm(3, channel_dim=1), co.LayerNorm(3, per_step=True)
    variables = random_variables(by_axis, 0)
    np.testing.assert_array_equal(by_axis.apply(variables, x), by_step.apply(variables, x))


@pytest.mark.parametrize(
    "net",
    [
        co.GroupNorm(1, 2),
        co.LayerNorm(64),
        co.InstanceNorm1d(2),
        co.BatchNorm1d(2, track_running_stats=False),
    ],
)
def test_statistics_of_half_precision_are_taken_in_single(net):
    x = (30000 + 64 * clip_of((1, 2, 64))).astype(jnp.float16)
    y = net.apply(random_variables(net, 0), x)
    expected = net.apply(random_variables(net, 0), x.astype(jnp.float32))
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y, expected.astype(jnp.float16))


# Running statistics of single samples.


@pytest.mark.parametrize(
    "arguments",
    [{}, {"momentum": 0.7, "affine": True}, {"momentum": None}, {"per_step": True}],
    ids=str,
)
def test_instance_norm_trains_as_in_torch(arguments):
    net = co.InstanceNorm2d(3, track_running_stats=True, **arguments)
    variables = random_variables(net, 1)
    peer = to_torch_nn(net, variables).train()
    train = jax.jit(lambda v, x: net.apply(v, x, train=True, mutable="batch_stats"))
    for seed in range(3):
        x = 1 + 2 * clip_of((2, 3, 5, 4), seed)
        y, updated = train(variables, x)
        variables = {**variables, **updated}
        np.testing.assert_allclose(y, peer(as_torch(x)).detach(), **TOLERANCE)
        for name, tensor in co.to_torch(net, variables).items():
            torch.testing.assert_close(tensor, peer.state_dict()[name], rtol=1e-5, atol=1e-6)
    x = clip_of((2, 3, 5, 4), 9)
    y = peer.eval()(as_torch(x)).detach()
    np.testing.assert_allclose(net.apply(variables, x), y, **TOLERANCE)
    np.testing.assert_allclose(net.apply(variables, x, method="forward_stream"), y, **TOLERANCE)


def test_a_step_of_instance_norm_in_training_has_its_own_statistics_which_move_the_running_ones():
    net = co.Sequential(co.Delay(2), co.InstanceNorm2d(3, affine=True, track_running_stats=True))
    variables, x = random_variables(net, 0), clip_of((2, 3, 6, 4))
    valid = jnp.array([True, False] * 6)
    gapped = co.Frame(jnp.repeat(x, 2, axis=2).at[:, :, 1::2].set(jnp.nan), valid)
    frames, updated = net.apply(
        variables, net.init_state(x[:, :, 0]), gapped, pad_end=True, train=True,
        method="forward_steps", mutable=["batch_stats"],
    )  # fmt: skip
    y, peer = frames[0].dense(), to_torch_nn(net, variables).train()
    for t in range(6):
        step = peer(as_torch(x[:, :, t : t + 1])).detach()
        np.testing.assert_allclose(y[:, :, t : t + 1], step, **TOLERANCE)
    for name, tensor in co.to_torch(net, {**variables, **updated}).items():
        torch.testing.assert_close(tensor, peer.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_instance_norm_refuses_the_statistics_of_one_value():
    net = co.InstanceNorm1d(3, track_running_stats=True)
    variables, x = random_variables(net, 0), clip_of((2, 3, 1))
    with pytest.raises(co.InputError, match="more than one value a channel and sample"):
        net.apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(co.InputError, match="by clips through forward"):
        net.apply(
            variables, {}, x[:, :, 0], train=True, method="forward_step", mutable=["batch_stats"]
        )
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        to_torch_nn(net, variables).train()(as_torch(x))


def test_the_variables_of_torch_load():
    net = co.Sequential(
        co.GroupNorm(2, 4),
        co.PReLU(4),
        co.InstanceNorm1d(4, affine=True, track_running_stats=True),
        co.LayerNorm(5),
    )
    module = torch.nn.Sequential(
        torch.nn.GroupNorm(2, 4),
        torch.nn.PReLU(4),
        torch.nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        torch.nn.LayerNorm(5),
    )
    x = clip_of((2, 4, 5))
    module.train()(as_torch(x))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    y = module.eval()(as_torch(x)).detach()
    np.testing.assert_allclose(
        net.apply(co.load_torch(net, module.state_dict()), x), y, **TOLERANCE
    )


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_trains_as_in_torch(momentum, affine):
    net = co.BatchNorm2d(3, momentum=momentum, affine=affine)
    variables = random_variables(net, 1)
    peer = to_torch_nn(net, variables).train()
    train = jax.jit(lambda v, x: net.apply(v, x, train=True, mutable="batch_stats"))
    for seed in range(3):
        x = 1 + 2 * clip_of((2, 3, 5, 4), seed)
        y, updated = train(variables, x)
        variables = {**variables, **updated}
        np.testing.assert_allclose(y, peer(torch.from_numpy(np.array(x))).detach(), **TOLERANCE)
        for name, tensor in co.to_torch(net, variables).items():
            torch.testing.assert_close(tensor, peer.state_dict()[name], rtol=1e-5, atol=1e-6)
    x = clip_of((2, 3, 5, 4), 9)
    y = peer.eval()(torch.from_numpy(np.array(x))).detach()
    np.testing.assert_allclose(net.apply(variables, x), y, **TOLERANCE)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_without_running_statistics_equals_torch(train):
    net, x = co.BatchNorm1d(3, track_running_stats=False), clip_of((2, 3, 6))
    variables = random_variables(net, 0)
    peer = to_torch_nn(net, variables).train(train)
    y, updated = net.apply(variables, x, train=train, mutable="batch_stats")
    assert not updated
    np.testing.assert_allclose(y, peer(torch.from_numpy(np.array(x))).detach(), **TOLERANCE)


def test_a_network_trains_as_in_torch_gradients_included():
    net = co.Sequential(
        co.Conv1d(3, 4, 3, padding=1),
        co.BatchNorm1d(4),
        co.SiLU(),
        co.BroadcastReduce(co.Conv1d(4, 2, 3, stride=2), co.Conv1d(4, 2, 5, stride=2, padding=1)),
    )
    variables, x = random_variables(net, 2), clip_of((2, 3, 9))
    stats = {"batch_stats": variables["batch_stats"]}

    def loss(params: Any) -> Any:
        y, updated = net.apply({"params": params, **stats}, x, train=True, mutable="batch_stats")
        return jnp.sum(jnp.sin(y)), updated

    grads, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    peer = to_torch_nn(net, variables).train()
    torch.sin(peer(torch.from_numpy(np.array(x)))).sum().backward()
    expected = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, tensor in co.to_torch(net, {"params": grads, **updated}).items():
        reference = expected[name] if name in expected else peer.state_dict()[name]
        torch.testing.assert_close(tensor, reference, rtol=1e-4, atol=1e-5)
