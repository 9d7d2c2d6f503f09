"""The laws, and equality with torch, for random compositions, in double precision."""

import jax
import numpy as np
import pytest
import torch

from benchmarks.peers import to_torch_nn
from tests.laws import check_laws, clip_of
from tests.networks import random_network, random_variables, shows_its_field

SEEDS = range(7)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def check_against_torch(net, variables, x):
    with torch.no_grad():
        expected = to_torch_nn(net, variables)(torch.from_numpy(np.array(x)))
    y = jax.jit(net.apply)(variables, x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_keep_the_laws_and_equal_torch(seed):
    net, shape = random_network(seed)
    variables, x = random_variables(net, seed, np.float64), clip_of(shape, seed, np.float64)
    check_against_torch(net, variables, x)
    check_laws(net, x, variables=variables, receptive_field=shows_its_field(net))
