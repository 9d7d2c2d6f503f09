"""CoOadTR, against what its PyTorch reference answers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from cojax.interop.names import entries
from tests import goldens
from tests.laws import assert_same_bits, check_laws, clip_of, variables_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = functools.partial(
    co.models.cooadtr, 6, 3, sequence_len=4, embed_dim=8, num_heads=2, dim_feedforward=8
)
GOLDEN = ("cooadtr_b1", "cooadtr_b1_fixed", "cooadtr_b2", "cooadtr_b1_full", "cooadtr_b2_full")


def network(golden, **options):
    """The network that a golden is of."""
    meta = golden.meta
    arguments = {
        "num_blocks": int(meta["model"][-1]),
        "sequence_len": meta["sequence_len"],
        "num_encodings": meta["ne"],
        "learned_encodings": meta["learned"],
        "embed_dim": meta["E"],
        "num_heads": meta["H"],
        "dim_feedforward": meta["F"],
    }
    return co.models.cooadtr(meta["D"], **arguments | options)


@functools.partial(jax.jit, static_argnums=0)
def steps(net, variables, x):
    return net.apply(variables, net.init_state(x[:, :, 0]), x, method="forward_steps")


def assert_agree(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


# Answers.


@pytest.mark.parametrize("name", GOLDEN)
def test_networks_answer_as_the_reference(name):
    golden = goldens.load(name)
    net = network(golden)
    pretrained = co.models.load_pretrained(net, golden.state_dict)
    assert pretrained[1:] == (golden.meta["model"], (), ())
    variables, x = pretrained.variables, jnp.asarray(golden.x)

    # With two blocks, the reference's own steps go wrong after 127; these are those mended.
    windows = golden.arrays["window_forward"]
    expected = golden.arrays.get("steps_fixed", golden.steps)
    frames, _ = steps(net, variables, x)
    (emitted,) = np.nonzero(frames.valid)
    np.testing.assert_array_equal(emitted, golden.step_index)
    assert_agree(frames.dense(), np.moveaxis(expected, 0, 2))
    # A window's first step has the encoding that it has in the stream, as in a clip.
    forward = jax.jit(net.apply)
    assert_agree(forward(variables, x), np.moveaxis(windows, 0, 2))
    assert_agree(forward(variables, x[:, :, :64]), golden.arrays["forward"])


def test_fixed_encodings_are_those_of_the_reference():
    golden = goldens.load("cooadtr_b1_fixed")
    variables = network(golden).init(jax.random.key(0), method="declare")
    pattern = variables["constants"]["layers_1"]["pattern"]
    np.testing.assert_allclose(pattern, golden.state_dict["1.pe.pattern"], atol=1e-6)


def test_a_window_given_alone_has_the_first_encodings():
    net = TINY(num_encodings=5)
    variables, x = variables_of(net), clip_of((2, 6, 12))
    forward = jax.jit(net.apply)
    clip = forward(variables, x)
    for start in range(9):
        alone = forward(variables, x[:, :, start : start + 4])
        same = np.allclose(alone[:, :, 0], clip[:, :, start], rtol=1e-4, atol=1e-5)
        assert same == (start % 5 == 0)


def test_logits_of_a_window_do_not_depend_on_what_came_before_it():
    net = TINY(num_blocks=2)
    variables, x = variables_of(net), clip_of((2, 6, 12))
    other = jnp.concatenate([1e4 * x[:, :, :8], x[:, :, 8:]], axis=2)
    (frames, _), (others, _) = (steps(net, variables, clip) for clip in (x, other))
    np.testing.assert_allclose(frames.value[:, :, -1], others.value[:, :, -1], rtol=1e-5)


# Properties.


@pytest.mark.parametrize(
    ("num_blocks", "num_features", "learned", "parameters"),
    [
        (1, 3072, True, 9_598_998),
        (1, 4096, True, 10_647_574),
        (1, 3072, False, 9_598_998 - 127 * 1024),
        (2, 3072, True, 15_896_598),
        (2, 4096, True, 16_945_174),
        (2, 4096, False, 16_945_174 - 127 * 1024),
    ],
)
def test_sizes_and_timings_are_the_published_ones(num_blocks, num_features, learned, parameters):
    net = co.models.cooadtr(num_features, num_blocks=num_blocks, learned_encodings=learned)
    trained = (entry for entry in entries(net) if entry.path[0] == "params")
    assert sum(math.prod(entry.spec.shape) for entry in trained) == parameters
    assert net.timing == co.Timing(receptive_field=64, stride=1, padding=0, end=0, delay=63)
    assert net.output_spec(jax.ShapeDtypeStruct((2, num_features), "float32")).shape == (2, 22)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_full_size_networks_have_the_shapes_of_the_reference(num_blocks):
    shapes = sorted(
        line.split(" ", 1)[1]
        for line in goldens.find(f"keys/cooadtr_b{num_blocks}.txt").read_text().splitlines()
    )
    net = co.models.cooadtr(num_blocks=num_blocks)
    assert sorted(str(entry.torch_shape) for entry in entries(net)) == shapes


def test_networks_keep_the_laws():
    net = TINY(num_blocks=2, num_encodings=5)
    check_laws(net, clip_of((2, 6, 11)), gradients=False)


def test_in_training_values_drop_out_unless_none_shall():
    x = clip_of((2, 6, 4))
    net = TINY()
    variables, rngs = variables_of(net), {"dropout": jax.random.key(0)}

    def run(net, **training):
        return jax.jit(functools.partial(net.apply, **training))(variables, x)

    assert not np.allclose(run(net, train=True, rngs=rngs), run(net), rtol=1e-3)
    np.testing.assert_allclose(run(TINY(dropout=0), train=True), run(net), rtol=1e-5)


# Checkpoints.


def tiny_golden(name="cooadtr_b2"):
    golden = goldens.load(name)
    return golden, network(golden)


def test_files_of_the_reference_load(tmp_path):
    golden, net = tiny_golden()
    tensors = {key: torch.from_numpy(value) for key, value in golden.state_dict.items()}
    torch.save({"state_dict": tensors}, tmp_path / "cooadtr.pth")
    expected = co.models.load_pretrained(net, golden.state_dict)
    assert_same_bits(co.models.load_pretrained(net, tmp_path / "cooadtr.pth"), expected, "file")


@pytest.mark.parametrize("name", ["cooadtr_b1", "cooadtr_b2"])
def test_every_tensor_of_the_reference_is_used_once(name):
    golden, net = tiny_golden(name)
    ours = co.to_torch(net, co.models.load_pretrained(net, golden.state_dict).variables)
    given, kept = (
        sorted(np.asarray(tensor).tobytes() for tensor in state_dict.values())
        for state_dict in (golden.state_dict, ours)
    )
    assert given == kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_blocks": 0}, "num_blocks=0 must be positive"),
        ({"num_encodings": 3}, "num_encodings=3 must be at least sequence_len=4"),
        ({"num_heads": 3}, "must be a multiple of self.num_heads=3"),
        ({"sequence_len": 0}, "sequence_len=0"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        TINY(**arguments)


def test_steps_of_other_features_and_short_clips_are_refused():
    net = TINY()
    with pytest.raises(co.InputError, match="expects 6 features"):
        net.init_state((1, 7))
    with pytest.raises(co.InputError, match="a clip of 3 steps is too short"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 6, 3)))
