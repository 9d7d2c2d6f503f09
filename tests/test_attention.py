"""Attention and encoders: against torch over every window, and over streams without end."""

import continual
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import cojax as co
from benchmarks.peers import to_continual
from tests.laws import Bench, check_laws, clip_of
from tests.networks import random_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
WIDTH, HEADS, HIDDEN, LENGTH = 6, 2, 8, 4


def tensor(x):
    return torch.from_numpy(np.array(x))


# With two heads tokens are remembered, with six their keys and values.
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("norm_first", "heads"), [(False, 6), (True, 2), (False, 2)])
def test_encoders_loaded_from_torch_agree_on_every_window_of_a_long_stream(
    layers, norm_first, heads
):
    torch.manual_seed(layers)
    layer = nn.TransformerEncoderLayer(
        WIDTH, heads, HIDDEN, activation="gelu", norm_first=norm_first, batch_first=True
    )
    norm = nn.LayerNorm(WIDTH) if norm_first else None
    trained = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False).eval()
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.5)
    factory = co.TransformerEncoderLayerFactory(
        WIDTH, heads, HIDDEN, activation="gelu", norm_first=norm_first, sequence_len=LENGTH
    )
    net = co.TransformerEncoder(
        factory, layers, co.LayerNorm(WIDTH, channel_dim=1) if norm_first else None
    )
    variables = co.load_torch(net, trained.state_dict())
    assert list(co.to_torch(net, variables)) == list(trained.state_dict())

    x = clip_of((2, WIDTH, 300))
    bench = Bench(net, x, variables)
    frames, _ = bench.chunk(bench.fresh(), x)
    with torch.no_grad():
        windows = tensor(x).unfold(2, LENGTH, 1).permute(0, 2, 3, 1).reshape(-1, LENGTH, WIDTH)
        expected = trained(windows)[:, -1].reshape(2, -1, WIDTH).swapaxes(1, 2)
    np.testing.assert_array_equal(frames.valid, np.arange(300) >= LENGTH - 1)
    np.testing.assert_allclose(frames.dense(), expected, **TOLERANCE)


@pytest.mark.parametrize("activation", ["relu", torch.nn.functional.gelu, nn.PReLU()])
@pytest.mark.parametrize("layers", [1, 2])
def test_encoders_of_torch_are_converted(layers, activation):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, activation=activation, bias=False)
    module = nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    net, variables = co.continual(module.eval(), sequence_len=LENGTH)
    x = clip_of((2, WIDTH, LENGTH))
    with torch.no_grad():
        expected = module(tensor(x).permute(2, 0, 1))[-1]
    np.testing.assert_allclose(net.apply(variables, x)[:, :, 0], expected, **TOLERANCE)
    assert list(co.to_torch(net, variables)) == list(module.state_dict())


def test_attention_of_torch_is_converted_and_is_torchs_on_clips():
    modules = (
        nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True, add_zero_attn=True),
        nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, norm_first=True).eval(),
    )
    x = clip_of((2, WIDTH, 7))
    tokens = tensor(x).permute(2, 0, 1)
    for module, inputs in zip(modules, ((tokens,) * 3, (tokens,)), strict=True):
        net, variables = co.continual(module, sequence_len=LENGTH)
        with torch.no_grad():
            y = module(*inputs)
        expected = (y[0] if isinstance(y, tuple) else y).permute(1, 2, 0)
        np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)
    with pytest.raises(co.ConversionError, match="sequence_len"):
        co.continual(modules[0])


# continual calls torch's state_dict with positional arguments.
@pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning")
@pytest.mark.parametrize("layers", [1, 2])
def test_encoders_of_continual_load_by_their_names(layers):
    factory = continual.TransformerEncoderLayerFactory(WIDTH, HEADS, HIDDEN, sequence_len=LENGTH)
    trained = continual.TransformerEncoder(factory, layers, nn.LayerNorm(WIDTH)).eval()
    net = co.TransformerEncoder(
        co.TransformerEncoderLayerFactory(WIDTH, HEADS, HIDDEN, sequence_len=LENGTH),
        layers,
        norm=co.LayerNorm(WIDTH, channel_dim=1),
    )
    variables = co.load_torch(net, trained.state_dict())
    back = co.to_torch(net, variables, delayed_names=True)
    assert back.keys() == trained.state_dict().keys()
    x = clip_of((2, WIDTH, LENGTH))
    with torch.no_grad():
        expected = trained.forward(tensor(x))[:, :, -1:]
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)


@pytest.mark.parametrize("kind", ["single", "retroactive"])
def test_keys_and_values_of_their_own_streams_equal_torch(kind):
    sizes = {"kdim": 3, "vdim": 5, "sequence_len": LENGTH}
    single = kind == "single"
    attention = co.SingleOutputMultiheadAttention if single else co.RetroactiveMultiheadAttention
    net = attention(WIDTH, HEADS, **sizes)
    variables = random_variables(net, 0)
    peer = nn.MultiheadAttention(WIDTH, HEADS, kdim=3, vdim=5, batch_first=True)
    peer.load_state_dict(co.to_torch(net, variables))
    streams = tuple(clip_of((2, channels, 8), seed) for seed, channels in enumerate((WIDTH, 3, 5)))
    query, key, value = (tensor(x).unfold(2, LENGTH, 1).permute(2, 0, 3, 1) for x in streams)
    with torch.no_grad():
        windows = [peer(*tokens)[0] for tokens in zip(query, key, value, strict=True)]
    expected = torch.stack([w[:, -1] if single else w.swapaxes(1, 2) for w in windows], 2)
    np.testing.assert_allclose(net.apply(variables, streams), expected, **TOLERANCE)
    check_laws(net, streams, variables=variables)


