"""Streams on the host: outputs, snapshots, files."""

import hashlib
import io
import json
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cojax as co
from tests.laws import assert_same_bits, clip_of, compilations, variables_of


def build():
    return co.Sequential(
        co.Conv1d(2, 3, 3, padding=1),
        co.Residual(co.Conv1d(3, 3, 3, padding=1)),
        co.AvgPool1d(2),
        co.Delay(1),
    )


@pytest.fixture(scope="module")
def net():
    return build()


@pytest.fixture(scope="module")
def variables(net):
    return variables_of(net)


@pytest.fixture(scope="module")
def stream(net, variables):
    return co.Stream(net, variables, (1, 2))


@pytest.fixture(autouse=True)
def afresh(stream):
    stream.reset()


X = clip_of((1, 2, 20))


def test_steps_give_an_array_or_none(net, variables, stream):
    outputs = [stream(X[:, :, t]) for t in range(20)]
    assert [y is not None for y in outputs] == [net.timing.emits(t) for t in range(20)]
    dense = np.stack([y for y in outputs if y is not None], axis=2)
    np.testing.assert_allclose(
        dense, net.apply(variables, X)[:, :, : dense.shape[2]], rtol=1e-5, atol=1e-6
    )


def test_chunks_and_steps_mix(net, variables, stream):
    outputs = [stream.steps(X[:, :, :7]), stream(X[:, :, 7]), stream(X[:, :, 8])]
    outputs += [stream.steps(X[:, :, 9:16]), stream.steps(X[:, :, 16:], pad_end=True)]
    joined = [y if y.ndim == 3 else y[:, :, None] for y in outputs if y is not None]
    np.testing.assert_allclose(
        np.concatenate(joined, axis=2), net.apply(variables, X), rtol=1e-5, atol=1e-6
    )
    assert stream.steps_taken == 20


def test_a_chunk_that_emits_nothing_is_none(stream):
    assert stream.steps(X[:, :, :2]) is None


def test_end_padding_leaves_the_stream_as_it_was(stream):
    stream.steps(X[:, :, :7])
    before = stream.state
    stream.steps(X[:, :, :0], pad_end=True)
    chex.assert_trees_all_equal(stream.state, before)


def test_a_reset_stream_is_a_fresh_one(stream):
    first = [stream(X[:, :, t]) for t in range(9)]
    stream.reset()
    again = [stream(X[:, :, t]) for t in range(9)]
    assert_same_bits(first, again, "after a reset")


def test_a_stream_has_taken_no_fewer_than_no_steps(stream):
    for steps in (-1, 2.5):
        with pytest.raises(co.InputError, match=f"0 steps or more, got steps_taken={steps}"):
            stream.restore(stream.state, steps)


def test_nothing_recompiles_after_a_reset_or_a_restore(stream):
    stream(X[:, :, 0])
    snapshot = stream.state
    steps = [X[:, :, t] for t in range(6)]
    loaded = jax.tree.map(np.asarray, snapshot)
    with compilations(0, of="_apply_step"):
        for x_t in steps:
            stream(x_t)
        stream.restore(loaded, 1)
        stream(steps[1])
        stream.restore(snapshot, 1)
        stream(steps[1])
        stream.reset()
        stream(steps[0])


def test_committed_variables_compile_one_step(net, variables):
    placed = jax.device_put(variables, jax.devices()[0])
    stream = co.Stream(net, placed, (1, 2))
    steps = [X[:, :, t] for t in range(4)]
    with compilations(1, of="_apply_step"):
        for x_t in steps:
            stream(x_t)


def test_a_snapshot_survives_the_stream(net, variables, stream):
    for t in range(8):
        stream(X[:, :, t])
    snapshot = stream.state
    kept = jax.tree.map(np.asarray, snapshot)
    ahead = [stream(X[:, :, t]) for t in range(8, 20)]
    assert_same_bits(snapshot, kept, "a snapshot")
    frame, _ = net.apply(variables, snapshot, X[:, :, 8], method="forward_step")
    assert bool(frame.valid) == net.timing.emits(8)
    stream.restore(snapshot, 8)
    assert_same_bits([stream(X[:, :, t]) for t in range(8, 20)], ahead, "after a restore")


