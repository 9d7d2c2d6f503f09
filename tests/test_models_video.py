"""The video networks of the zoo, against what their PyTorch references answer."""

import ast
import functools
import math
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from cojax.interop.names import entries, flattened
from cojax.models.video import classifier, residual_block
from cojax.models.x3d import _branch, _squeeze_excitation
from tests import goldens
from tests.laws import assert_same_bits, check_laws, clip_of, variables_of

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _tiny(build, image_size, pool_size, **options):
    return functools.partial(
        build, image_size=image_size, pool_size=pool_size, num_classes=10, **options
    )


TINY_X3D = _tiny(co.models.cox3d, 32, 6, width_factor=1, depth_factor=0.5, head_features=64)
TINY_SLOW = _tiny(co.models.coslow, 64, 8, width_factor=1 / 8)
TINY_I3D = _tiny(co.models.coi3d, 64, 8, width_factor=1 / 8)
TINY = {"x3d": TINY_X3D, "slow": TINY_SLOW, "i3d": TINY_I3D}


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(net, variables, x, method="forward"):
    return net.apply(variables, x, method=method)


@functools.partial(jax.jit, static_argnums=0)
def step(net, variables, state, x_t):
    return net.apply(variables, state, x_t, method="forward_step")


def assert_agrees(y, golden):
    np.testing.assert_allclose(y, golden, rtol=1e-4)


def assert_steps_agree(net, variables, golden):
    """Steps over a golden's clip, which answer when the reference did and what it did."""
    state, emitted = net.init_state(golden.x[:, :, 0]), {}
    for t, x_t in enumerate(np.moveaxis(golden.x, 2, 0)):
        frame, state = step(net, variables, state, x_t)
        if frame.valid:
            emitted[t] = frame.value
    assert list(emitted) == golden.step_index.tolist()
    assert_agrees(list(emitted.values()), golden.steps)


# Properties.


@pytest.mark.parametrize(
    ("build", "receptive_field", "delay", "padding", "stride"),
    [
        (co.models.cox3d_s, 120, 91, 28, 1),
        (lambda: co.models.cox3d_s(pool_size=13), 69, 40, 28, 1),
        (lambda: co.models.cox3d_s(se_scope="clip"), 1065, 1036, 28, 1),
        (co.models.cox3d_m, 120, 91, 28, 1),
        (lambda: co.models.cox3d_m(pool_size=16), 72, 43, 28, 1),
        (lambda: co.models.cox3d_m(se_scope="clip"), 1065, 1036, 28, 1),
        (co.models.cox3d_l, 178, 120, 57, 1),
        (lambda: co.models.cox3d_l(pool_size=16), 130, 72, 57, 1),
        (lambda: co.models.cox3d_l(se_scope="clip"), 2005, 1947, 57, 1),
        (co.models.coslow, 82, 72, 9, 1),
        (lambda: co.models.coslow(pool_size=8), 26, 16, 9, 1),
        (co.models.coi3d, 98, 80, 17, 2),
        (lambda: co.models.coi3d(pool_size=8), 42, 24, 17, 2),
    ],
)
def test_full_size_networks_have_the_timing_of_the_references(
    build, receptive_field, delay, padding, stride
):
    net = build()
    assert (net.receptive_field, net.delay) == (receptive_field, delay)
    assert (net.padding, net.stride) == ((padding,), (stride,))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (co.models.cox3d_s, 3_794_322),
        (co.models.cox3d_m, 3_794_322),
        (co.models.cox3d_l, 6_153_432),
        (co.models.coslow, 32_454_096),
        (co.models.coi3d, 28_043_472),
    ],
)
def test_full_size_networks_have_as_many_parameters_as_the_references(build, parameters):
    found = [entry.spec.shape for entry in entries(build()) if "params" in entry.path]
    assert sum(map(math.prod, found)) == parameters


@pytest.mark.parametrize("name", ["cox3d_s", "cox3d_m", "cox3d_l", "coslow", "coi3d"])
def test_full_size_networks_have_the_names_and_shapes_of_the_references(name):
    lines = goldens.find(f"keys/{name}.txt").read_text().splitlines()
    reference = [(key, ast.literal_eval(shape)) for key, shape in (x.split(" ", 1) for x in lines)]
    net = getattr(co.models, name)()
    assert [(entry.name, entry.torch_shape) for entry in entries(net)] == reference


