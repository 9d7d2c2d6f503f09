"""What ``examples/train_streams.py`` does, for a few updates of small networks."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from cojax.demo.recordings import load
from examples.train_streams import (
    accuracy,
    convolutional,
    initialised,
    recurrent,
    train,
    train_truncated,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def recordings():
    """One of each activity, the first seconds."""
    x, y, _ = load("train")
    assert y[::10].tolist() == [0, 1, 2, 3]
    return jnp.asarray(x[::10, :, :60]), jnp.asarray(y[::10])


def test_through_a_stream_a_network_learns_what_it_learns_through_clips(recordings):
    x, y = recordings
    net = convolutional(channels=4)
    variables = initialised(net, x, seed=0)
    (by_clip, clip_losses), (by_scan, scan_losses) = (
        train(net, variables, x, y, method=method, updates=3, rate=0.01)
        for method in ("forward", "forward_stream")
    )
    np.testing.assert_allclose(scan_losses, clip_losses, rtol=1e-5)
    assert clip_losses[-1] < clip_losses[0]
    chex.assert_trees_all_close(by_scan, by_clip, atol=1e-5)
    chex.assert_trees_all_equal(by_scan["batch_stats"], variables["batch_stats"])


def test_truncated_at_the_end_of_the_recordings_nothing_is(recordings):
    x, y = recordings
    net = recurrent(channels=4)
    variables = initialised(net, x, seed=0)
    _, whole = train(net, variables, x, y, method="forward_stream", updates=2, rate=0.01)
    (_, uncut), (_, cut) = (
        train_truncated(net, variables, x, y, chunk=chunk, passes=2, rate=0.01)
        for chunk in (60, 30)
    )
    np.testing.assert_allclose(uncut, whole, rtol=1e-5)
    assert np.abs(cut - whole).max() > 1e-3


def test_a_stream_over_recordings_is_right_where_its_clip_is(recordings):
    x, y = recordings
    for net in (convolutional(channels=4), recurrent(channels=4)):
        variables = initialised(net, x, seed=0)
        answers = net.apply(variables, x)[:, :, -1].argmax(axis=1)
        assert accuracy(net, variables, x, answers) == 1
        assert accuracy(net, variables, x, y) == np.mean(answers == y)


def test_statistics_are_those_of_the_clips_from_the_start(recordings):
    x, _ = recordings
    scale = initialised(convolutional(channels=4), x, seed=0)["batch_stats"]["layers_scale"]
    np.testing.assert_allclose(scale["mean"], x.mean((0, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale["var"], x.var((0, 2), ddof=1), rtol=1e-4)
