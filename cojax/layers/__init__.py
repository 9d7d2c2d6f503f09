"""Layers, with the constructor arguments of ``torch.nn`` and ``continual``."""

from cojax.layers.activation import ReLU, Sigmoid, SiLU, Softmax
from cojax.layers.closure import Add, Constant, Identity, Lambda, Multiply, One, Zero
from cojax.layers.conv import Conv1d, Conv2d, Conv3d
from cojax.layers.delay import Delay, Skip
from cojax.layers.dropout import Dropout
from cojax.layers.linear import Linear
from cojax.layers.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from cojax.layers.pooling import (
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from cojax.layers.shape import Reshape

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "Add",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Constant",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Delay",
    "Dropout",
    "Identity",
    "Lambda",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Multiply",
    "One",
    "ReLU",
    "Reshape",
    "Sigmoid",
    "SiLU",
    "Skip",
    "Softmax",
    "Zero",
]