def test_resnets_come_in_other_depths():
    kernels = [
        entry.torch_shape[2]
        for entry in entries(co.models.coi3d(depth=101))
        if re.fullmatch(r"3\..*conv_a\.weight", entry.name)
    ]
    assert kernels == ([3, 1] * 12)[:23]
    assert co.models.coslow(depth=(2, 2, 2, 2)).delay == 63 + 4
    with pytest.raises(ValueError, match="depth=34 must be one of"):
        co.models.coslow(depth=34)


@pytest.mark.parametrize("build", [co.models.cox3d, co.models.coslow, co.models.coi3d])
def test_sizes_that_make_no_sense_are_refused(build):
    with pytest.raises(ValueError, match="image_size=0"):
        build(image_size=0)
    with pytest.raises(ValueError, match=r"kernel_size|pool_size"):
        build(pool_size=0)


# Answers.


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks_answer_as_their_references(name):
    golden, net = goldens.load(f"ptv_{name}_tiny"), TINY[name]()
    variables = co.models.load_pretrained(net, golden.state_dict).variables
    assert_steps_agree(net, variables, golden)
    # In the reference's forward, SE averages over the clip.
    whole = TINY_X3D(se_scope="clip") if name == "x3d" else net
    clip = golden.x[:, :, : golden.meta["pool_size"]]
    assert_agrees(run(whole, variables, clip)[..., 0], golden.arrays["forward"])


def test_squeeze_excitation_over_a_window_answers_as_its_reference():
    golden, net = goldens.load("cox3d_tiny_clip_se"), TINY_X3D(se_scope="clip")
    variables = co.load_torch(net, golden.state_dict)
    assert_steps_agree(net, variables, golden)
    assert_agrees(run(net, variables, golden.x[:, :, :6]), golden.arrays["forward"])


@pytest.mark.parametrize("name", ["coslow", "coi3d", "cox3d_m"])
def test_full_size_networks_answer_as_their_references(name):
    golden = goldens.load(f"{name}_full")
    net = getattr(co.models, name)(golden.meta["image_size"], golden.meta["pool_size"])
    variables = co.load_torch(net, golden.state_dict)
    assert_steps_agree(net, variables, golden)
    own = "forward_frame_se" if name == "cox3d_m" else "forward"
    assert_agrees(run(net, variables, golden.x), golden.arrays[own])


def test_full_size_cox3d_with_squeeze_excitation_over_the_clip_answers_as_its_reference():
    golden, net = goldens.load("cox3d_m_full"), co.models.cox3d_m(224, 16, se_scope="clip")
    variables = co.load_torch(net, golden.state_dict)
    assert_agrees(run(net, variables, golden.x), golden.arrays["forward"])


# Laws.


def test_a_block_of_cox3d_and_its_classifier_keep_the_laws():
    block = residual_block(_branch(3, 4, 6, 2, excited=True, window=None), 3, 6, stride=2)
    net = co.Sequential({"block": block, **classifier(6, 3, dropout=0.5)})
    check_laws(net, clip_of((2, 3, 6, 4, 4)), gradients=False, receptive_field=False)


@pytest.mark.parametrize(
    "net",
    [
        co.models.cox3d(32, 2, 3, width_factor=0.6, depth_factor=0.2, head_features=8),
        co.models.coi3d(32, 4, 3, depth=(1, 1, 1, 2), width_factor=1 / 16),
    ],
    ids=["cox3d", "coi3d"],
)
def test_streams_of_whole_networks_equal_their_clips(net):
    variables, x = co.load_torch(net, goldens.state_dict_of(net)), clip_of((2, 3, 16, 32, 32))
    stream = run(net, variables, x, "forward_stream")
    assert stream.shape[2] == net.timing.n_out(16) > 3
    np.testing.assert_allclose(stream, run(net, variables, x), rtol=1e-4)


