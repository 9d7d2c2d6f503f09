"""What the dropouts draw, beside torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.errors import InvalidRngError

import cojax as co
from benchmarks.peers import to_torch_nn

RNGS = {"dropout": jax.random.key(0)}
P = 0.3

ENTRIES = {"Dropout": co.Dropout(P), "AlphaDropout": co.AlphaDropout(P)}
CHANNELS = {
    "Dropout1d": (co.Dropout1d(P), (20, 200, 5)),
    "Dropout2d": (co.Dropout2d(P), (20, 200, 5, 3)),
    "Dropout3d": (co.Dropout3d(P), (20, 200, 5, 3, 2)),
    "FeatureAlphaDropout": (co.FeatureAlphaDropout(P), (20, 200, 5, 3)),
}


def trained(net, x, method="forward"):
    args = (x,) if method == "forward" else ({}, x)
    y = net.apply({}, *args, train=True, rngs=RNGS, method=method)
    return np.asarray(y if method == "forward" else y[0].value)


def values(y):
    """The two values that there are, the lower one first, and where the lower one is."""
    low, high = np.unique(y)
    return (low, high), y == low


def assert_torchs_values(net, shape, found):
    """That torch makes ones into the same two values."""
    torch.manual_seed(0)
    theirs = to_torch_nn(net, {}).train()(torch.ones(shape))
    np.testing.assert_allclose(found, np.unique(theirs), rtol=1e-6)


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_dropped_one_by_one(name):
    net, shape = ENTRIES[name], (20, 50, 30)
    for method in ("forward", "forward_steps"):
        found, dropped = values(trained(net, jnp.ones(shape), method))
        assert_torchs_values(net, shape, found)
        np.testing.assert_allclose(dropped.mean(), P, atol=0.02)
        for axes in ((1, 2), (0, 2), (0, 1)):
            np.testing.assert_allclose(dropped.mean(axes), P, atol=0.1)


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_dropped_whole_of_a_clip_and_of_a_step(name):
    net, shape = CHANNELS[name]
    found, dropped = values(trained(net, jnp.ones(shape)))
    assert_torchs_values(net, shape, found)
    channels = dropped.reshape(*shape[:2], -1)
    assert (channels == channels[..., :1]).all()
    np.testing.assert_allclose(channels.mean(), P, atol=0.02)

    again, dropped = values(trained(net, jnp.ones(shape), "forward_steps"))
    assert again == found
    steps = dropped.reshape(*shape[:3], -1)
    assert (steps == steps[..., :1]).all()
    np.testing.assert_allclose(steps.mean((0, 1, 3)), P, atol=0.03)
    assert (steps[:, :, 1:] != steps[:, :, :-1]).any((0, 1, 3)).all()


@pytest.mark.parametrize("net", [co.AlphaDropout(P), co.FeatureAlphaDropout(P)])
def test_alpha_dropouts_keep_zero_mean_and_unit_variance(net):
    x = jax.random.normal(jax.random.key(1), (100, 2000, 2))
    y = trained(net, x)
    np.testing.assert_allclose((y.mean(), y.var()), (0, 1), atol=0.02)


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout"])
def test_nothing_is_dropped_but_in_training_and_everything_with_certainty(name):
    kind, x = getattr(co, name), jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(kind(0.9).apply({}, x), x)
    np.testing.assert_array_equal(trained(kind(0), x), x)
    np.testing.assert_array_equal(trained(kind(1), x), 0)
    np.testing.assert_array_equal(to_torch_nn(kind(1.0), {}).train()(torch.ones(2, 3, 2)), 0)
    half = trained(kind(np.float32(0.5)), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(InvalidRngError, match="dropout"):
        kind().apply({}, x, train=True)
