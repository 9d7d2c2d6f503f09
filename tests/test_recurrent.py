"""Hidden states given and asked for, dropout between layers, and what recurrent layers refuse."""

import continual
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import cojax as co
from benchmarks.peers import to_continual
from tests.laws import assert_same_bits, clip_of, variables_of

BATCH, STEPS = 2, 6
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

LAYERS = {
    "tanh": co.RNN(3, 4, num_layers=2),
    "relu": co.RNN(3, 4, nonlinearity="relu", bias=False),
    "lstm": co.LSTM(3, 4, num_layers=2),
    "lstm projected": co.LSTM(3, 5, num_layers=2, proj_size=2),
    "gru": co.GRU(3, 4, num_layers=3, bias=False),
}


pytestmark = pytest.mark.usefixtures("quick_compilation")


def torchs(net, variables=None):
    """The layer in torch, which takes (B, T, C) and returns its hidden state."""
    names = ["input_size", "hidden_size", "num_layers", "bias", "dropout"]
    names += [name for name in ("nonlinearity", "proj_size") if hasattr(net, name)]
    arguments = {name: getattr(net, name) for name in names}
    peer = getattr(nn, type(net).__name__)(**arguments, batch_first=True)
    if variables is not None:
        peer.load_state_dict(co.to_torch(net, variables), strict=True)
    return peer


def hidden_state(net, seed=7):
    """A random one, as torch lays it out."""
    sizes = [getattr(net, "proj_size", 0) or net.hidden_size, net.hidden_size]
    arrays = [clip_of((net.num_layers, BATCH, n), seed + i) for i, n in enumerate(sizes)]
    return tuple(arrays) if isinstance(net, co.LSTM) else arrays[0]


def as_torch(arrays):
    return jax.tree.map(lambda a: torch.from_numpy(np.array(a)).requires_grad_(), arrays)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), **TOLERANCE)


def initial_state(net, hx):
    return net.initial_state(*hx) if isinstance(hx, tuple) else net.initial_state(hx)


@pytest.mark.parametrize("method", ["clip", "stream"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_hidden_states_and_gradients_from_a_hidden_state_are_torchs(name, method):
    net = LAYERS[name]
    variables, x, hx = variables_of(net), clip_of((BATCH, 3, STEPS)), hidden_state(net)

    def run(variables, x, hx):
        if method == "clip":
            return net.apply(variables, x, hx=hx, return_hidden=True)
        state = initial_state(net, hx)
        frames, state = net.apply(variables, state, x, method="forward_steps")
        return frames.value, net.hidden(state)

    def loss(*args):
        y, h_n = run(*args)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in [y, *jax.tree.leaves(h_n)]), (y, h_n)

    differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, (y, h_n)), (weights, *inputs) = differentiated(variables, x, hx)

    peer, (clip, given) = torchs(net, variables), as_torch((x, hx))
    output, last = peer(clip.swapaxes(1, 2), given)
    sum(torch.sin(leaf).sum() for leaf in [output, *jax.tree.leaves(last)]).backward()
    assert_equal((y, h_n), (output.swapaxes(1, 2), last))
    assert_equal(inputs, jax.tree.map(lambda tensor: tensor.grad, [clip, given]))
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    ours = co.to_torch(net, weights)
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_streams_from_a_hidden_state_are_continuals(name):
    net = LAYERS[name]
    variables, x, hx = variables_of(net), clip_of((BATCH, 3, STEPS)), hidden_state(net)
    peer, state = to_continual(net, variables), initial_state(net, hx)
    peer.set_state(jax.tree.map(torch.Tensor.detach, as_torch(hx)))
    step = jax.jit(lambda state, x_t: net.apply(variables, state, x_t, method="forward_step"))
    with torch.no_grad():
        for t in range(STEPS):
            frame, state = step(state, x[:, :, t])
            expected = peer.forward_step(torch.from_numpy(np.array(x[:, :, t])))
            np.testing.assert_allclose(frame.or_none(), expected, **TOLERANCE)
    kept = peer.get_state()
    assert_equal(net.hidden(state), kept if isinstance(net, co.LSTM) else kept[0])


def test_a_stream_goes_on_where_a_clip_ended():
    net, x = LAYERS["lstm projected"], clip_of((BATCH, 3, 9))
    variables = variables_of(net)
    _, hx = net.apply(variables, x[:, :, :5], return_hidden=True)
    stream = co.Stream(net, variables, x[:, :, 0])
    stream.restore(net.initial_state(*hx), steps_taken=5)
    y = stream.steps(x[:, :, 5:])
    np.testing.assert_allclose(y, net.apply(variables, x)[:, :, 5:], **TOLERANCE)