def test_squeeze_excitation_over_a_window_keeps_the_laws_of_steps():
    net = _squeeze_excitation(8, window=3)
    check_laws(net, clip_of((2, 8, 9, 2, 3)), stream_equals_clip=False, receptive_field=False)


def test_squeeze_excitation_looks_ahead_by_its_window():
    net, x = _squeeze_excitation(8, window=3), clip_of((2, 8, 7, 2, 3))
    variables = variables_of(net)
    stream = run(net, variables, x, "forward_stream")
    assert stream.shape == x.shape == (2, 8, net.timing.n_out(7), 2, 3)
    for t in range(7):
        ahead = run(net, variables, x[:, :, t : t + 3])
        np.testing.assert_allclose(stream[:, :, t], ahead[:, :, 0], rtol=1e-5)


def test_other_scopes_of_squeeze_excitation_are_refused():
    with pytest.raises(ValueError, match="se_scope must be one of 'frame', 'clip'"):
        co.models.cox3d(se_scope="stream")


# Heads.


def test_larger_images_are_averaged_after_the_softmax():
    head = co.Sequential(classifier(4, 3, dropout=0.5))
    variables, x = variables_of(head), clip_of((2, 4, 5, 2, 3))
    y = run(head, variables, x)
    assert y.shape == (2, 3, 5)
    projection = variables["params"]["layers_projection"]
    logits = jnp.einsum("bcthw,cn->bnthw", x, projection["kernel"])
    logits += projection["bias"][:, None, None, None]
    np.testing.assert_allclose(y, jax.nn.softmax(logits, 1).mean((3, 4)), rtol=1e-5)


def test_networks_take_larger_images_and_refuse_smaller_ones():
    for build in TINY.values():
        net = build(image_size=64)
        assert net.output_spec(jax.ShapeDtypeStruct((2, 3, 96, 128), "float32")).shape == (2, 10)
        with pytest.raises(co.InputError, match=r"pool: windows of \[2, 2\] do not fit"):
            net.init_state((2, 3, 32, 32))


def test_in_training_heads_drop_features_and_answer_logits():
    x = clip_of((2, 4, 5, 1, 1))
    head = co.Sequential(classifier(4, 3, dropout=0))
    variables = variables_of(head)
    logits = head.apply(variables, x, train=True)
    np.testing.assert_allclose(jax.nn.softmax(logits, 1), run(head, variables, x), rtol=1e-5)
    dropping = co.Sequential(classifier(4, 3, dropout=0.5))
    rngs = {"dropout": jax.random.key(0)}
    assert not np.allclose(dropping.apply(variables, x, train=True, rngs=rngs), logits)


# Checkpoints.


@pytest.mark.parametrize("name", TINY)
def test_files_of_pytorchvideo_load_in_both_serialisations(name, tmp_path):
    golden, net = goldens.load(f"ptv_{name}_tiny"), TINY[name]()
    expected = co.models.load_pretrained(net, golden.state_dict)
    assert expected.format.lower() == f"pytorchvideo {name}"
    tensors = {key: torch.from_numpy(value) for key, value in golden.state_dict.items()}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pyth"
        torch.save({"model_state": tensors}, path, _use_new_zipfile_serialization=zipped)
        assert_same_bits(co.models.load_pretrained(net, path), expected, path.name)


@pytest.mark.parametrize("name", TINY)
def test_files_that_pytorchvideo_wrote_load(name):
    net = TINY[name]()
    state_dict = goldens.load(f"ptv_{name}_tiny").state_dict
    expected = co.models.load_pretrained(net, state_dict)
    for suffix in ("pyth", "legacy.pyth"):
        path = goldens.find(f"golden/ptv_{name}_tiny.{suffix}")
        assert_same_bits(co.models.load_pretrained(net, path), expected, path.name)


