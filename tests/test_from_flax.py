"""Modules of Flax, converted: the same function, and steps."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from cojax.interop import convert
from cojax.interop.from_flax import BUILDERS as FLAX
from tests.conversion import TOLERANCE, clip_and_stream
from tests.laws import clip_of

pytestmark = pytest.mark.usefixtures("quick_compilation", "own_registrations")

norm = partial(nn.BatchNorm, use_running_average=True)

# Layers and functions, and the shape of a clip with the channels last.
LINEN = {
    "conv of 1 axis": (nn.Conv(3, 3), (2, 7, 4)),
    "conv of 2 axes": (nn.Conv(3, (3, 2), (2, 1), padding=[1, (0, 1)]), (2, 7, 5, 4)),
    "conv of 3 axes": (nn.Conv(2, (2, 3, 4)), (1, 5, 4, 5, 3)),
    "conv, valid and grouped": (
        nn.Conv(4, (3,), (2,), "VALID", kernel_dilation=2, feature_group_count=2, use_bias=False),
        (2, 9, 4),
    ),
    "conv, causal": (nn.Conv(3, (3,), 2, "CAUSAL", kernel_dilation=2), (2, 8, 4)),
    "conv, circular in space": (nn.Conv(3, (1, 4), padding="CIRCULAR"), (2, 4, 5, 3)),
    "conv, reflecting space": (nn.Conv(3, (1, 3), padding="REFLECT"), (2, 4, 5, 3)),
    "conv, strided in space": (nn.Conv(3, (3, 2), (1, 2), padding="VALID"), (2, 4, 5, 3)),
    "dense": (nn.Dense(5), (2, 4, 3, 3)),
    "dense, unbiased": (nn.Dense(5, use_bias=False), (2, 4, 3)),
    "batch norm": (norm(epsilon=0.1), (2, 4, 2, 3)),
    "batch norm, plain": (norm(use_scale=False, use_bias=False), (2, 4, 3)),
    "layer norm": (nn.LayerNorm(use_bias=False), (2, 4, 2, 3)),
    "group norm": (nn.GroupNorm(2), (2, 4, 2, 6)),
    "group norm by size": (nn.GroupNorm(None, group_size=3), (2, 4, 6)),
    "instance norm": (nn.InstanceNorm(), (2, 4, 2, 3)),
    "dropout": (nn.Dropout(0.5, deterministic=True), (2, 4, 3)),
    "prelu": (nn.PReLU(), (2, 4, 3)),
    "rnn": (nn.RNN(nn.SimpleCell(3)), (2, 5, 4)),
    "rnn, relu": (nn.RNN(nn.SimpleCell(3, activation_fn=nn.relu)), (2, 5, 4)),
    "lstm": (nn.RNN(nn.LSTMCell(3)), (2, 5, 4)),
    "lstm, optimised": (nn.RNN(nn.OptimizedLSTMCell(3)), (2, 5, 4)),
    "gru": (nn.RNN(nn.GRUCell(3)), (2, 5, 4)),
    "avg pool": (partial(nn.avg_pool, window_shape=(3,)), (2, 7, 4)),
    "avg pool, same": (
        partial(nn.avg_pool, window_shape=(3, 1), padding="SAME", count_include_pad=False),
        (2, 7, 3, 4),
    ),
    "max pool": (
        partial(nn.max_pool, window_shape=(2, 2, 3), strides=(2, 1, 2), padding=((1, 1),) * 3),
        (2, 7, 3, 4, 2),
    ),
    "gelu, exact": (partial(nn.gelu, approximate=False), (2, 4, 3)),
    "leaky relu": (partial(nn.leaky_relu, negative_slope=0.3), (2, 4, 3)),
    **{
        function.__name__: (function, (2, 4, 6))
        for function in FLAX
        if not isinstance(function, type) and function not in (nn.avg_pool, nn.max_pool)
    },
}


def variables_for(module, x, seed=0):
    """Random variables of a Flax module, positive where they must be; none of a function."""
    if not isinstance(module, nn.Module):
        return {}
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 0.8, leaf.shape), leaf.dtype),
        jax.jit(module.init)(jax.random.key(0), x),
    )


def applied(module, variables, x):
    return module.apply(variables, x) if isinstance(module, nn.Module) else module(x)


@pytest.mark.parametrize("case", LINEN)
def test_a_flax_layer_keeps_its_function_with_the_axes_moved(case):
    module, shape = LINEN[case]
    x = clip_of(shape)
    variables = variables_for(module, x)
    net, converted = co.continual(module, variables)
    y = jax.jit(net.apply)(converted, jnp.moveaxis(x, -1, 1))
    expected = jax.jit(partial(applied, module))(variables, x)
    np.testing.assert_allclose(jnp.moveaxis(y, 1, -1), expected, **TOLERANCE)
    co.to_torch(net, converted)


def test_all_layers_of_flax_that_are_known_are_compared():
    compared = {convert._kind(module) for module, _ in LINEN.values()}
    assert set(FLAX) - compared == {nn.Sequential, nn.Bidirectional}


def test_nested_flax_modules_stream_what_they_compute():
    module = nn.Sequential(
        [
            nn.Conv(8, (4,)),
            nn.relu,
            norm(),
            nn.Sequential([nn.Conv(6, (3,), padding="CAUSAL", kernel_dilation=2), nn.glu]),
            partial(nn.max_pool, window_shape=(2,), strides=(2,)),
            nn.RNN(nn.GRUCell(4)),
            nn.Dropout(0.5, deterministic=True),
            nn.Dense(3),
        ]
    )
    x = clip_of((2, 12, 4))
    variables = variables_for(module, x)
    net, converted = co.continual(module, variables)
    assert net.timing == co.Timing(receptive_field=9, stride=2, padding=5, end=2, delay=3)
    expected = jnp.moveaxis(module.apply(variables, x), -1, 1)

    for y in clip_and_stream(net, converted, jnp.moveaxis(x, -1, 1)):
        np.testing.assert_allclose(y, expected, **TOLERANCE)


def test_a_converted_batch_norm_trains_as_in_flax():
    x = clip_of((3, 5, 2, 4))
    trained = nn.BatchNorm(use_running_average=False, momentum=0.8)
    variables = trained.init(jax.random.key(0), x)
    net, converted = co.continual(trained, variables)
    y, updated = net.apply(converted, jnp.moveaxis(x, -1, 1), train=True, mutable="batch_stats")
    expected, statistics = trained.apply(variables, x, mutable="batch_stats")
    np.testing.assert_allclose(jnp.moveaxis(y, 1, -1), expected, **TOLERANCE)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            updated["batch_stats"][name], statistics["batch_stats"][name], rtol=1e-5
        )


def test_a_flax_module_used_twice_has_its_variables_in_both_places():
    dense = nn.Dense(4)
    inner = nn.Sequential([nn.Conv(4, (3,)), nn.relu])
    module = nn.Sequential([dense, nn.relu, dense, inner, nn.relu, inner])
    x = clip_of((2, 6, 4))
    variables = variables_for(module, x)
    net, converted = co.continual(module, variables)
    expected = jnp.moveaxis(module.apply(variables, x), -1, 1)
    for y in clip_and_stream(net, converted, jnp.moveaxis(x, -1, 1)):
        np.testing.assert_allclose(y, expected, **TOLERANCE)


class Gate(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(x))


def halved(x):
    return x / 2


def test_what_flax_has_and_streams_have_not_is_named_by_path():
    module = nn.Sequential(
        [
            nn.Conv(2, (3,), 2),
            nn.Conv(2, (3,), padding="CIRCULAR"),
            nn.Conv(2, (3,), input_dilation=2),
            nn.Sequential([Gate(), halved, nn.relu]),
            nn.RNN(nn.MGUCell(2)),
            nn.RNN(nn.GRUCell(2), reverse=True),
            nn.Bidirectional(nn.RNN(nn.GRUCell(2)), nn.RNN(nn.GRUCell(2))),
            nn.LayerNorm(reduction_axes=(1, 2)),
            norm(axis_name="batch"),
            nn.avg_pool,
            partial(nn.max_pool, window_shape=(2,), padding="SAME"),
            partial(nn.softmax, axis=1),
            nn.Dense(2, dtype=jnp.bfloat16),
            nn.GroupNorm(2, use_scale=False, use_bias=False),
        ]
    )
    variables = {
        "params": {
            **{f"layers_{i}": {"kernel": jnp.ones((3, 2, 2))} for i in range(3)},
            "layers_12": {"kernel": jnp.ones((2, 2))},
        }
    }
    with pytest.raises(co.ConversionError) as error:
        co.continual(module, variables)
    for path, words in {
        "layers_0 (Conv)": "padding='SAME' pads by the length of what comes",
        "layers_1 (Conv)": "pads time with padding='CIRCULAR'",
        "layers_2 (Conv)": "a transposed convolution",
        "layers_3/layers_0 (Gate)": "lambda part: co.forward_stepping(part, channels_last=True)",
        "layers_3/layers_1 (halved)": "co.register(halved, builder)",
        "layers_4 (RNN)": "repeats a MGUCell",
        "layers_5 (RNN)": "runs in reverse",
        "layers_6 (Bidirectional)": "is bidirectional",
        "layers_7 (LayerNorm)": "has reduction_axes=(1, 2)",
        "layers_8 (BatchNorm)": "has axis_name='batch'",
        "layers_9 (avg_pool)": "needs its window",
        "layers_10 (max_pool)": "pads unevenly",
        "layers_11 (softmax)": "runs along channels alone",
        "layers_12 (Dense)": "computes in bfloat16",
        "layers_13 (GroupNorm)": "does not say how many channels",
    }.items():
        (line,) = (line for line in str(error.value).splitlines() if f"  {path}: " in line)
        assert words in line
    assert "layers_3/layers_2" not in str(error.value)


def test_flax_variables_that_do_not_fit_are_named():
    kernel = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    with pytest.raises(
        co.ConversionError, match=r"no 'kernel' among 'params'.*\(module, variables\)"
    ):
        co.continual(nn.Dense(3))
    with pytest.raises(co.ConversionError, match="beside those of its parts: layers_1"):
        co.continual(nn.Sequential([nn.relu]), {"params": {"layers_1": kernel}})
    with pytest.raises(co.ConversionError) as error:
        co.continual(nn.Dense(4), {"params": {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3)}})
    assert "params/kernel has shape (2, 3), expected (2, 4)" in str(error.value)
    assert "params/bias, of shape (4,), is missing" in str(error.value)
    assert "params/scale, of shape (3,), is none of the network's" in str(error.value)


def test_flax_modules_and_functions_of_ones_own_are_registered():
    module = nn.Sequential([nn.Conv(4, (3,), padding="VALID"), Gate(), halved, co.ReLU()])
    x = clip_of((2, 6, 3))
    variables = variables_for(nn.Sequential(module.layers[:3]), x)
    expected = nn.relu(nn.Sequential(module.layers[:3]).apply(variables, x))
    co.register(Gate, lambda gate: co.forward_stepping(gate, channels_last=True))
    co.register(halved, lambda _: co.Multiply(0.5))
    expected = jnp.moveaxis(expected, -1, 1)
    net, converted = co.continual(module, variables)
    for y in clip_and_stream(net, converted, jnp.moveaxis(x, -1, 1)):
        np.testing.assert_allclose(y, expected, **TOLERANCE)

    def gate_of_parts(gate, *, convert):
        branch = co.Sequential(convert(nn.Dense(4), "Dense_0"), co.Sigmoid())
        return co.Residual(branch, reduce="mul")

    co.register(Gate, gate_of_parts)
    again, converted = co.continual(module, variables)
    y = again.apply(converted, jnp.moveaxis(x, -1, 1))
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert list(co.to_torch(again, converted))[2:] == ["1.1.0.weight", "1.1.0.bias"]
