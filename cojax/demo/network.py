"""The network of the demo: a small temporal convolution network."""

from importlib import resources
from typing import Any

import cojax as co

LABELS = ("Standing", "Running", "Walking", "Badminton")


def activity_network(channels: int = 64, classes: int = len(LABELS)) -> co.Sequential:
    """Six sensor channels to the probabilities of four activities, over the last 6.1 seconds.

    Steps ``(B, 6)`` at 10 Hz to ``(B, 4)``; the first output leaves with the 61st sample.
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
    """The variables that ``examples/train_demo.py`` found, from a torch-loadable checkpoint."""
    with resources.as_file(resources.files("cojax.demo").joinpath("activity.safetensors")) as path:
        return co.load_torch(net, path)