def test_a_resumed_stream_goes_on_bit_for_bit(net, variables, stream, tmp_path):
    path = tmp_path / "watch.state"
    for t in range(11):
        stream(X[:, :, t])
    stream.save(path)
    expected = [stream(X[:, :, t]) for t in range(11, 20)]
    resumed = co.Stream.resume(path, build(), variables)
    assert resumed.steps_taken == 11
    assert_same_bits([resumed(X[:, :, t]) for t in range(11, 20)], expected, "after a resume")
    assert os.listdir(tmp_path) == ["watch.state"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_saved_as_it_is(net, variables, tmp_path, dtype):
    stream = co.Stream(net, variables, (1, 2), dtype)
    stream.steps(X[:, :, :9].astype(dtype))
    stream.save(tmp_path / "s")
    resumed = co.Stream.resume(tmp_path / "s", net, variables)
    assert_same_bits(resumed.state, stream.state, dtype)


def test_several_streams_are_saved_and_resumed(tmp_path):
    net = co.Parallel(co.Delay(1), co.ReLU())
    stream = co.Stream(net, {}, (jnp.zeros((1, 2)), jnp.zeros((1, 3, 2))))
    step = (jnp.ones((1, 2)), -jnp.ones((1, 3, 2)))
    assert stream(step) is None
    stream.save(tmp_path / "s")
    resumed = co.Stream.resume(tmp_path / "s", net, {})
    first, second = resumed(step)
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(second, 0)


def test_an_interrupted_save_leaves_the_one_before(net, variables, stream, tmp_path, monkeypatch):
    path = tmp_path / "watch.state"
    stream(X[:, :, 0])
    stream.save(path)
    stream(X[:, :, 1])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.save(path)
    assert co.Stream.resume(path, net, variables).steps_taken == 1
    assert os.listdir(tmp_path) == ["watch.state"]


def test_damage_anywhere_is_found(net, variables, stream, tmp_path):
    path = tmp_path / "watch.state"
    stream.save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 50)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(co.StateFileError, match="damaged"):
            co.Stream.resume(path, net, variables)
    for content in (b"", b"x" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(co.StateFileError, match="damaged"):
            co.Stream.resume(path, net, variables)
    with pytest.raises(co.StateFileError, match="cannot be read"):
        co.Stream.resume(tmp_path / "none", net, variables)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "has format 99, this version reads format 1"),
        ({"format": None}, "has format None"),
        ({"step": "3"}, "no stream's state"),
        ({"spec": 3}, "no stream's state"),
        ({"leaves": [{"path": ["a"]}]}, "no stream's state"),
    ],
)
def test_a_file_of_another_content_is_refused(net, variables, stream, tmp_path, change, words):
    path = tmp_path / "s"
    stream.save(path)
    with np.load(io.BytesIO(path.read_bytes()[32:])) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes()) | change
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    body = content.getvalue()
    path.write_bytes(hashlib.sha256(body).digest() + body)
    with pytest.raises(co.StateFileError, match=words):
        co.Stream.resume(path, net, variables)


def test_a_file_gets_and_keeps_ordinary_permissions(stream, tmp_path):
    path, plain = tmp_path / "s", tmp_path / "plain"
    plain.touch()
    stream.save(path)
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    stream.save(path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (co.Sequential(co.ReLU()), "saved by another network: its module 0"),
        (
            co.Sequential(
                co.Conv1d(2, 3, 3, padding=1),
                co.Residual(co.Conv1d(3, 3, 3, padding=1), reduce="max"),
                co.AvgPool1d(2),
                co.Delay(1),
            ),
            "reduce='max'",
        ),
        (build().append(co.ReLU()), "saved by another network"),
    ],
)
def test_the_state_of_another_network_is_refused(variables, stream, tmp_path, other, words):
    stream.save(tmp_path / "s")
    with pytest.raises(co.StateFileError, match=words):
        co.Stream.resume(tmp_path / "s", other, variables)


def test_fields_without_effect_may_differ_where_a_stream_is_resumed(tmp_path):
    net = co.Sequential(co.ReLU(), co.Delay(1), co.Dropout(), co.Reshape(1, 2))
    stream = co.Stream(net, {}, (1, 2))
    stream(jnp.ones((1, 2)))
    stream.save(tmp_path / "s")
    same = co.Sequential(
        co.ReLU(inplace=True),
        co.Delay(1, temporal_fill="replicate"),
        co.Dropout(inplace=True),
        co.Reshape(1, 2, contiguous=True),
    ).clone(call_mode="forward_step")
    assert co.Stream.resume(tmp_path / "s", same, {})(jnp.zeros((1, 2))).tolist() == [[1, 1]]


def test_the_state_of_other_weights_is_refused(net, stream, tmp_path):
    stream.save(tmp_path / "s")
    with pytest.raises(co.StateFileError, match="other variables"):
        co.Stream.resume(tmp_path / "s", net, variables_of(net, seed=5))


def test_wrong_steps_are_refused_and_nothing_is_lost(stream):
    first = stream(X[:, :, 0])
    for wrong in (
        np.zeros((1, 3), np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros((1, 2), np.int32),
        jnp.zeros((1, 2), jnp.bfloat16),
        (X[:, :, 1], X[:, :, 1]),
    ):
        with pytest.raises(co.InputError, match=r"takes steps of float32\[1, 2\], got"):
            stream(wrong)
    for frames in (co.Frame(X, jnp.ones(20, bool)), co.Frame(X[:, :, 0], jnp.bool_(False))):
        for call in (stream, stream.steps):
            with pytest.raises(co.InputError, match="a Stream takes arrays"):
                call(frames)
    with pytest.raises(co.InputError, match="a clip has the axes"):
        stream.steps(X[:, :, 0])
    with pytest.raises(co.InputError, match="takes steps of"):
        stream.steps(np.zeros((1, 3, 4), np.float32))
    assert first is None
    assert stream.steps_taken == 1
    with pytest.raises(co.InputError, match="the state does not fit"):
        stream.restore({}, 0)


def test_large_networks_pass_their_variables(variables, net, monkeypatch):
    monkeypatch.setattr("cojax.streaming.stream._CONSTANT_BYTES", 0)
    passing = co.Stream(net, variables, (1, 2))
    np.testing.assert_allclose(
        passing.steps(X, pad_end=True), net.apply(variables, X), rtol=1e-5, atol=1e-6
    )


def test_only_the_device_knows_what_a_frozen_branch_emits():
    net = co.Conditional(
        lambda module, x, train: x[0, 0] > 0, co.Delay(1), co.Delay(1), advance="taken"
    )
    stream = co.Stream(net, {}, (1, 1))
    one = jnp.ones((1, 1))
    assert stream(one) is None
    assert stream(-one) is None
    assert stream(one) is not None
    assert stream.steps(jnp.stack([-one, one], axis=2)).shape == (1, 1, 2)
