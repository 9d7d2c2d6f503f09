"""The parts that the video networks share: the residual block and the classifier."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from cojax.combinators.conditional import Conditional
from cojax.combinators.parallel import BroadcastReduce
from cojax.combinators.residual import Residual
from cojax.combinators.sequential import Sequential
from cojax.layers.activation import ReLU, Softmax
from cojax.layers.arguments import require_positive
from cojax.layers.closure import Lambda
from cojax.layers.conv import Conv3d
from cojax.layers.delay import Delay
from cojax.layers.dropout import Dropout
from cojax.layers.linear import Linear
from cojax.layers.norm import BatchNorm3d
from cojax.module import CoModule


def residual_block(
    branch2: Sequential, in_channels: int, out_channels: int, stride: int
) -> Sequential:
    """A residual block, whose branch halves the spatial axes if ``stride`` is 2.

    It computes ``relu(shortcut(x) + branch2(x))``. The shortcut is the identity, or a projection if
    the branch changes the shape.
    """
    branch = Sequential({"branch2": branch2})
    if in_channels == out_channels and stride == 1:
        return Sequential(Residual(branch), ReLU())
    projection = pointwise(in_channels, out_channels, stride)
    shortcut = Sequential({"branch1": projection, "branch1_bn": BatchNorm3d(out_channels)})
    if branch.delay:
        # If the delay came before the projection, its frames would be up to four times as large.
        shortcut = Sequential(shortcut, Delay(branch.delay))
    return Sequential(BroadcastReduce(shortcut, branch), ReLU())


def pointwise(in_channels: int, out_channels: int, stride: int = 1) -> Conv3d:
    """A 1x1x1 convolution without a bias."""
    return Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False)


def pooled_size(image_size: int) -> int:
    """The side length of an image after five halvings.

    Raises:
      ValueError: unless the side length of the image is positive.
    """
    require_positive(image_size=image_size)
    return -(-image_size // 32)


def classifier(features: int, num_classes: int, dropout: float) -> dict[str, CoModule]:
    """From ``(B, features, H, W)`` to ``(B, num_classes)``: probabilities, or logits in training.

    For images larger than the nominal size, the outputs at several positions are averaged.
    """
    return {
        "dropout": Dropout(dropout),
        "projection": Linear(features, num_classes, channel_dim=1),
        "softmax": Conditional(_evaluating, Softmax(dim=1)),
        "view": Lambda(_mean_over_space),
    }


def _evaluating(_module: CoModule, _x: Any, train: bool) -> bool:
    return not train


def _mean_over_space(x: Array) -> Array:
    return jnp.mean(x, axis=(-2, -1))
