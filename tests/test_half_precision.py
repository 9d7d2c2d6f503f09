"""What is computed in bfloat16 is as exact as it is, and a CPU converts no memories and weights."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import cojax as co
from cojax import buffers
from cojax.ops import product
from tests.laws import clip_of
from tests.networks import random_variables

on_a_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU"
)


def halved(tree):
    return jax.tree.map(lambda x: x.astype("bfloat16") if x.dtype == jnp.float32 else x, tree)


def widened(tree):
    return jax.tree.map(lambda x: x.astype("float32") if x.dtype == jnp.bfloat16 else x, tree)


def assert_near(found, expected, tolerance=3e-2):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.bfloat16
        limit = tolerance * (jnp.abs(b).max() if b.size else 0)
        np.testing.assert_allclose(widened(a), b, rtol=tolerance, atol=limit)


# Of two matrices, or of batches of them; each multiplies 32 numbers.
PRODUCTS = {
    "of two matrices": ((3, 32), (32, 48)),
    "of a row": ((1, 32), (32, 48)),
    "of a column": ((3, 32), (32, 1)),
    "of batches": ((2, 3, 32), (2, 32, 48)),
    "of batches of rows": ((2, 1, 32), (2, 32, 48)),
    "of batches by heads": ((2, 4, 3, 32), (2, 4, 32, 48)),
    "of nothing": ((0, 3, 32), (0, 32, 48)),
}


def by_columns(a, b):
    return product.times_transposed(a, b.mT)


@pytest.mark.parametrize("multiply", [product.times, by_columns])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_as_exact_as_their_operands_and_convert_none(name, turned, multiply):
    operands = [clip_of(shape, seed=i) for i, shape in enumerate(PRODUCTS[name])]
    half = halved([x.mT if turned else x for x in operands])

    def run(multiply, a, b):
        return multiply(a.mT, b.mT) if turned else multiply(a, b)

    def everything(multiply, a, b):
        y, pull = jax.vjp(functools.partial(run, multiply), a, b)
        return y, pull(jnp.ones_like(y))

    found = jax.jit(functools.partial(everything, multiply))(*half)
    assert_near(found, everything(jnp.matmul, *widened(half)))
    rows, columns = operands[0].shape[-2], operands[1].shape[-1]
    if jax.default_backend() == "cpu" and operands[0].size and min(rows, columns) > 1:
        program = jax.jit(functools.partial(run, multiply)).lower(*half).compile().as_text()
        assert "bf16[" in program
        assert not re.search(r"f32\[[\d,]*\b32\b", program)


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
def test_rings_are_written_as_in_full_precision_in_every_transformation(slots, valid):
    ring, frame = clip_of((2, slots, 4)), clip_of((2, 4), seed=1)
    weights = halved(clip_of(ring.shape, seed=2))

    def everything(ring, frame):
        def written(ring, frame):
            return buffers.write(ring, frame, jnp.int32(4), jnp.bool_(valid))

        y, pull = jax.vjp(written, ring, frame)
        change = jax.jvp(written, (ring, frame), (-ring, 2 * frame))[1]
        many = jax.vmap(written)(jnp.stack([ring, -ring]), jnp.stack([frame, -frame]))
        return y, change, many, pull(weights.astype(y.dtype))

    half = halved((ring, frame))
    assert_near(jax.jit(everything)(*half), jax.jit(everything)(*widened(half)), 0)


MEMORIES = {
    "a delay": co.Delay(3),
    "a window": co.Conv3d(20, 20, (5, 1, 1)),
    "a pool": co.MaxPool3d((4, 1, 1), stride=1),
    "a residual block": co.Residual(co.Conv3d(20, 20, (3, 3, 3), padding=1)),
}


@on_a_cpu
@pytest.mark.parametrize("name", MEMORIES)
def test_a_step_converts_none_of_its_memories(name):
    net, x_t = MEMORIES[name], jnp.zeros((2, 20, 10, 10), "bfloat16")
    variables, state = halved(random_variables(net, 0)), net.init_state(x_t)
    step = functools.partial(net.apply, method="forward_step")
    program = jax.jit(step, donate_argnums=1).lower(variables, state, x_t).compile().as_text()
    written = re.findall(r"= (\w+)\[[\d,]*\]\S* dynamic-update-slice\(", program)
    assert written
    assert set(written) == {"u16"}


LAYERS = {
    **MEMORIES,
    "sums": co.Conv3d(20, 20, 3, padding=1, groups=20),
    "a strided convolution": co.Conv3d(20, 6, (1, 3, 3), stride=(1, 2, 2)),
    "a convolution of many places": co.Conv3d(20, 20, (1, 5, 5), padding=(0, 2, 2)),
    "groups": co.Conv3d(20, 10, (2, 3, 3), groups=5),
    "a norm": co.BatchNorm3d(20),
}
OF_TOKENS = {
    "one query": co.SingleOutputMultiheadAttention(20, 2, sequence_len=6),
    "one query, many heads": co.SingleOutputMultiheadAttention(20, 10, sequence_len=6),
    "all queries": co.RetroactiveMultiheadAttention(20, 4, sequence_len=6),
    "an encoder": co.SingleOutputTransformerEncoderLayer(20, 2, dim_feedforward=12, sequence_len=6),
    "an LSTM": co.LSTM(20, 20),
    "a kernel along time": co.Conv1d(20, 12, 4),
}


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, 2) for name in LAYERS), *itertools.product(OF_TOKENS, (1, 2))]
)
def test_steps_and_clips_and_gradients_are_near_those_in_full_precision(name, batch):
    net = LAYERS.get(name) or OF_TOKENS[name]
    space = (10, 10) if name in LAYERS else ()
    x = halved(clip_of((batch, 20, 7, *space)))
    variables = halved(random_variables(net, 0))

    def everything(variables, x):
        def stream(params, x):
            return net.apply({**variables, "params": params}, x, method="forward_stream")

        params = variables.get("params", {})
        y, pull = jax.vjp(stream, params, x)
        return y, pull(jnp.ones_like(y)), net.apply(variables, x)

    found = jax.jit(everything)(variables, x)
    assert_near(found, jax.jit(everything)(*widened((variables, x))), 0.1)


def test_steps_of_any_batch_are_exported_and_run_on_shards():
    net = OF_TOKENS["all queries"]
    variables, xs = random_variables(net, 0), halved(clip_of((2, 20, 7)))
    state = net.init_state(xs[..., 0])

    def steps(state, xs):
        return net.apply(variables, state, xs, method="forward_steps")[0].value

    expected = jax.jit(steps)(state, xs)
    (batch,) = export.symbolic_shape("batch")
    fresh = jax.eval_shape(net.init_state, jax.ShapeDtypeStruct((batch, 20), xs.dtype))
    spec = jax.ShapeDtypeStruct((batch, 20, 7), xs.dtype)
    exported = export.export(jax.jit(steps))(fresh, spec)
    assert_near(exported.call(state, xs), widened(expected))
    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    of_each = jax.tree.map(lambda leaf: P("batch") if leaf.ndim else P(), state)
    on_shards = jax.shard_map(
        steps, mesh=mesh, in_specs=(of_each, P("batch")), out_specs=P("batch")
    )
    assert_near(jax.jit(on_shards)(state, xs), widened(expected))
