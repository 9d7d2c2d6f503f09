"""Continual Inference Networks in JAX: trained on clips, run on streams, one step at a time."""

from cojax import models
from cojax.combinators.conditional import Conditional
from cojax.combinators.parallel import (
    Broadcast,
    BroadcastReduce,
    Parallel,
    ParallelDispatch,
    Reduce,
)
from cojax.combinators.residual import Residual
from cojax.combinators.sequential import Sequential
from cojax.errors import InputError
from cojax.frames import Frame
from cojax.interop.torch import CheckpointError, load_torch, save_torch, to_torch
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
from cojax.module import CoModule
from cojax.streaming.files import StateFileError
from cojax.streaming.stream import Stream
from cojax.timing import Timing

__version__ = "0.1.0"

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
    "Broadcast",
    "BroadcastReduce",
    "CheckpointError",
    "CoModule",
    "Conditional",
    "Constant",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Delay",
    "Dropout",
    "Frame",
    "Identity",
    "InputError",
    "Lambda",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Multiply",
    "One",
    "Parallel",
    "ParallelDispatch",
    "ReLU",
    "Reduce",
    "Reshape",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Skip",
    "Softmax",
    "StateFileError",
    "Stream",
    "Timing",
    "Zero",
    "load_torch",
    "models",
    "save_torch",
    "to_torch",
]
