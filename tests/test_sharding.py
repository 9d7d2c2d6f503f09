"""Networks within ``jax.shard_map`` and ``jax.export``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import cojax as co
from tests.laws import clip_of, tolerance
from tests.networks import random_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Networks, and the shape of a clip.
NETS = {
    "delay": (co.Delay(2), (2, 4, 7)),
    "window of inputs": (co.Conv1d(4, 4, 3), (2, 4, 7)),
    "sums": (co.Conv1d(16, 8, 3), (2, 16, 7)),
    "spatial": (co.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 6)),
    "depthwise": (co.Conv3d(4, 4, 3, padding=1, groups=4), (2, 4, 5, 4, 4)),
    "lstm": (co.LSTM(4, 3, 2), (2, 4, 7)),
    "behind a stride": (co.Sequential(co.AvgPool1d(2), co.Conv1d(4, 4, 3)), (2, 4, 9)),
    "attention": (co.SingleOutputMultiheadAttention(4, 2, sequence_len=3), (2, 4, 7)),
}


@pytest.fixture(params=NETS)
def case(request):
    net, shape = NETS[request.param]
    return net, random_variables(net, 0), clip_of(shape)


def sharded(function, *specs):
    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs[:-1], out_specs=specs[-1]))


def test_steps_run_on_shards_of_the_batch(case):
    net, variables, x = case
    state = net.init_state(x[:, :, 0])
    specs = jax.tree.map(lambda leaf: P("batch") if leaf.ndim else P(), state)
    expected, _ = net.apply(variables, state, x, method="forward_steps")
    given = (P(), specs, P("batch"))
    output = co.Frame(P("batch"), P())

    def run(variables, state, x):
        skipping, _ = net.apply(variables, state, x[:, :, 0], skip=True, method="forward_step")
        scanned, after = net.apply(variables, state, x, method="forward_steps")
        at_once, _ = net.apply(variables, state, x, at_once=True, method="forward_steps")
        return skipping, scanned, at_once, after

    skipping, *both, _ = sharded(run, *given, (output, output, output, specs))(variables, state, x)
    assert skipping.valid == expected.valid[0]
    for frames in both:
        np.testing.assert_allclose(frames.dense(), expected.dense(), **tolerance(x.dtype))


def test_a_stream_may_begin_within_a_shard(case):
    net, variables, x = case
    expected, _ = net.apply(variables, net.init_state(x[:, :, 0]), x, method="forward_steps")

    def run(variables, x):
        frames, _ = net.apply(variables, net.init_state(x[:, :, 0]), x, method="forward_steps")
        return frames

    frames = sharded(run, P(), P("batch"), co.Frame(P("batch"), P()))(variables, x)
    np.testing.assert_allclose(frames.dense(), expected.dense(), **tolerance(x.dtype))


def test_gradients_are_summed_over_shards(case):
    net, variables, x = case
    params = variables.get("params", {})
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params, x):
        clip, stream = (
            net.apply({"params": params, **rest}, x, method=method)
            for method in ("forward", "forward_stream")
        )
        return jnp.sum(jnp.sin(clip) + jnp.cos(stream))

    grads = sharded(
        jax.grad(lambda params, x: jax.lax.psum(loss(params, x), "batch"), argnums=(0, 1)),
        *(P(), P("batch"), (P(), P("batch"))),
    )(params, x)
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    for found, wanted in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_exported_steps_and_clips_take_any_batch(case):
    net, variables, x = case
    (batch,) = export.symbolic_shape("batch")

    def of_any_batch(array):
        return jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype)

    def step(variables, state, x_t):
        return net.apply(variables, state, x_t, method="forward_step")

    state = net.init_state(x[:, :, 0])
    step_spec = of_any_batch(x[:, :, 0])
    exported = export.export(jax.jit(step))(
        variables, jax.eval_shape(net.init_state, step_spec), step_spec
    )
    frame, _ = exported.call(variables, state, x[:, :, 0])
    expected, _ = step(variables, state, x[:, :, 0])
    assert frame.valid == expected.valid
    np.testing.assert_allclose(frame.value, expected.value, **tolerance(x.dtype))
    clips = export.export(jax.jit(net.apply))(variables, of_any_batch(x))
    np.testing.assert_allclose(
        clips.call(variables, x), net.apply(variables, x), **tolerance(x.dtype)
    )


def test_frames_of_an_exported_step_can_be_serialized():
    net = co.Conv1d(2, 3, 3)
    variables, state = random_variables(net, 0), net.init_state((1, 2))
    exported = export.export(
        jax.jit(lambda s, x: net.apply(variables, s, x, method="forward_step"))
    )
    pytest.importorskip("flatbuffers")
    again = export.deserialize(exported(state, jnp.ones((1, 2))).serialize())
    frame, _ = again.call(state, jnp.ones((1, 2)))
    assert isinstance(frame, co.Frame)
