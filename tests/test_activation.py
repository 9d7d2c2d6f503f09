"""Activations beside torch: values and gradients, at kinks and far out; and what training draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.errors import InvalidRngError

import cojax as co
from benchmarks.peers import to_torch_nn
from tests.networks import ACTIVATIONS, random_variables

# Kinks and what is near them, zeros of both signs, and what overflows in half precision as an
# exponential, a square or a sum ...
NEAR = [-6e4, -500, -90, -20, -10, -6, -3.5, -3, -1, -0.5, -0.3, -0.0]
NEAR += [0.0, 0.3, 0.5, 1, 2, 3, 3.5, 6, 10, 90, 500, 6e4]
# ... and in single precision.
FAR = [-1e30, -1e20, -1e13, -1e5, 1e5, 1e13, 1e20, 1e30]


@pytest.mark.parametrize(
    ("dtype", "values", "rtol"),
    [("float32", NEAR + FAR, 1e-5), ("float16", NEAR, 1e-3), ("bfloat16", NEAR, 8e-3)],
)
@pytest.mark.parametrize("net", ACTIVATIONS, ids=lambda net: type(net).__name__)
def test_values_and_gradients_equal_those_of_torch_in_double_precision(net, dtype, values, rtol):
    variables = random_variables(net, 0)
    x = jnp.asarray(values, dtype).reshape(1, 4, -1)

    def run(params, x):
        return net.apply({"params": params}, x)

    y, pull = jax.vjp(run, variables.get("params", {}), x)
    seed = jnp.linspace(-3, 3, y.size, dtype=dtype).reshape(y.shape)
    slopes, grad = pull(seed)
    assert y.dtype == grad.dtype == dtype

    peer = to_torch_nn(net, variables).double()
    theirs = torch.from_numpy(np.array(x, np.float64)).requires_grad_()
    expected = peer(theirs)
    expected.backward(torch.from_numpy(np.array(seed, np.float64)))
    close = {"rtol": rtol, "atol": 1e-6}
    np.testing.assert_allclose(np.asarray(y, np.float64), expected.detach(), **close)
    np.testing.assert_allclose(np.asarray(grad, np.float64), theirs.grad, **close)
    if slopes:
        np.testing.assert_allclose(slopes["negative_slope"], peer.weight.grad, **close)


def test_a_random_slope_is_drawn_for_every_entry_below_zero_and_every_step():
    net, x = co.RReLU(0.1, 0.3), -jnp.ones((2, 30, 40)).at[:, :10].set(-2)
    rngs = {"dropout": jax.random.key(0)}
    clip = net.apply({}, x, train=True, rngs=rngs)
    frames, _ = net.apply({}, {}, x, train=True, rngs=rngs, method="forward_steps")
    for y in (clip, frames.value):
        np.testing.assert_array_equal(y[:, :10], 2)
        slopes = -np.asarray(y[:, 10:])
        assert 0.1 <= slopes.min() < 0.11
        assert 0.29 < slopes.max() <= 0.3
        assert len(np.unique(slopes)) > 0.99 * slopes.size
        np.testing.assert_allclose(slopes.mean(), 0.2, atol=0.005)
    np.testing.assert_allclose(net.apply({}, x)[:, 10:], -0.2, rtol=1e-6)


def test_random_slopes_need_a_source_of_randomness():
    with pytest.raises(InvalidRngError, match="dropout"):
        co.RReLU().apply({}, jnp.ones((1, 1, 1)), train=True)


def test_the_initial_slope_is_that_asked_for():
    for net in (
        co.PReLU(3, 0.5),
        co.PReLU(3, init=0.5),
        co.PReLU(3).clone(negative_slope_init=0.5),
    ):
        slope = net.init(jax.random.key(0), jnp.ones((1, 3, 1)))["params"]["negative_slope"]
        np.testing.assert_array_equal(slope, [0.5, 0.5, 0.5])