@pytest.mark.parametrize(
    ("net", "rings"),
    {
        co.SingleOutputMultiheadAttention(8, 2, sequence_len=8): ["token"],
        co.SingleOutputMultiheadAttention(8, 2, sequence_len=8, query_index=0): ["query", "token"],
        co.SingleOutputMultiheadAttention(8, 2, sequence_len=9): ["key", "value"],
        co.SingleOutputMultiheadAttention(8, 2, add_zero_attn=True, sequence_len=4): [
            "key",
            "value",
        ],
        co.RetroactiveMultiheadAttention(8, 2, sequence_len=4): ["query", "key", "value"],
        co.SingleOutputMultiheadAttention(8, 2, sequence_len=1): [],
    }.items(),
)
def test_up_to_twice_as_many_tokens_as_a_head_has_channels_are_remembered_themselves(net, rings):
    state = net.init_state((3, 8))
    assert list(state) == [*rings, "count"][: None if rings else 0]
    for name in rings:
        steps = net.sequence_len - 1
        assert state[name].shape == ((3, steps, 8) if name == "token" else (3, 2, steps, 4))
    streams = net.init_state((jnp.zeros((3, 8)),) * 3)
    assert "token" not in streams


@pytest.mark.parametrize("kind", [co.SingleOutputMultiheadAttention, co.WindowMultiheadAttention])
def test_attention_weights_are_dropped_in_training_alone(kind):
    length = 64
    streams = kind is co.SingleOutputMultiheadAttention
    net = kind(WIDTH, 1, dropout=0.25, bias=False, **({"sequence_len": length} if streams else {}))
    params = random_variables(net, 0)["params"]
    # Keys of zero weigh all tokens alike; each token's value is its own place, of one channel.
    params |= {name: jnp.zeros((WIDTH, WIDTH)) for name in ("q_proj_kernel", "k_proj_weight")}
    params["v_proj_weight"] = jnp.zeros((WIDTH, WIDTH)).at[0, 0].set(1.0)
    variables = {"params": {**params, "out_proj_kernel": jnp.eye(WIDTH)}}
    x = jnp.zeros((1, WIDTH, length)).at[0, 0].set(2.0 ** (jnp.arange(length) % 16))
    x = x if streams else x[:, :, None]
    run = jax.jit(lambda key: net.apply(variables, x, train=True, rngs={"dropout": key})[0, 0])
    whole = net.apply(variables, x)[0, 0].ravel()[0]
    np.testing.assert_allclose(whole, 4 * (2**16 - 1) / length, rtol=1e-5)
    found = np.stack([run(jax.random.key(seed)).ravel()[0] for seed in range(64)])
    kept = found * length * (1 - 0.25)  # what of each power of two was kept, among four
    np.testing.assert_allclose(kept, np.round(kept), rtol=1e-5)
    assert len(set(np.round(kept))) > 50
    np.testing.assert_allclose(found.mean(), whole, rtol=0.1)
    dropped = net.clone(dropout=1.0, bias=True)
    variables = random_variables(dropped, 0)
    y = dropped.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    expected = variables["params"]["out_proj_bias"].reshape(1, WIDTH, *(1,) * (y.ndim - 2))
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


# 100,000 steps, of which one in so many is looked at, and those around it.
STEPS, LOOKED_AT = 100_000, 9973


def logits_of_hundreds(net):
    """Variables with which queries and keys meet in logits of 100 and more."""
    variables = random_variables(net, 0)
    params = dict(variables["params"])
    params |= {name: 12 * params[name] for name in ("q_proj_kernel", "k_proj_weight")}
    return {"params": params}


def test_retroactive_attention_neither_drifts_nor_overflows():
    net = co.RetroactiveMultiheadAttention(WIDTH, HEADS, sequence_len=LENGTH)
    variables = logits_of_hundreds(net)
    x = clip_of((1, WIDTH, STEPS))
    params = variables["params"]
    query, key = x[0].T @ params["q_proj_kernel"], x[0].T @ params["k_proj_weight"].T
    logits = query * key / np.sqrt(WIDTH / HEADS)
    assert jnp.abs(logits.reshape(STEPS, HEADS, -1).sum(-1)).max() > 300

    @jax.jit
    def run(x):
        def step(state, x_t):
            frame, state = net.apply(variables, state, x_t, method="forward_step")
            return state, frame.value

        return jax.lax.scan(step, net.init_state((1, WIDTH)), jnp.moveaxis(x, 2, 0))[1]

    outputs = run(x)
    assert jnp.isfinite(outputs).all()
    window = jax.jit(lambda x: net.apply(variables, x)[:, :, 0])
    for t in range(LENGTH - 1, STEPS, LOOKED_AT):
        recomputed = window(x[:, :, t - LENGTH + 1 : t + 1])
        np.testing.assert_allclose(outputs[t], recomputed, rtol=1e-5, atol=1e-5)

    # What continual does to the same tokens: it loses their weights, or all of the sum.
    peer = to_continual(net, variables)
    with torch.no_grad():
        theirs = [peer.forward_step(x_t) for x_t in tensor(x)[:, :, :200].unbind(2)]
    assert not np.allclose(theirs[-1], outputs[199], rtol=1e-2, atol=1e-2)


def test_encoders_of_the_same_layers_are_equal():
    factory = co.TransformerEncoderLayerFactory(4, 2, 6, sequence_len=3)
    assert co.TransformerEncoder(factory, 2) == co.TransformerEncoder(factory, 2)
    assert co.TransformerEncoder(factory, 2) != co.TransformerEncoder(factory, 3)
