"""Training through streams: the losses of training through clips, and of training in torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import cojax as co
from benchmarks.peers import to_torch_nn
from tests.laws import clip_of
from tests.networks import random_variables

BATCH, STEPS, UPDATES = 4, 13, 12
EXACT = {"rtol": 1e-9, "atol": 1e-12}

SGD = optax.sgd(0.1, momentum=0.9), partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = optax.adam(0.02), partial(torch.optim.Adam, lr=0.02)


def convolutional():
    block = co.Sequential(co.Conv1d(4, 4, 3, padding=1), co.BatchNorm1d(4), co.SiLU())
    return co.Sequential(
        co.Conv1d(3, 4, 3, stride=2, padding=1),
        co.BatchNorm1d(4),
        co.ReLU(),
        co.Residual(block),
        co.AvgPool1d(2, stride=1),
        co.Dropout(0.5),
        co.Linear(4, 2, channel_dim=1),
    )


def recurrent(layer, padding):
    conv = co.Conv1d(3, 4, 3, padding=padding)
    return co.Sequential(conv, co.Tanh(), layer, co.Linear(5, 2, channel_dim=1))


CASES = {
    "convolutional": (convolutional, SGD),
    "lstm": (lambda: recurrent(co.LSTM(4, 5, num_layers=2), padding=0), ADAM),
    "gru": (lambda: recurrent(co.GRU(4, 5), padding=1), ADAM),
}


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    """... and quick compilation, which is most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def data_for(net):
    """Clips, and what the network is to make of them."""
    x = clip_of((BATCH, 3, STEPS), 1, np.float64)
    return x, clip_of((BATCH, 2, net.timing.n_out(STEPS)), 2, np.float64)


def outputs(net, variables, x, method, train):
    """The outputs of ``forward``, or those of ``forward_steps`` that the timing names; updates."""
    options = {"train": train, "mutable": ["batch_stats"] if train else []}
    if method == "forward":
        return net.apply(variables, x, **options)
    start = net.init_state(x[:, :, 0])
    (frames, _), updates = net.apply(variables, start, x, pad_end=True, method=method, **options)
    return frames.value[:, :, np.array(net.timing.outputs(x.shape[2]))], updates


def trained(net, variables, optimizer, method, train=False):
    """The loss of each update of training through a mode, and the variables after the last."""
    x, y = data_for(net)

    def loss_of(params, stats):
        out, updates = outputs(net, {"params": params, **stats}, x, method, train)
        return jnp.mean((out - y) ** 2), {**stats, **updates}

    @jax.jit
    def run(params, stats):
        def update(carry, _):
            params, stats, moments = carry
            (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats)
            changes, moments = optimizer.update(grads, moments)
            return (optax.apply_updates(params, changes), stats, moments), loss

        start = params, stats, optimizer.init(params)
        (params, stats, _), losses = jax.lax.scan(update, start, length=UPDATES)
        return losses, {"params": params, **stats}

    stats = {name: tree for name, tree in variables.items() if name != "params"}
    return run(variables["params"], stats)


def trained_in_torch(net, peer, optimizer):
    """The same in torch, of a peer; the weights are left in it."""
    x, y = (torch.from_numpy(np.array(a)) for a in data_for(net))
    moments, losses = optimizer(peer.parameters()), []
    for _ in range(UPDATES):
        moments.zero_grad()
        loss = torch.mean((peer(x) - y) ** 2)
        loss.backward()
        moments.step()
        losses.append(loss.item())
    return losses


def assert_weights(net, variables, peer):
    state_dict = peer.state_dict()
    for name, tensor in co.to_torch(net, variables).items():
        torch.testing.assert_close(tensor, state_dict[name], **EXACT, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_training_through_steps_is_training_through_clips_and_torchs(name):
    build, (optimizer, theirs) = CASES[name]
    net = build()
    variables = random_variables(net, 0, np.float64)
    losses, learnt = trained(net, variables, optimizer, "forward")
    through_steps, learnt_so = trained(net, variables, optimizer, "forward_steps")
    assert losses[-1] < 0.9 * losses[0], "learns nothing"
    np.testing.assert_allclose(through_steps, losses, **EXACT)

    peer = to_torch_nn(net, variables)
    np.testing.assert_allclose(through_steps, trained_in_torch(net, peer, theirs), **EXACT)
    for found in (learnt, learnt_so):
        assert_weights(net, found, peer)


def each_step_a_batch(norm):
    """A norm of torch that is given a clip step by step, and in training sees no other."""
    of_clips = norm.forward
    norm.forward = lambda x: torch.cat([of_clips(x_t) for x_t in x.split(1, dim=2)], dim=2)


def test_live_statistics_are_those_of_the_clip_through_clips_and_of_each_step_through_steps():
    net, (optimizer, theirs) = convolutional(), SGD
    net = co.Sequential({n: m for n, m in net.children().items() if not isinstance(m, co.Dropout)})
    variables = random_variables(net, 0, np.float64)
    curves = []
    for method in ("forward", "forward_steps"):
        losses, learnt = trained(net, variables, optimizer, method, train=True)
        peer = to_torch_nn(net, variables).train()
        if method == "forward_steps":
            for module in peer.modules():
                if isinstance(module, nn.BatchNorm1d):
                    each_step_a_batch(module)
        np.testing.assert_allclose(losses, trained_in_torch(net, peer, theirs), **EXACT)
        assert_weights(net, learnt, peer)
        curves.append(losses)
    assert np.abs(curves[0] - curves[1]).min() > 1e-4


def test_truncated_back_propagation_is_torchs_with_a_detached_hidden_state():
    net, (optimizer, theirs) = co.Sequential(co.LSTM(3, 4, 2), co.Linear(4, 2, channel_dim=1)), ADAM
    variables = random_variables(net, 0, np.float64)
    x, y = (clip_of((BATCH, n, 20), n, np.float64) for n in (3, 2))
    chunks = [slice(start, start + 4) for start in range(0, 20, 4)]

    @jax.jit
    def update(params, moments, state, xs, ys):
        def loss_of(params):
            frames, after = net.apply({"params": params}, state, xs, method="forward_steps")
            return jnp.mean((frames.value - ys) ** 2), after

        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, changes), moments, state, loss

    params, state, losses = variables["params"], net.init_state(x[:, :, 0]), []
    moments = optimizer.init(params)
    for part in chunks:
        params, moments, state, loss = update(params, moments, state, x[:, :, part], y[:, :, part])
        losses.append(loss)

    peer = to_torch_nn(net, variables)
    lstm, head = peer
    moments, hidden = theirs(peer.parameters()), None
    for part, loss in zip(chunks, losses, strict=True):
        xs, ys = (torch.from_numpy(np.array(a[:, :, part])) for a in (x, y))
        # The peer keeps its hidden state to itself; torch's own forward gives it away.
        out, hidden = nn.LSTM.forward(lstm, xs.swapaxes(1, 2), hidden)
        hidden = tuple(h.detach() for h in hidden)
        moments.zero_grad()
        expected = torch.mean((head(out.swapaxes(1, 2)) - ys) ** 2)
        expected.backward()
        moments.step()
        np.testing.assert_allclose(loss, expected.item(), **EXACT)
    assert_weights(net, {"params": params}, peer)
