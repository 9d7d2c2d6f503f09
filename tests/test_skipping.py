"""Steps that skip what stands behind a stride."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from tests.laws import assert_close, assert_same_bits, check_skipping, clip_of, variables_of
from tests.networks import random_network, random_variables


def pooled_block():
    """A residual block with memory, behind a strided convolution."""
    block = co.Residual(co.Sequential(co.Conv1d(3, 3, 3, padding=1), co.ReLU()))
    return co.Sequential(co.Conv1d(2, 3, 3, stride=2, padding=1), block, co.AvgPool1d(3, stride=1))


def nested():
    return co.Sequential(
        co.Conv1d(2, 3, 2, stride=2),
        co.BatchNorm1d(3),
        co.Conv1d(3, 3, 3, stride=3, padding=1),
        co.Delay(1),
        co.MaxPool1d(2),
        co.Conv1d(3, 2, 2),
    )


NETWORKS = {
    "a block and a pool": pooled_block,
    "nested strides": nested,
    "a stride within the module in front": lambda: co.Sequential(
        co.Sequential(co.Conv1d(2, 3, 3), co.AvgPool1d(2)), co.Conv1d(3, 2, 3), co.Delay(1)
    ),
    "branches of a parallel": lambda: co.Sequential(
        co.Broadcast(),
        co.Parallel(
            co.Sequential(co.Conv1d(2, 3, 3, stride=2, padding=1), co.Conv1d(3, 3, 2)),
            co.Sequential(co.AvgPool1d(2), co.Conv1d(2, 3, 4, padding=1)),
        ),
        co.Reduce("sum"),
        co.Conv1d(3, 2, 3),
    ),
    "branches that are reduced": lambda: co.Sequential(
        co.BroadcastReduce(
            co.Sequential(co.Conv1d(2, 3, 1, stride=2), co.Delay(1)),
            co.Sequential(co.Conv1d(2, 3, 5, stride=2, padding=2), co.Conv1d(3, 3, 3, padding=1)),
        ),
        co.ReLU(),
        co.GRU(3, 4),
    ),
    "several streams behind a stride": lambda: co.Sequential(
        co.MaxPool1d(2), co.Broadcast(2), co.Parallel(co.Conv1d(2, 2, 3), co.Delay(1))
    ),
    "a choice": lambda: co.Sequential(
        co.AvgPool1d(2),
        co.Conditional(
            lambda module, x, train: x[0, 0] > 0, co.Conv1d(2, 2, 3, padding=1), advance="taken"
        ),
        co.MaxPool1d(2),
        co.Conv1d(2, 2, 2),
    ),
    "attention": lambda: co.Sequential(
        co.Conv1d(2, 4, 2, stride=2),
        co.RecyclingPositionalEncoding(4, 7),
        co.TransformerEncoder(co.TransformerEncoderLayerFactory(4, 2, 8, sequence_len=4), 2),
    ),
    "memories that begin with what comes first": lambda: co.Sequential(
        co.AvgPool1d(2), co.Conv1d(2, 3, 3, padding=1, temporal_fill="replicate")
    ),
    "no stride": lambda: co.Sequential(co.Conv1d(2, 3, 3), co.Delay(1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_skipping_changes_no_frame_and_no_state(name):
    check_skipping(NETWORKS[name](), clip_of((2, 2, 60)))


def test_skipping_in_coi3d_changes_no_frame_and_no_state():
    net = co.models.coi3d(
        image_size=32, pool_size=4, num_classes=3, depth=(1, 1, 1, 1), width_factor=1 / 16
    )
    check_skipping(net, clip_of((1, 3, 40, 32, 32)))


STRIDED = [seed for seed in range(30) if random_network(seed)[0].timing.stride > 1][:6]


@pytest.mark.parametrize("seed", STRIDED)
def test_skipping_in_random_networks_changes_no_frame_and_no_state(seed):
    with jax.enable_x64(True):
        net, shape = random_network(seed)
        variables = random_variables(net, seed, np.float64)
        batch, channels, steps, *space = shape
        x = clip_of((batch, channels, 2 * steps, *space), seed, np.float64)
        check_skipping(net, x, variables, seed)


def program(net, x_t, skip, variables=None):
    variables = variables_of(net) if variables is None else variables

    def step(state, x_t):
        return net.apply(variables, state, x_t, skip=skip, method="forward_step")

    return jax.jit(step, donate_argnums=0).lower(net.init_state(x_t), x_t).compile().as_text()


def choices_around(program):
    """Of each module that multiplies matrices, by its key, how many choices its products are in."""
    computations = re.split(r"\n(?=%|ENTRY)", program)
    bodies = {re.match(r"(?:ENTRY )?%(\S+)", text)[1]: text for text in computations[1:]}
    (entry,) = [name for name, text in bodies.items() if text.startswith("ENTRY")]
    found = {}

    def visit(name, choices):
        for line in bodies[name].splitlines()[1:]:
            product = re.search(r'op_name="[^"]*?(layers_\d+)\.step[^"]*dot_general"', line)
            if product:
                found.setdefault(product[1], set()).add(choices)
            within = choices + (" conditional(" in line)
            for called in re.findall(r"%([\w.-]+)", line.split("=", 1)[-1]):
                if called in bodies:
                    visit(called, within)

    visit(entry, 0)
    return found


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
def test_products_behind_a_stride_are_within_a_choice():
    net = co.Sequential(
        co.Conv1d(8, 8, 3),
        co.Conv1d(8, 8, 2, stride=2),
        co.Conv1d(8, 8, 3, padding=1),
        co.MaxPool1d(2),
        co.Conv1d(8, 8, 3),
        co.Linear(8, 3, channel_dim=1),
    )
    masked, skipping = (program(net, jnp.zeros((4, 8)), skip) for skip in (False, True))
    assert " conditional(" not in masked
    everywhere = {f"layers_{i}" for i in (0, 1, 2, 4, 5)}
    assert choices_around(masked) == {key: {0} for key in everywhere}
    expected = {0: {0}, 1: {0}, 2: {1}, 4: {2}, 5: {2}}
    assert choices_around(skipping) == {f"layers_{i}": n for i, n in expected.items()}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of what XLA makes of it for a CPU")
def test_a_stream_skips():
    net, variables = pooled_block(), variables_of(pooled_block())
    stream = co.Stream(net, variables, (1, 2))
    stream(jnp.zeros((1, 2)))
    lowered = stream._compiled_step.lower(stream.state, None, jnp.zeros((1, 2)))
    assert " conditional(" in lowered.compile().as_text()


def test_a_stream_that_skips_goes_on_from_snapshots_and_files(tmp_path):
    net, x = nested(), clip_of((2, 2, 80))
    variables = variables_of(net)
    stream = co.Stream(net, variables, (2, 2))
    outputs = [stream(x[:, :, t]) for t in range(41)]
    assert_close(
        jnp.stack([y for y in outputs if y is not None], axis=2),
        net.apply(variables, x)[:, :, : sum(net.timing.emits(t) for t in range(41))],
        "skipping",
        x.dtype,
    )
    snapshot = stream.state
    stream.save(tmp_path / "s")
    ahead = [stream(x[:, :, t]) for t in range(41, 80)]
    assert any(y is not None for y in ahead)

    stream.restore(snapshot, 41)
    assert_same_bits([stream(x[:, :, t]) for t in range(41, 80)], ahead, "after a restore")
    resumed = co.Stream.resume(tmp_path / "s", nested(), variables)
    assert_same_bits([resumed(x[:, :, t]) for t in range(41, 80)], ahead, "after a resume")

    # Chunks run masks alone, on the same states.
    stream.restore(snapshot, 41)
    chunk = stream.steps(x[:, :, 41:59])
    later = [y for y in (stream(x[:, :, t]) for t in range(59, 80)) if y is not None]
    expected = [y for y in ahead if y is not None]
    assert_close([*jnp.moveaxis(chunk, 2, 0), *later], expected, "steps behind a chunk", x.dtype)


def test_vmapped_steps_that_skip_are_those_of_a_loop():
    net = pooled_block()
    variables, x = variables_of(net), clip_of((2, 1, 2, 12))

    @functools.partial(jax.jit, static_argnames="skip")
    def step(state, x_t, skip):
        return net.apply(variables, state, x_t, skip=skip, method="forward_step")

    _, state = step(net.init_state((1, 2)), x[0, :, :, 0], skip=True)
    starts = [net.init_state((1, 2)), state]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    frames, after = jax.vmap(functools.partial(step, skip=True))(together, x[:, :, :, 1])
    for i, start in enumerate(starts):
        frame, alone = step(start, x[i, :, :, 1], skip=False)
        assert bool(frames.valid[i]) == bool(frame.valid)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], after), alone, "states", x.dtype)


def test_nothing_is_skipped_while_variables_change():
    net = co.Sequential(co.AvgPool1d(2), co.Conv1d(2, 3, 1), co.BatchNorm1d(3), co.Dropout(0.5))
    variables, x_t = variables_of(net), clip_of((4, 2))
    state = net.init_state(x_t)
    results = [
        net.apply(
            variables,
            state,
            x_t,
            train=True,
            skip=skip,
            method="forward_step",
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        for skip in (False, True)
    ]
    chex.assert_trees_all_equal(*results)
    key = jax.random.key(0)
    initialised = net.init(key, state, x_t, skip=True, method="forward_step")
    chex.assert_trees_all_equal(initialised, net.init(key, method="declare"))


@pytest.mark.parametrize(
    ("method", "flags"),
    {
        "forward_step": ("train", "skip"),
        "forward_steps": ("pad_end", "train", "at_once"),
    }.items(),
)
def test_flags_are_bools(method, flags):
    net = co.AvgPool1d(2)
    x = jnp.zeros((1, 2, 3) if method == "forward_steps" else (1, 2))
    run = functools.partial(net.apply, {}, net.init_state((1, 2)), x, method=method)
    for flag in flags:
        with pytest.raises(co.InputError, match=f"{flag} must be a bool, known while tr.*, got 1"):
            run(**{flag: 1})
        with pytest.raises(co.InputError, match=f"{flag} must be a bool, known while tracing"):
            jax.jit(lambda value, flag=flag: run(**{flag: value}))(True)


class Undeclared(co.CoModule):
    """Answers in another shape than it says."""

    def clip(self, x, train=False):
        return x[:, :1]

    def step(self, state, signal, train=False):
        return signal.becomes(signal.clean()[:, :1]), state


def test_a_module_that_misdeclares_its_output_is_told_so():
    net = co.Sequential(co.AvgPool1d(2), Undeclared())
    with pytest.raises(
        TypeError, match=r"output steps of .*\(1, 1\).*output_spec declares .*\(1, 2\)"
    ):
        net.apply({}, net.init_state((1, 2)), jnp.zeros((1, 2)), skip=True, method="forward_step")