def test_within_a_network_a_layers_state_is_put_in_its_place():
    gru = co.GRU(4, 3)
    net, x = co.Sequential(co.Linear(2, 4, channel_dim=1), gru), clip_of((BATCH, 2, 5))
    variables, h_0 = variables_of(net), hidden_state(gru)
    state = net.init_state(x[:, :, 0]) | {"layers_1": gru.initial_state(h_0)}
    frames, state = net.apply(variables, state, x, method="forward_steps")
    linear, recurrent = ({"params": variables["params"][f"layers_{i}"]} for i in range(2))
    between = net.layers["0"].apply(linear, x)
    y, h_n = gru.apply(recurrent, between, hx=h_0, return_hidden=True)
    np.testing.assert_allclose(frames.value, y, **TOLERANCE)
    np.testing.assert_allclose(gru.hidden(state["layers_1"]), h_n, **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_is_the_inverse_of_initial_state_and_no_buffer_is_shared(name):
    net = LAYERS[name]
    hx = hidden_state(net)
    state = initial_state(net, hx)
    assert_same_bits(net.hidden(state), hx, name)
    fresh = net.init_state((BATCH, 3))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, fresh)
    alike = (jnp.zeros((2, BATCH, 4)),) * 2
    # A buffer that is donated twice is an error.
    jax.jit(lambda state: state, donate_argnums=0)(co.LSTM(3, 4, 2).initial_state(*alike))


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_states_default_to_zeros_and_keep_the_dtype(name):
    net, x = LAYERS[name], clip_of((BATCH, 3, STEPS), dtype=jnp.bfloat16)
    variables = variables_of(net)
    zeros = jax.tree.map(lambda h: jnp.zeros(h.shape, x.dtype), hidden_state(net))
    given, default, (y, h_n) = jax.jit(
        lambda x, zeros: (
            net.apply(variables, x, hx=zeros),
            net.apply(variables, x),
            net.apply(variables, x, return_hidden=True),
        )
    )(x, zeros)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, h_n))} == {x.dtype}
    assert_same_bits((given, default), (y, y), "from zeros")


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_torchs_and_uniform_within_the_root_of_the_hidden_size(name):
    net = LAYERS[name]
    initial = co.to_torch(net, net.init(jax.random.key(0), clip_of((1, 3, 1))))
    expected = {name: p.shape for name, p in torchs(net).named_parameters()}
    assert {name: p.shape for name, p in initial.items()} == expected
    drawn = np.concatenate([p.numpy().ravel() for p in initial.values()]) * net.hidden_size**0.5
    assert 0.9 < np.abs(drawn).max() <= 1
    assert abs(drawn.var() - 1 / 3) < 0.1


# Dropout. This layer shows its mask: of a stream of ones, the first layer makes ones, and the
# second one what is left of them.


def shows_its_mask(p, num_layers=2):
    net = co.RNN(8, 8, num_layers, "relu", bias=False, dropout=p)
    kernels = {
        f"kernel_{part}_l{k}": jnp.eye(8) * (part == "ih")
        for k in range(num_layers)
        for part in ("ih", "hh")
    }
    return net, {"params": kernels}


@pytest.mark.parametrize("method", ["forward", "forward_stream"])
def test_dropout_zeroes_between_layers_in_training(method):
    p, x = 0.3, jnp.ones((16, 8, 24))
    net, variables = shows_its_mask(p)
    y = net.apply(variables, x, train=True, method=method, rngs={"dropout": jax.random.key(0)})
    dropped = np.asarray(y == 0)
    np.testing.assert_allclose(y[~dropped], 1 / (1 - p), rtol=1e-6)
    # Within five standard deviations; no two rows, channels or steps are masked alike.
    assert abs(dropped.mean() - p) < 5 * (p * (1 - p) / dropped.size) ** 0.5
    for axis in range(3):
        assert np.unique(dropped, axis=axis).shape == dropped.shape
    np.testing.assert_array_equal(net.apply(variables, x, method=method), 1)


@pytest.mark.parametrize("method", ["forward", "forward_stream"])
def test_dropout_spares_the_last_layer(method):
    x, rngs = jnp.ones((1, 8, 4)), {"dropout": jax.random.key(0)}
    net, variables = shows_its_mask(0.5, num_layers=1)
    y = net.apply(variables, x, train=True, method=method, rngs=rngs)
    np.testing.assert_array_equal(y, 1)


@pytest.mark.parametrize("name", ["lstm projected", "gru"])
def test_dropout_of_everything_is_torchs(name):
    net = LAYERS[name].copy(dropout=1.0)
    variables, x = variables_of(net), clip_of((BATCH, 3, STEPS))
    y, h_n = net.apply(variables, x, train=True, return_hidden=True)
    peer = torchs(net, variables).train()
    output, last = peer(torch.from_numpy(np.array(x)).swapaxes(1, 2))
    assert_equal((y, h_n), (output.swapaxes(1, 2), last))