@pytest.mark.parametrize("name", TINY)
def test_every_origin_of_the_same_weights_gives_the_same_variables(name):
    golden, net = goldens.load(f"ptv_{name}_tiny"), TINY[name]()
    expected = co.models.load_pretrained(net, golden.state_dict)
    variables = expected.variables
    family = "X3D" if name == "x3d" else "ResNet"

    # What the reference calls each entry; what it has beside these was filled.
    nested = {new: golden.state_dict[old] for old, new in golden.arrays["key_map"].tolist()}
    filled = {
        entry.name: np.asarray(entry.leaf.to_torch(entry.of(variables)))
        for entry in entries(net)
        if entry.name in expected.filled
    }
    assert len(filled) == (4 if name == "x3d" else 0)
    nested |= filled
    assert_same_bits(co.load_torch(net, nested), variables, "names of the reference")
    own = co.models.load_pretrained(net, nested)
    assert own == (own.variables, f"co3d {family}", (), ())
    assert_same_bits(own.variables, variables, "co3d")

    pyslowfast = {_pyslowfast(key, family): value for key, value in nested.items()}
    own = co.models.load_pretrained(net, pyslowfast)
    assert own == (own.variables, f"PySlowFast {family}", (), ())
    assert_same_bits(own.variables, variables, "PySlowFast")
    if name == "x3d":
        flat = co.load_torch(net, pyslowfast, flatten=True)
        assert_same_bits(flat, variables, "flattened names")


def _pyslowfast(name, family):
    """What PySlowFast calls an entry of a network of co3d."""
    if family == "X3D":
        return flattened(name)
    stage, rest = name.split(".", 1)
    if stage == "5":
        return f"head.{rest}"
    rest = rest.replace("conv_", "").replace("norm_a", "a_bn").replace("norm_b", "b_bn")
    rest = flattened(rest.replace("norm_c", "c_bn"))
    if stage == "0":
        return f"s1.pathway0_stem.{rest.replace('norm', 'bn')}"
    return f"s{int(stage) + 1}.{rest}"


def test_the_batch_norm_that_pytorchvideo_lacks_changes_no_bit():
    net = TINY_X3D()
    loaded = co.models.load_pretrained(net, goldens.load("ptv_x3d_tiny").state_dict)
    place = "s2.pathway0_res0.0.0.0.branch1_bn"
    leaves = ("weight", "bias", "running_mean", "running_var")
    assert loaded.filled == tuple(f"{place}.{leaf}" for leaf in leaves)
    path = [f"layers_{part}" for part in place.split(".")]
    norm = {
        collection: functools.reduce(lambda tree, key: tree[key], path, tree)
        for collection, tree in loaded.variables.items()
    }
    x = clip_of((2, 16, 3, 5, 5))
    assert_same_bits(run(co.BatchNorm3d(16), norm, x), x, "an identity")


def test_a_new_head_is_initialised_and_the_rest_kept():
    state_dict = goldens.load("ptv_slow_tiny").state_dict
    same = co.models.load_pretrained(TINY_SLOW(), state_dict).variables
    net = co.models.coslow(64, 8, num_classes=7, width_factor=1 / 8)
    with pytest.raises(co.CheckpointError) as error:
        co.models.load_pretrained(net, state_dict)
    for words in (
        "taken for pytorchvideo Slow, the checkpoint does not fit Sequential",
        "5.projection.weight (blocks.5.proj.weight in the checkpoint) has shape (10, 256), "
        "expected (7, 256)",
        "new_head=jax.random.key(0)",
    ):
        assert words in str(error.value)

    key = jax.random.key(3)
    loaded = co.models.load_pretrained(net, state_dict, new_head=key)
    assert loaded.fresh == ("5.projection.weight", "5.projection.bias")
    own = jax.jit(lambda key: net.init(key, method="declare")["params"]["layers_5"])(key)
    assert_same_bits(loaded.variables["params"].pop("layers_5"), own, "the head")
    del same["params"]["layers_5"]
    assert_same_bits(loaded.variables, same, "the rest")


