"""The network of the demo: a small temporal convolutional network."""

from importlib import resources
from typing import Any

import cojax as co

LABELS = ("Standing", "Running", "Walking", "Badminton")


def activity_network(channels: int = 64, classes: int = len(LABELS)) -> co.Sequential:
    """A network from six sensor channels over the last 6.1 seconds to four activities.

    It maps steps ``(B, 6)`` at 10 Hz to probabilities ``(B, 4)``, and emits the first output at the
    61st sample.
    """
    blocks = {f"block{i}": _block(channels) for i in (1, 2, 3)}
    return co.Sequential(
        {
            "scale": co.BatchNorm1d(6),
            "stem": co.Conv1d(6, channels, kernel_size=5),
            **blocks,
            "pool": co.AvgPool1d(33, stride=1),
            "dropout": co.Dropout(0.3),
            "head": co.Linear(channels, classes, channel_dim=1),
            "opinion": co.Softmax(dim=1),
        }
    )


def _block(channels: int) -> co.BroadcastReduce:
    inner = {
        "norm": co.BatchNorm1d(channels),
        "act": co.ReLU(),
        "conv": co.Conv1d(channels, channels, kernel_size=9),
    }
    return co.Residual(co.Sequential(inner), residual_shrink="centered")


def trained_variables(net: co.CoModule) -> dict[str, Any]:
    """The variables trained by ``examples/train_demo.py``, from a checkpoint torch can load."""
    with resources.as_file(resources.files("cojax.demo").joinpath("activity.safetensors")) as path:
        return co.load_torch(net, path)