# What is refused.


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: co.RNN(0, 4), "input_size=0 must be positive"),
        (lambda: co.GRU(3, 4.0), "hidden_size=4.0 must be positive and whole"),
        (lambda: co.LSTM(3, 4, 0), "num_layers=0 must be positive"),
        (lambda: co.RNN(3, 4, 1, "sigmoid"), "nonlinearity must be one of"),
        (lambda: co.GRU(3, 4, 2, dropout=1.5), "must be a probability"),
        (lambda: co.LSTM(3, 4, proj_size=4), "proj_size=4 must be whole, and below"),
        (lambda: co.LSTM(3, 4, proj_size=-1), "proj_size=-1 must be whole, and below"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_construction(build, words):
    with pytest.raises(ValueError, match=words):
        build()


H = jnp.zeros((2, BATCH, 4))


@pytest.mark.parametrize(
    ("net", "hx", "words"),
    [
        ("tanh", H[:1], r"RNN starts from hidden \(2, B, 4\), .* got float32\[1, 2, 4\]"),
        ("tanh", H[0], r"got float32\[2, 4\]"),
        ("tanh", H.swapaxes(0, 2), r"got float32\[4, 2, 2\]"),
        ("tanh", H.astype(jnp.int32), "floating dtype; got int32"),
        ("tanh", (H, H), r"got float32\[2, 2, 4\] and float32"),
        ("tanh", "h", "expected an array of numbers, got array"),
        ("lstm", H, r"hidden \(2, B, 4\) and cell \(2, B, 4\)"),
        ("lstm", (H, H[:, :1]), r"of one batch .* got float32\[2, 2, 4\] and float32\[2, 1, 4\]"),
        ("lstm", (H, H.astype(jnp.float16)), "one floating dtype; .* and float16"),
        ("lstm", (), "got nothing"),
        ("lstm projected", (H[..., :2], H), r"cell \(2, B, 5\)"),
        ("tanh", H[:, :1], "of float32, for a batch of 1, but the clip of float32, for a batch of"),
        ("lstm", (H.astype(jnp.float16),) * 2, "of float16, .* but the clip of float32"),
    ],
)
def test_hidden_states_that_do_not_fit_are_refused(net, hx, words):
    net, x = LAYERS[net], clip_of((BATCH, 3, STEPS))
    with pytest.raises(co.InputError, match=words):
        net.init_with_output(jax.random.key(0), x, hx=hx)


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        ((jnp.zeros((2, 4, 5)),), {"hx": H}, "expects 3 channels, got 4"),
        ((jnp.zeros((2, 3)),), {"return_hidden": True}, "a clip has the axes"),
        ((jnp.zeros((2, 3, 4), int),), {"hx": H}, "must be a floating one, got int32"),
        ((jnp.zeros((2, 3, 0)),), {}, "a clip of 0 steps is too short for RNN"),
        ((jnp.zeros((2, 3, 5)), H), {}, "train must be a bool"),
        (
            (co.Frame(jnp.zeros((2, 3, 5)), jnp.ones(5, bool)),),
            {"return_hidden": True},
            "Frames are for forward_step",
        ),
    ],
)
def test_clips_that_do_not_fit_are_refused(args, options, words):
    net = LAYERS["tanh"]
    with pytest.raises(co.InputError, match=words):
        net.apply(variables_of(net), *args, **options)


def test_hidden_states_are_of_forward_alone():
    net = LAYERS["tanh"].clone(call_mode="forward_step")
    with pytest.raises(co.InputError, match="are of forward, not of forward_step"):
        net.apply(variables_of(net), jnp.zeros((2, 3, 5)), hx=H)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"layers_0": {}}, "is a dict of .*'cell', 'hidden'.* got .*'layers_0'.* this layer"),
        ((H, H), "got tuple"),
    ],
)
def test_hidden_refuses_what_is_not_the_layers_state(state, words):
    with pytest.raises(co.InputError, match=words):
        LAYERS["lstm"].hidden(state)


def test_a_state_for_another_batch_is_refused():
    net, x_t = LAYERS["lstm"], jnp.zeros((BATCH + 1, 3))
    with pytest.raises(co.InputError, match="the state does not fit LSTM"):
        net.apply(variables_of(net), net.initial_state(H, H), x_t, method="forward_step")


def test_continual_has_the_same_constructors():
    """Arguments go by place, as there."""
    arguments = {co.RNN: (3, 4, 2, "relu", False, 0.5), co.GRU: (3, 4, 2, False, 0.5)}
    arguments[co.LSTM] = (3, 4, 2, False, 0.5, 1)
    for kind, given in arguments.items():
        ours, theirs = kind(*given), getattr(continual, kind.__name__)(*given)
        for name in ("input_size", "hidden_size", "num_layers", "bias", "dropout"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("nonlinearity", "proj_size"):
            if hasattr(ours, name):
                assert getattr(ours, name) == getattr(theirs, name)
