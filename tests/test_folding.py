"""Folded networks answer as the others do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from cojax.module import walk
from tests.goldens import state_dict_of
from tests.laws import clip_of
from tests.networks import random_network, random_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Rectified(co.BatchNorm1d):
    def clip(self, x, train=False):
        return jax.nn.relu(super().clip(x, train))


class Bounded(co.Conv1d):
    def clip(self, x, train=False):
        return jnp.tanh(super().clip(x, train))


class Reversed(co.Sequential):
    def clip(self, x, train=False):
        for layer in reversed(self.children().values()):
            x = layer.clip(x, train)
        return x


def norms(net):
    kinds = co.BatchNorm, co.BatchNorm1d, co.BatchNorm2d, co.BatchNorm3d
    return sum(isinstance(module, kinds) for _, module in walk(net))


def check(net, variables, x):
    """Folds a network and compares clips and steps; returns how many norms are left."""
    folded, constants = co.fold_batch_norm(net, variables)
    assert folded.timing == net.timing
    state = net.init_state(x[:, :, 0])
    assert jax.tree.structure(folded.init_state(x[:, :, 0])) == jax.tree.structure(state)
    expected, found = jax.jit(net.apply)(variables, x), jax.jit(folded.apply)(constants, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * jnp.abs(expected).max())

    @jax.jit
    def stream(x):
        return folded.apply(constants, x, method="forward_stream")

    np.testing.assert_allclose(stream(x), found, rtol=1e-4, atol=1e-5 * jnp.abs(found).max())
    return norms(folded)


SKELETONS = {
    "CoST-GCN": (co.models.cost_gcn, {}, 0),
    "CoAGCN": (co.models.coa_gcn, {"modified": False}, 0),
    # The norm of joints stays in the one block of spatial attention.
    "CoS-TR": (co.models.cos_tr, {"graph_blocks": 2}, 1),
}


@pytest.mark.parametrize("name", SKELETONS)
def test_skeletons_are_folded_but_for_norms_of_joints(name):
    build, options, kept = SKELETONS[name]
    net = build(
        channels=(32, 32, 64), num_frames=32, num_classes=5, kernel_size=3, pool_size=4,
        pool_padding=0, **options,
    )  # fmt: skip
    variables = co.load_torch(net, state_dict_of(net))
    assert norms(net) > 5
    assert check(net, variables, clip_of((1, 3, 24, 25, 2))) == kept


def test_cox3d_is_folded_whole():
    net = co.models.cox3d(32, 4, 10, width_factor=1, depth_factor=0.2)
    variables = co.load_torch(net, state_dict_of(net))
    assert check(net, variables, clip_of((1, 3, 6, 32, 32))) == 0


def test_random_networks_answer_alike_folded():
    for seed in range(4):
        net, shape = random_network(seed)
        check(net, random_variables(net, seed), clip_of(shape))


def test_norms_that_follow_no_convolution_become_depthwise_convolutions():
    nets = [
        (co.BatchNorm1d(3), (2, 3, 8)),
        (co.BatchNorm2d(3, affine=False), (2, 3, 8, 4)),
        (co.BatchNorm3d(3, bias=False), (2, 3, 8, 4, 5)),
        (co.BatchNorm1d(1), (2, 1, 8)),
        (co.Sequential(co.Conv1d(3, 4, 3), co.ReLU(), co.BatchNorm1d(4)), (2, 3, 8)),
        (co.Sequential(co.BatchNorm1d(3), co.Conv1d(3, 4, 3)), (2, 3, 8)),
        (co.Sequential(co.BatchNorm1d(3), co.BatchNorm1d(3)), (2, 3, 8)),
    ]
    for net, shape in nets:
        variables = random_variables(net, 0)
        assert check(net, variables, clip_of(shape)) == 0
        _, constants = co.fold_batch_norm(net, variables)
        assert list(constants) == ["params"]


def test_nothing_is_folded_into_layers_that_compute_something_else():
    for net in (
        co.Sequential(Bounded(3, 4, 3), co.BatchNorm1d(4)),
        Reversed(co.Conv1d(3, 3, 1), co.BatchNorm1d(3)),
    ):
        variables = random_variables(net, 0)
        folded, constants = co.fold_batch_norm(net, variables)
        x = clip_of((2, 3, 8))
        np.testing.assert_allclose(folded.apply(constants, x), net.apply(variables, x), rtol=1e-5)


def test_norms_of_other_kinds_stay_as_they_are():
    nets = [
        co.Sequential(co.Conv1d(3, 4, 3), co.BatchNorm1d(4, track_running_stats=False)),
        co.Sequential(co.Conv1d(3, 4, 3), Rectified(4)),
        co.Sequential(co.ReLU(), co.BatchNorm(3)),
    ]
    for net in nets:
        variables = random_variables(net, 0)
        folded, constants = co.fold_batch_norm(net, variables)
        assert norms(folded) == 1
        x = clip_of((2, 3, 8))
        np.testing.assert_array_equal(folded.apply(constants, x), net.apply(variables, x))


def test_a_norm_without_scale_and_bias_is_folded_into_a_linear_too():
    net = co.Sequential(co.Linear(3, 4, bias=False, channel_dim=1), co.BatchNorm1d(4, affine=False))
    assert check(net, random_variables(net, 0), clip_of((2, 3, 8))) == 0


def test_a_folded_network_keeps_the_names_and_dtypes_of_its_weights():
    net = co.Sequential({"conv": co.Conv1d(3, 4, 3), "norm": co.BatchNorm1d(4)})
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_variables(net, 0)["params"])
    variables = {"params": half, "batch_stats": random_variables(net, 0)["batch_stats"]}
    folded, constants = co.fold_batch_norm(net, variables)
    assert list(folded.children()) == ["conv", "norm"]
    assert {leaf.dtype for leaf in jax.tree.leaves(constants)} == {jnp.dtype(jnp.bfloat16)}


def test_what_cannot_be_folded_rightly_is_refused():
    conv = co.Conv1d(3, 3, 1)
    net = co.Sequential(conv, co.BatchNorm1d(3), conv)
    with pytest.raises(ValueError, match="0 and 2 are one module"):
        co.fold_batch_norm(net, random_variables(net, 0))
    with pytest.raises(ValueError, match="the variables lack batch_stats"):
        co.fold_batch_norm(net.append(co.ReLU()), {"params": {}})
    net = co.Sequential(co.Conv1d(3, 4, 3), co.BatchNorm1d(4))
    variables = random_variables(net, 0)
    del variables["params"]["layers_1"]["bias"]
    with pytest.raises(ValueError, match="the variables lack params of a batch norm: bias"):
        co.fold_batch_norm(net, variables)
    del variables["params"]["layers_1"]
    with pytest.raises(ValueError, match="the variables lack params of a batch norm: scale, bias"):
        co.fold_batch_norm(net, variables)


def test_a_shared_activation_hinders_no_folding():
    relu = co.ReLU()
    parts = co.Conv1d(3, 4, 3), co.BatchNorm1d(4), relu, co.Conv1d(4, 4, 3), co.BatchNorm1d(4), relu
    net = co.Sequential(*parts)
    assert check(net, random_variables(net, 0), clip_of((2, 3, 8))) == 0
