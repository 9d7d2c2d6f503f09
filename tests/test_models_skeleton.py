"""Skeleton networks against the published ones, and against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's users call it

import cojax as co
from cojax.models.graph_convolution import (
    AdaptiveGraphConvolution,
    GraphConvolution,
    RowSumGraphConvolution,
)
from cojax.models.skeleton_checkpoints import is_regular, rename_regular
from cojax.models.spatial_attention import AttentionUnit, SpatialAttention
from tests.goldens import find, load
from tests.laws import assert_same_bits, check_laws, clip_of
from tests.networks import random_variables

NETWORKS = {
    "cost_gcn": co.models.cost_gcn,
    "coa_gcn": co.models.coa_gcn,
    "cos_tr": co.models.cos_tr,
}
ARM = co.models.Graph(joints=3, inward=((1, 0), (2, 1)))


def tiny(name, modified, **configuration):
    """A small network for clips ``(B, 3, T, 3, 2)``, with a block of every kind."""
    heads = {"num_heads": 2, "graph_blocks": 1} if name == "cos_tr" else {}
    return NETWORKS[name](
        **{
            "modified": modified,
            "num_frames": 9 if modified else 12,
            "num_classes": 3,
            "graph": ARM,
            "channels": (8, 8, 16),
            "kernel_size": 3,
            **heads,
            **configuration,
        }
    )


pytestmark = pytest.mark.usefixtures("quick_compilation")


# The published networks.


@pytest.mark.parametrize("golden", [f"{n}{kind}" for n in NETWORKS for kind in ("", "_mod_T300")])
def test_networks_answer_as_the_published_ones(golden):
    golden = load(golden)
    name, modified = golden.meta["model"].removesuffix("_mod"), "mod" in golden.meta["model"]
    net = NETWORKS[name](modified=modified, num_frames=golden.meta["T_model"])
    variables = co.load_torch(net, golden.state_dict)
    x = jnp.asarray(golden.x)
    frames, _ = jax.jit(functools.partial(net.apply, method="forward_steps"))(
        variables, net.init_state(x[:, :, 0]), x
    )
    (emitted,) = np.nonzero(frames.valid)
    np.testing.assert_array_equal(emitted, golden.step_index)
    steps = np.moveaxis(golden.steps, 0, 2)
    assert_agree(frames.dense(), steps)

    clip, expected = x[:, :, : golden.meta["T_model"]], golden.arrays["forward_all"]
    if name == "coa_gcn" and not modified:  # There forward attends over the clip, unlike the steps.
        clip, expected = x, steps
    y = jax.jit(net.apply)(variables, clip)
    expected = expected.reshape(*y.shape[:2], -1)
    assert_agree(y[:, :, : expected.shape[2]], expected)


def assert_agree(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


PADDED = co.Timing(receptive_field=449, stride=4, padding=152, end=152, delay=296)
UNPADDED = co.Timing(receptive_field=300, stride=1, padding=0, end=0, delay=299)


@pytest.mark.parametrize(
    ("name", "trained", "parameters"),
    [
        ("cost_gcn", 3_141_478, 3_160_228),
        ("coa_gcn", 3_469_510, 3_488_260),
        ("cos_tr", 3_086_470, 3_092_095),
    ],
)
@pytest.mark.parametrize(("modified", "timing"), [(True, UNPADDED), (False, PADDED)])
def test_sizes_and_timings_are_the_published_ones(name, trained, parameters, modified, timing):
    net = NETWORKS[name](modified=modified)
    variables = declared(net)
    assert count(variables["params"]) == trained
    assert count(variables["params"]) + count(variables["constants"]) == parameters
    assert net.timing == timing


def declared(net):
    return jax.eval_shape(lambda key: net.init(key, method="declare"), jax.random.key(0))


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("modified", [True, False])
@pytest.mark.parametrize("frames", [160, 200, 301])
def test_so_many_frames_and_their_flush_make_one_prediction(modified, frames):
    net = co.models.cost_gcn(modified=modified, num_frames=frames)
    whole = net.children()["layers"].timing.n_out(frames)
    assert net.children()["pool"].kernel_size == (whole,)
    assert net.timing.n_out(frames) >= 1
    assert net.timing.delay < frames


@pytest.mark.parametrize(
    ("dataset", "joints", "classes"),
    [("ntu60", 25, 60), ("ntu120", 25, 120), ("kinetics", 18, 400)],
)
@pytest.mark.parametrize("persons", [1, 2])
def test_datasets_decide_on_joints_and_classes(dataset, joints, classes, persons):
    net = co.models.coa_gcn(dataset, num_persons=persons)
    step = jax.ShapeDtypeStruct((2, 3, joints, persons), jnp.float32)
    assert net.output_spec(step).shape == (2, classes)


# Graphs.


def test_the_graph_of_ntu_is_the_published_one():
    with np.load(find("golden/ntu_graph.npz")) as file:
        np.testing.assert_allclose(co.models.NTU_RGBD.adjacency(), file["A"], rtol=1e-6)


@pytest.mark.parametrize("graph", [co.models.NTU_RGBD, co.models.KINETICS])
def test_skeletons_are_trees_and_neighbours_are_averaged(graph):
    own, inward, outward = graph.adjacency()
    np.testing.assert_array_equal(own, np.eye(graph.joints))
    np.testing.assert_array_equal(inward > 0, outward.T > 0)
    for partition in (inward, outward):
        weights = partition.sum(axis=0)
        assert set(np.round(weights, 6)) == {0, 1}
    # A joint is reached from any other over bones.
    reach = np.linalg.matrix_power(own + inward + outward, graph.joints)
    assert (reach > 0).all()
    assert len(graph.inward) == graph.joints - 1


# Checkpoints.


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("modified", [True, False])
def test_checkpoints_of_regular_networks_load(name, modified):
    net = tiny(name, modified)
    variables = random_variables(net, 0)
    state_dict = co.to_torch(net, variables)
    regular = {k.replace("0.1.", "").replace("0.0.residual", "residual"): v
               for k, v in state_dict.items()}  # fmt: skip
    assert "layers.layer2.gcn.bn.weight" in regular
    assert "layers.layer3.residual.t_conv.weight" in regular
    assert is_regular(regular)
    assert not is_regular(state_dict)
    for checkpoint in (regular, state_dict):
        loaded = co.load_torch(net, checkpoint, rename=rename_regular)
        assert_same_bits(loaded, variables, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_variables_from_a_clip_are_those_declared(name):
    net = tiny(name, modified=True)
    from_clip = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3, 9, 3, 2)))
    assert jax.tree.structure(from_clip) == jax.tree.structure(declared(net))


# The laws.


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("modified", [True, False])
def test_networks_keep_the_laws(modified):
    net = tiny("cost_gcn", modified, channels=(4, 8))
    x, variables = clip_of((2, 3, 12, 3, 2), 0, np.float64), random_variables(net, 0, np.float64)
    check_laws(net, x, variables=variables, gradients=False)


@pytest.mark.usefixtures("double_precision")
def test_units_keep_the_laws():
    net = co.Sequential(
        AdaptiveGraphConvolution(2, 4, ARM),
        RowSumGraphConvolution(4, 4, ARM),
        AttentionUnit(4, 8, ARM, num_heads=2),
    )
    x, variables = clip_of((2, 2, 4, 6), 0, np.float64), random_variables(net, 0, np.float64)
    check_laws(net, x, variables=variables)


@pytest.mark.parametrize("kind", [GraphConvolution, AdaptiveGraphConvolution, AttentionUnit])
def test_a_batch_may_be_empty(kind):
    unit = kind(4, 32, ARM)
    variables, x = random_variables(unit, 0), jnp.zeros((0, 4, 5, 6))
    assert jax.eval_shape(unit.apply, variables, x).shape == (0, 32, 5, 6)
    state = unit.init_state(x[:, :, 0])
    step = functools.partial(unit.apply, method="forward_step")
    frame, _ = jax.eval_shape(step, variables, state, x[:, :, 0])
    assert frame.value.shape == (0, 32, 6)


# Persons.


@pytest.mark.parametrize("name", ["coa_gcn", "cos_tr"])
def test_the_logits_of_two_persons_are_the_mean_of_theirs(name):
    two, one = (tiny(name, modified=False, num_persons=persons) for persons in (2, 1))
    variables, x = random_variables(two, 0), clip_of((2, 3, 12, 3, 2))

    def alone(person):
        def part(path, leaf):
            norm = any(key.key == "layers_data_bn" for key in path[:2]) and leaf.ndim
            return jnp.split(leaf, 2)[person] if norm else leaf

        parts = jax.tree_util.tree_map_with_path(part, variables)
        return jax.jit(one.apply)(parts, x[..., person : person + 1])

    y = jax.jit(two.apply)(variables, x)
    np.testing.assert_allclose(y, (alone(0) + alone(1)) / 2, rtol=1e-4, atol=1e-5)


# Units, and what they are in torch: on clips (persons * B, C, T, joints).


def torch_norm(x, sd, name, train):
    mean, var, scale, bias = (
        sd[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, scale, bias, training=train)


def torch_conv(x, sd, name):
    return F.conv2d(x, sd[f"{name}.weight"], sd[f"{name}.bias"])


def torch_graph_convolution(connected):
    def run(x, sd, train):
        y = sum(torch_conv(connected(x, sd, i), sd, f"g_conv.{i}") for i in range(3))
        residual = x
        if "gcn_residual.0.weight" in sd:
            residual = torch_norm(torch_conv(x, sd, "gcn_residual.0"), sd, "gcn_residual.1", train)
        return F.relu(torch_norm(y, sd, "bn", train) + residual)

    return run


def torch_likeness(x, sd, i):
    a, b = (torch_conv(x, sd, f"{name}.{i}") for name in ("a_conv", "b_conv"))
    return torch.einsum("nctv,nctw->ntvw", a, b) / a.shape[1]


def by_bones(x, sd, i):
    return x @ (sd["A"][i] * sd["graph_attn"][i])


def by_likeness(x, sd, i):
    weights = torch_likeness(x, sd, i).softmax(-2) + sd["A"][i] + sd["graph_attn"][i]
    return torch.einsum("nctv,ntvw->nctw", x, weights)


def by_likeness_as_published(x, sd, i):
    weights = torch_likeness(x, sd, i).softmax(-1) + sd["A"][i] + sd["graph_attn"][i]
    return torch.einsum("nctv,ntvw->nctv", x, weights)


def torch_attention_unit(x, sd, train):
    n, c, t, v = x.shape
    y = torch_norm(x.transpose(2, 3).reshape(n, c * v, t), sd, "data_bn", train)
    y = torch_conv(y.reshape(n, c, v, t).transpose(2, 3), sd, "attention_conv.qkv_conv")
    out = y.shape[1] * 2 // 3

    def heads(channels):
        return channels.reshape(n, 2, -1, t, v).permute(0, 3, 1, 4, 2)

    y = F.scaled_dot_product_attention(*map(heads, y.split([out // 4, out // 4, out], 1)))
    y = y.permute(0, 2, 4, 1, 3).reshape(n, out, t, v)
    y = torch_conv(y, sd, "attention_conv.attn_out")
    return F.relu(torch_norm(y + x if out == c else y, sd, "bn", train))


UNITS = {
    "graph": (lambda: GraphConvolution(8, 8, ARM), torch_graph_convolution(by_bones)),
    "graph, other channels": (
        lambda: GraphConvolution(4, 8, ARM),
        torch_graph_convolution(by_bones),
    ),
    "adaptive": (
        lambda: AdaptiveGraphConvolution(4, 8, ARM),
        torch_graph_convolution(by_likeness),
    ),
    "row sums": (
        lambda: RowSumGraphConvolution(4, 8, ARM),
        torch_graph_convolution(by_likeness_as_published),
    ),
    "attention": (
        lambda: AttentionUnit(8, 8, ARM, num_heads=2, drop_connect=0),
        torch_attention_unit,
    ),
    "attention, other channels": (
        lambda: AttentionUnit(4, 8, ARM, num_heads=2, drop_connect=0),
        torch_attention_unit,
    ),
}


@pytest.mark.parametrize("name", UNITS)
def test_units_are_those_of_torch_and_track_the_same_statistics(name):
    build, peer = UNITS[name]
    unit = build()
    variables, x = random_variables(unit, 0), clip_of((2, unit.in_channels, 4, 6))
    rows = np.array(x).reshape(2, -1, 4, 2, 3).transpose(0, 3, 1, 2, 4)
    rows = torch.from_numpy(rows.reshape(4, -1, 4, 3))
    apply = jax.jit(functools.partial(unit.apply, mutable="batch_stats"), static_argnames="train")
    for train in (False, True):
        y, tracked = apply(variables, x, train=train)
        sd = co.to_torch(unit, variables)
        theirs = peer(rows, sd, train).reshape(2, 2, -1, 4, 3).permute(0, 2, 3, 1, 4)
        np.testing.assert_allclose(y, theirs.reshape(y.shape), rtol=1e-4, atol=1e-5)
        updated = co.to_torch(unit, {**variables, **tracked})
        for key in (key for key in sd if "running" in key):
            np.testing.assert_allclose(updated[key], sd[key], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", UNITS)
def test_a_step_in_training_is_a_clip_of_one_and_leaves_invalid_frames_alone(name):
    unit = UNITS[name][0]()
    variables, x = random_variables(unit, 0), clip_of((2, unit.in_channels, 1, 6))

    @jax.jit
    def both(valid):
        frame = co.Frame(x[:, :, 0], valid)
        step = unit.apply(
            variables, {}, frame, train=True, method="forward_step", mutable="batch_stats"
        )
        return step, unit.apply(variables, x, train=True, mutable="batch_stats")

    ((frame, _), tracked), (clip, of_clip) = both(True)
    np.testing.assert_allclose(frame.value, clip[:, :, 0], rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), tracked, of_clip)
    (_, untracked), _ = both(False)
    assert_same_bits(untracked["batch_stats"], variables["batch_stats"], "statistics")


def test_drop_connect_hides_joints_from_all_of_their_frame_and_head():
    # Values say which joint they come from: head h, channel k of the output is the weight of k.
    joints, heads, channels = 4, 2, 8
    graph = co.models.Graph(joints, ((1, 0), (2, 1), (3, 2)))
    unit = SpatialAttention(joints, channels, graph, num_heads=heads)
    identity = np.eye(joints, dtype=np.float32)
    params = random_variables(unit, 0)["params"]
    kernel = params["layers_qkv_conv"]["kernel"]
    params["layers_qkv_conv"] = {
        "kernel": kernel.at[0, 0, :, channels // 2 :].set(np.tile(identity, heads)),
        "bias": jnp.zeros(2 * channels // 4 + channels),
    }
    params["layers_attn_out"] = {
        "kernel": jnp.eye(channels)[None, None],
        "bias": jnp.zeros(channels),
    }
    x = jnp.broadcast_to(jnp.tile(identity, 2)[None, :, None], (2, joints, 50, 2 * joints))

    def weights(**options):
        y = np.array(unit.apply({"params": params}, x, **options))
        return y.reshape(2, heads, joints, 50, 2, joints)

    whole = weights()
    dropped = weights(train=True, rngs={"dropout": jax.random.key(0)})
    hidden = (dropped == 0).all(axis=-1, keepdims=True)
    assert ((dropped == 0) == hidden).all()
    expected = np.where(hidden, 0, whole)
    expected = expected / np.maximum(expected.sum(axis=2, keepdims=True), 1e-8)
    np.testing.assert_allclose(dropped, expected, rtol=1e-5)
    assert abs(hidden.mean() - 0.5) < 0.05
    for axis in (0, 1, 3, 4):  # Rows, heads, frames and persons draw for themselves.
        assert hidden.std(axis=axis).any()


# Errors.


@pytest.mark.parametrize("shape", [(2, 3, 24, 2), (2, 3, 25, 1), (2, 2, 25, 2), (2, 3, 25)])
def test_steps_of_another_skeleton_are_refused(shape):
    net = co.models.cost_gcn("ntu60")
    with pytest.raises(co.InputError, match=r"\(B, 3, 25, 2\), got .*num_persons="):
        net.init_state(shape)


def test_units_refuse_half_a_person():
    with pytest.raises(co.InputError, match="mixes the 3 joints of each person, got 4"):
        GraphConvolution(2, 2, ARM).init_state((1, 2, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": "ntu"}, "ntu60"),
        ({"num_frames": 80}, "num_frames=80 is too short: the blocks see 81 frames"),
        ({"num_frames": 140, "modified": False}, "num_frames=140 is too short"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"channels": ()}, "there must be a block"),
        ({"num_persons": 0}, "num_persons=0"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        co.models.cost_gcn(**arguments)


def test_impossible_skeletons_and_heads_are_refused():
    with pytest.raises(ValueError, match=r"joints 0 to 2: bone=\(3, 0\)"):
        co.models.Graph(3, ((1, 0), (3, 0)))
    with pytest.raises(ValueError, match="must be a multiple of 4 \\* num_heads = 32"):
        co.models.cos_tr(channels=(64, 64, 64, 48))
    with pytest.raises(ValueError, match="must be a probability"):
        co.models.cos_tr(drop_connect=2)
