"""Continual Inference Networks in JAX: trained on clips, run on streams, one step at a time."""

from cojax import analysis, models
from cojax.analysis.costs import flops
from cojax.analysis.summary import summary
from cojax.analysis.timeline import timeline
from cojax.combinators.conditional import Conditional
from cojax.combinators.parallel import (
    Broadcast,
    BroadcastReduce,
    Parallel,
    ParallelDispatch,
)
from cojax.combinators.reduce import Reduce
from cojax.combinators.residual import Residual
from cojax.combinators.sequential import Sequential
from cojax.combinators.transformer import (
    RetroactiveTransformerEncoderLayer,
    SingleOutputTransformerEncoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    TransformerEncoderLayerFactory,
)
from cojax.errors import InputError
from cojax.folding import fold_batch_norm
from cojax.frames import Frame
from cojax.interop.convert import ConversionError, continual, register
from cojax.interop.torch import CheckpointError, load_torch, save_torch, to_torch
from cojax.layers.activation import (
    CELU,
    ELU,
    GELU,
    GLU,
    SELU,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    PReLU,
    ReLU,
    ReLU6,
    RReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softmax2d,
    Softmin,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
    Threshold,
)
from cojax.layers.attention import (
    RetroactiveMultiheadAttention,
    SingleOutputMultiheadAttention,
    WindowMultiheadAttention,
)
from cojax.layers.closure import Add, Constant, Identity, Lambda, Multiply, One, Zero
from cojax.layers.conv import Conv1d, Conv2d, Conv3d
from cojax.layers.delay import Delay, Skip, Window
from cojax.layers.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
)
from cojax.layers.linear import Linear
from cojax.layers.norm import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
)
from cojax.layers.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from cojax.layers.positional import RecyclingPositionalEncoding
from cojax.layers.recurrent import GRU, LSTM, RNN
from cojax.layers.shape import Reshape
from cojax.layers.stepping import forward_stepping
from cojax.modes import call_mode
from cojax.module import CoModule, TimeLocal
from cojax.streaming.files import StateFileError
from cojax.streaming.stream import Stream
from cojax.timing import Timing

__version__ = "0.1.0"

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "Add",
    "AlphaDropout",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm",
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
    "ConversionError",
    "Delay",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "Frame",
    "GroupNorm",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "InputError",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Lambda",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Multiply",
    "One",
    "PReLU",
    "Parallel",
    "ParallelDispatch",
    "RReLU",
    "ReLU",
    "ReLU6",
    "RecyclingPositionalEncoding",
    "Reduce",
    "Reshape",
    "Residual",
    "RetroactiveMultiheadAttention",
    "RetroactiveTransformerEncoderLayer",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SingleOutputMultiheadAttention",
    "SingleOutputTransformerEncoderLayer",
    "Skip",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "StateFileError",
    "Stream",
    "Tanh",
    "Tanhshrink",
    "Threshold",
    "TimeLocal",
    "Timing",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "TransformerEncoderLayerFactory",
    "Window",
    "WindowMultiheadAttention",
    "Zero",
    "analysis",
    "call_mode",
    "continual",
    "flops",
    "fold_batch_norm",
    "forward_stepping",
    "load_torch",
    "models",
    "register",
    "save_torch",
    "summary",
    "timeline",
    "to_torch",
]