def test_every_misfit_of_a_checkpoint_is_named():
    state_dict = goldens.load("ptv_i3d_tiny").state_dict
    block = "blocks.3.res_blocks.1.branch2"
    del state_dict[f"{block}.conv_a.weight"]
    state_dict[f"{block}.norm_b.bias"] = np.zeros(5, np.float32)
    state_dict["blocks.7.what.weight"] = np.zeros(2, np.float32)
    state_dict["blocks.5.res_blocks.9.branch2.conv_a.weight"] = np.zeros(2, np.float32)
    with pytest.raises(co.CheckpointError) as error:
        co.models.load_pretrained(TINY_I3D(), state_dict)
    for words in (
        "missing 2.pathway0_res1.0.1.branch2.conv_a.weight, of shape (16, 64, 1, 1, 1)",
        f"2.pathway0_res1.0.1.branch2.norm_b.bias ({block}.norm_b.bias in the checkpoint) has "
        "shape (5,), expected (16,)",
        "unexpected blocks.7.what.weight, of shape (2,)",
        "unexpected 4.pathway0_res9.branch2.conv_a.weight "
        "(blocks.5.res_blocks.9.branch2.conv_a.weight in the checkpoint), of shape (2,)",
    ):
        assert words in str(error.value)
    assert "new_head" not in str(error.value)


def test_a_checkpoint_of_another_network_is_told_by_what_it_is():
    state_dict = goldens.load("ptv_slow_tiny").state_dict
    with pytest.raises(co.CheckpointError, match=r"^taken for pytorchvideo Slow, ") as error:
        co.models.load_pretrained(TINY_X3D(), state_dict)
    assert "missing s1.pathway0_stem.conv_xy.weight, of shape" in str(error.value)
    assert "nearest" not in str(error.value)


def test_a_projection_between_other_channels_is_not_left_without_its_norm():
    state_dict = goldens.load("ptv_x3d_tiny").state_dict
    lost = [key for key in state_dict if key.startswith("blocks.2.res_blocks.0.branch1_norm.")]
    for key in lost:
        del state_dict[key]
    with pytest.raises(co.CheckpointError, match=r"missing s3.pathway0_res0.*branch1_bn.weight"):
        co.models.load_pretrained(TINY_X3D(), state_dict)


def test_checkpoints_of_unknown_formats_are_refused():
    with pytest.raises(co.CheckpointError, match=r"conv1.weight, .* no known format \(.*co3d"):
        co.models.load_pretrained(TINY_SLOW(), {"conv1.weight": np.zeros((1, 1))})


@pytest.fixture
def pytorchvideo(monkeypatch):
    """The builders of pytorchvideo, whose import needs a class of torchvision that none uses."""
    pytest.importorskip("pytorchvideo")
    ops = types.ModuleType("torchvision.ops")
    ops.RoIAlign = object
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
    from pytorchvideo.models.resnet import create_resnet
    from pytorchvideo.models.x3d import create_x3d

    resnet = functools.partial(create_resnet, model_num_class=10, stem_dim_out=8)
    i3d_kernels = (
        (3, 1, 1),
        [(3, 1, 1), (1, 1, 1)],
        [(3, 1, 1), (1, 1, 1)],
        [(1, 1, 1), (3, 1, 1)],
    )
    return {
        "x3d": lambda: create_x3d(
            input_clip_length=6, input_crop_size=32, model_num_class=10, width_factor=1,
            depth_factor=0.5, head_dim_out=64, head_activation=None,
        ),
        "slow": lambda: resnet(
            stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(8, 2, 2)
        ),
        "i3d": lambda: resnet(
            stem_conv_kernel_size=(5, 7, 7), stage1_pool=torch.nn.MaxPool3d,
            stage_conv_a_kernel_size=i3d_kernels, head_pool_kernel_size=(4, 2, 2),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_weights_of_pytorchvideo_answer_as_there(pytorchvideo, name):
    torch.manual_seed(0)
    module = pytorchvideo[name]().eval()
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif value.dim() == 1:
                value.uniform_(0.2, 0.8)
    net = TINY_X3D(se_scope="clip") if name == "x3d" else TINY[name]()
    variables = co.models.load_pretrained(net, module.state_dict()).variables
    x = goldens.load(f"ptv_{name}_tiny").x[:, :, : 6 if name == "x3d" else 8]
    with torch.no_grad():
        expected = torch.softmax(module(torch.from_numpy(x)), 1)
    assert_agrees(run(net, variables, x)[..., 0], expected)
