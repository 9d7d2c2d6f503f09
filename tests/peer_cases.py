"""The networks that test_peers compares with torch and with ``continual``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import continual
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import cojax as co
from tests.networks import ACTIVATIONS

# The JAX functions of Lambdas and reductions below, and what they are in torch.


def gated(x):
    return x * jnp.tanh(x)


def squared_in_part(x):
    return x[:, :2] ** 2


def difference(streams):
    return streams[0] * streams[1] - streams[2]


FUNCTIONS = {
    gated: lambda x: x * torch.tanh(x),
    squared_in_part: squared_in_part,
    difference: difference,
}

# How a network is run
# (clips at once; step by step; in two chunks; in one, flushed; by steps, a chunk and steps) ...
FORWARD, STEP, STEPS, PAD_END, RESTART = MODES = ("forward", "step", "steps", "pad_end", "restart")
# ... and where else continual may be wrong: in what a module declares, in the state that its
# functional step returns, in what follows a flushed chunk, and in building it at all.
FIELD, DELAY, FUNCTIONAL, RESUMED, BUILDING = "field", "delay", "functional", "resumed", "building"


class Case(NamedTuple):
    """A network, and what it is compared by.

    Attributes:
      net: what builds it.
      shape: the shape of its clip.
      wrong: where ``continual`` is wrong. In all other modes it must agree.
      peer: what builds the module in ``continual``, where that is not the builder of peers.
    """

    net: Callable[[], co.CoModule]
    shape: tuple[int, ...]
    wrong: tuple[str, ...] = ()
    peer: Callable[[], Any] | None = None


AGREED = {
    "conv1d": Case(lambda: co.Conv1d(3, 4, 3), (2, 3, 8)),
    "conv1d same": Case(lambda: co.Conv1d(3, 4, 5, padding=2), (2, 3, 9)),
    "conv1d full padding": Case(lambda: co.Conv1d(3, 4, 3, padding=2), (2, 3, 8)),
    "conv1d strided": Case(lambda: co.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 10)),
    "conv1d stride 3": Case(lambda: co.Conv1d(3, 4, 5, stride=3, padding=2), (1, 3, 14)),
    "conv1d pointwise": Case(lambda: co.Conv1d(3, 4, 1, bias=False), (2, 3, 6)),
    "conv1d depthwise": Case(lambda: co.Conv1d(4, 8, 3, groups=4, bias=False), (2, 4, 8)),
    "conv1d grouped": Case(lambda: co.Conv1d(4, 6, 3, groups=2, padding=1), (2, 4, 8)),
    "conv1d replicated": Case(
        lambda: co.Conv1d(3, 4, 4, padding=2, temporal_fill="replicate"), (2, 3, 9)
    ),
    "conv1d strided, replicated": Case(
        lambda: co.Conv1d(3, 4, 5, stride=2, padding=3, temporal_fill="replicate"), (2, 3, 11)
    ),
    "conv2d": Case(lambda: co.Conv2d(2, 4, (3, 2), padding=(1, 1)), (2, 2, 7, 4)),
    "conv2d replicated in space": Case(
        lambda: co.Conv2d(2, 4, 3, padding=(0, 1), padding_mode="replicate"), (2, 2, 7, 4)
    ),
    "conv2d replicated": Case(
        lambda: co.Conv2d(2, 4, 3, padding=1, temporal_fill="replicate"), (2, 2, 7, 4)
    ),
    "conv3d": Case(lambda: co.Conv3d(2, 3, 3, padding=1), (2, 2, 7, 4, 4)),
    "conv3d strided": Case(
        lambda: co.Conv3d(2, 4, (3, 3, 2), stride=(2, 2, 1), padding=(1, 1, 0), groups=2),
        (2, 2, 9, 5, 4),
    ),
    "conv3d depthwise, dilated in space": Case(
        lambda: co.Conv3d(3, 6, 3, (1, 2, 1), 1, groups=3, dilation=(1, 1, 2)), (2, 3, 7, 5, 6)
    ),
    "avgpool1d": Case(lambda: co.AvgPool1d(3, stride=1), (2, 3, 8)),
    "avgpool1d default stride": Case(lambda: co.AvgPool1d(3), (2, 3, 11)),
    "avgpool1d padded": Case(lambda: co.AvgPool1d(4, stride=1, padding=2), (2, 3, 9)),
    "avgpool1d stride beyond kernel": Case(lambda: co.AvgPool1d(2, stride=4), (2, 3, 11)),
    "avgpool1d replicated": Case(
        lambda: co.AvgPool1d(4, 2, 2, temporal_fill="replicate", count_include_pad=False), (2, 3, 9)
    ),
    "avgpool2d, pads of space not counted": Case(
        lambda: co.AvgPool2d(3, (1, 2), (0, 1), count_include_pad=False), (2, 3, 7, 5)
    ),
    "avgpool3d": Case(lambda: co.AvgPool3d(2, stride=(2, 1, 2), padding=1), (1, 2, 8, 4, 5)),
    "avgpool3d replicated": Case(
        lambda: co.AvgPool3d(3, stride=1, padding=1, temporal_fill="replicate"), (1, 2, 7, 4, 3)
    ),
    "maxpool1d": Case(lambda: co.MaxPool1d(3, stride=1, padding=1), (2, 3, 8)),
    "maxpool1d replicated": Case(
        lambda: co.MaxPool1d(3, stride=2, padding=1, temporal_fill="replicate"), (2, 3, 8)
    ),
    "maxpool2d, dilated in space": Case(
        lambda: co.MaxPool2d(2, stride=1, dilation=(1, 2), padding=1), (2, 3, 6, 5)
    ),
    "maxpool3d": Case(
        lambda: co.MaxPool3d((3, 2, 2), (2, 2, 1), padding=(1, 0, 1)), (1, 2, 8, 5, 4)
    ),
    "linear": Case(lambda: co.Linear(3, 5, channel_dim=1), (2, 3, 4)),
    "linear last": Case(lambda: co.Linear(4, 5, bias=False), (2, 3, 4, 4)),
    "linear over height": Case(lambda: co.Linear(4, 5, channel_dim=-2), (2, 3, 4, 4, 2)),
    "batchnorm1d": Case(lambda: co.BatchNorm1d(3), (2, 3, 4)),
    "batchnorm2d": Case(lambda: co.BatchNorm2d(3, affine=False), (2, 3, 4, 3)),
    "batchnorm3d": Case(lambda: co.BatchNorm3d(3, eps=0.1), (2, 3, 4, 2, 2)),
    "instancenorm1d": Case(
        lambda: co.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 4)
    ),
    "instancenorm2d": Case(
        lambda: co.InstanceNorm2d(3, 0.1, affine=True, track_running_stats=True), (2, 3, 4, 3)
    ),
    "instancenorm3d": Case(
        lambda: co.InstanceNorm3d(3, affine=True, track_running_stats=True, bias=False),
        (2, 3, 4, 2, 2),
    ),
    "layernorm": Case(lambda: co.LayerNorm(5), (2, 3, 4, 5)),
    "layernorm of space": Case(lambda: co.LayerNorm((2, 3), 0.1, bias=False), (2, 3, 4, 2, 3)),
    "dropouts": Case(
        lambda: co.Sequential(
            co.Dropout(0.3), co.Dropout2d(), co.AlphaDropout(), co.FeatureAlphaDropout()
        ),
        (2, 3, 4, 2),
    ),
    "dropout3d": Case(lambda: co.Dropout3d(), (2, 3, 4, 2, 2)),
    "activations": Case(
        lambda: co.Sequential(co.Broadcast(), co.Parallel(*ACTIVATIONS), co.Reduce("concat")),
        (2, 4, 6),
    ),
    "softmax2d": Case(lambda: co.Softmax2d(), (2, 3, 4, 2)),
    "glu last": Case(lambda: co.GLU(), (2, 3, 4, 6)),
    "softmax last": Case(lambda: co.Softmax(dim=-1), (2, 3, 4, 5)),
    "delay": Case(lambda: co.Delay(3), (2, 3, 8)),
    "delay of 0": Case(lambda: co.Delay(0), (2, 3, 4)),
    "skip": Case(lambda: co.Skip(3), (2, 3, 8)),
    "reshape": Case(lambda: co.Reshape(2, 12), (2, 3, 4, 4)),
    "reshape inferred": Case(lambda: co.Reshape((-1, 2, 2)), (2, 3, 4, 4)),
    "identity": Case(lambda: co.Identity(54, unused=True), (2, 3, 4)),
    "lambda": Case(lambda: co.Lambda(gated), (2, 3, 4)),
    "lambda takes time": Case(lambda: co.Lambda(squared_in_part, takes_time=True), (2, 3, 4)),
    "lambda by mode": Case(
        lambda: co.Lambda(gated, forward_only_fn=gated, forward_steps_only_fn=gated), (2, 3, 4)
    ),
    "add": Case(lambda: co.Add(2.5), (2, 3, 4)),
    "multiply": Case(lambda: co.Multiply(np.arange(3, dtype=np.float32)[:, None] - 5), (2, 3, 4)),
    "constant": Case(lambda: co.Constant(3.0), (2, 3, 4)),
    "zero": Case(lambda: co.Zero(), (2, 3, 4)),
    "one": Case(lambda: co.One(), (2, 3, 4)),
    "rnn": Case(lambda: co.RNN(3, 4), (2, 3, 7)),
    "rnn relu, unbiased": Case(lambda: co.RNN(3, 4, 3, "relu", bias=False), (2, 3, 7)),
    "lstm": Case(lambda: co.LSTM(3, 4), (2, 3, 7)),
    "lstm unbiased": Case(lambda: co.LSTM(3, 4, 2, bias=False, dropout=0.5), (2, 3, 7)),
    "lstm projected": Case(lambda: co.LSTM(3, 5, 3, proj_size=2), (2, 3, 7)),
    "gru": Case(lambda: co.GRU(3, 4), (2, 3, 7)),
    "gru unbiased": Case(lambda: co.GRU(3, 4, 2, bias=False), (2, 3, 7)),
    "recurrent between convolutions": Case(
        lambda: co.Sequential(
            co.Conv1d(3, 4, 3, stride=2, padding=1),
            co.LSTM(4, 5, 2),
            co.RNN(5, 4),
            co.Conv1d(4, 2, 3, padding=1),
        ),
        (2, 3, 13),
    ),
    "recurrent beside a convolution": Case(
        lambda: co.BroadcastReduce(co.GRU(2, 3), co.Conv1d(2, 3, 5, padding=2)), (2, 2, 10)
    ),
    "recurrent residual": Case(lambda: co.Residual(co.LSTM(3, 3)), (2, 3, 7)),
    "sequential": Case(
        lambda: co.Sequential(
            co.Conv1d(3, 4, 3, padding=1), co.BatchNorm1d(4), co.ReLU(), co.AvgPool1d(2)
        ),
        (2, 3, 10),
    ),
    "more than ten, named": Case(
        lambda: co.Sequential(
            {f"{11 - i}": co.Conv1d(2, 2, 1 + (i % 2)) if i % 3 else co.Add(i) for i in range(12)}
        ),
        (2, 2, 10),
    ),
    "strides behind strides": Case(
        lambda: co.Sequential(
            co.Conv1d(2, 4, 3, stride=2, padding=1),
            co.MaxPool1d(2, stride=1),
            co.Conv1d(4, 3, 3, stride=3, padding=2),
        ),
        (2, 2, 26),
    ),
    "replicated behind replicated": Case(
        lambda: co.Sequential(
            co.Conv1d(2, 4, 3, stride=2, padding=1, temporal_fill="replicate"),
            co.ReLU(),
            co.Conv1d(4, 2, 3, padding=2, temporal_fill="replicate"),
        ),
        (2, 2, 11),
    ),
    "broadcast, parallel, reduce": Case(
        lambda: co.Sequential(
            co.Broadcast(),
            co.Parallel(co.Conv1d(3, 3, 3, padding=1), co.Delay(2), co.Conv1d(3, 3, 5, padding=2)),
            co.Reduce("sum"),
        ),
        (2, 3, 10),
    ),
    "dispatch": Case(
        lambda: co.Sequential(
            co.Broadcast(2),
            co.Parallel(co.Add(1), co.Identity()),
            co.ParallelDispatch([1, [0, 0], 0]),
            co.Parallel(
                co.Conv1d(3, 3, 5, padding=2),
                co.Sequential(co.Parallel(co.Delay(1), co.Add(2)), co.Reduce("max")),
                co.Identity(),
            ),
            co.Reduce(difference),
        ),
        (2, 3, 11),
    ),
    "several streams out": Case(
        lambda: co.Sequential(
            co.Broadcast(2), co.Parallel(co.Conv1d(3, 2, 3, padding=1), co.ReLU())
        ),
        (2, 3, 8),
    ),
    "strided branches of one delay": Case(
        lambda: co.BroadcastReduce(
            co.Conv1d(2, 3, 3, stride=2, padding=1),
            co.Sequential(co.AvgPool1d(3, stride=2, padding=1), co.Conv1d(2, 3, 1)),
        ),
        (2, 2, 12),
    ),
    "concat": Case(
        lambda: co.BroadcastReduce(
            {"b": co.Conv1d(2, 3, 1), "a": co.Conv1d(2, 2, 3, padding=1)}, reduce="concat"
        ),
        (2, 2, 8),
    ),
    "reduced by a function": Case(
        lambda: co.BroadcastReduce(co.ReLU(), co.BatchNorm1d(2), co.Delay(3), reduce=difference),
        (2, 2, 8),
    ),
    "residual": Case(lambda: co.Residual(co.Conv1d(3, 3, 3, padding=1)), (2, 3, 8)),
    "residual leading": Case(
        lambda: co.Residual(co.Conv1d(3, 3, 4), residual_shrink="leading"), (2, 3, 10)
    ),
    "nested residuals": Case(
        lambda: co.Residual(
            co.Sequential(
                co.Residual(co.Conv2d(2, 2, 3, padding=1), reduce="max"),
                co.Conv2d(2, 2, (3, 1), padding=(1, 0)),
            ),
            reduce="mul",
        ),
        (2, 2, 9, 3),
    ),
    "conditional": Case(
        lambda: co.Conditional(
            lambda module, x, train: True, co.Conv1d(2, 2, 3), co.AvgPool1d(3, 1)
        ),
        (2, 2, 9),
    ),
    "conditional, not taken": Case(
        lambda: co.Conditional(
            lambda module, x, train: train, co.Conv1d(2, 2, 4), co.MaxPool1d(4, 1)
        ),
        (2, 2, 9),
    ),
    "adaptive average of a clip": Case(
        lambda: co.AdaptiveAvgPool2d((1, 3), kernel_size=6), (2, 3, 6, 5)
    ),
    "adaptive maximum of a clip": Case(
        lambda: co.AdaptiveMaxPool3d((1, 1, 2), kernel_size=5), (1, 2, 5, 4, 4)
    ),
}

AGREED |= {
    "attention of one token": Case(
        lambda: co.SingleOutputMultiheadAttention(6, 2, sequence_len=5), (2, 6, 5)
    ),
    "encoder layer": Case(
        lambda: co.SingleOutputTransformerEncoderLayer(
            6, 2, 8, layer_norm_eps=0.1, sequence_len=5, single_output_forward=True
        ),
        (2, 6, 5),
    ),
    "encoder layer, longer clip": Case(
        lambda: co.SingleOutputTransformerEncoderLayer(6, 2, 8, sequence_len=4),
        (2, 6, 11),
    ),
    "learnt positions": Case(lambda: co.RecyclingPositionalEncoding(6, 9), (2, 6, 8)),
    "fixed positions": Case(lambda: co.RecyclingPositionalEncoding(6, 9, learned=False), (2, 6, 8)),
}

# What torch alone can be compared with.
WITHOUT_CONTINUAL = {
    "adaptive average of a clip, 1d": Case(
        lambda: co.AdaptiveAvgPool1d(1, kernel_size=6), (2, 3, 6)
    ),
    "adaptive maximum of a clip, 1d": Case(
        lambda: co.AdaptiveMaxPool1d(1, kernel_size=6), (2, 3, 6)
    ),
    "conv1d causal": Case(lambda: co.Conv1d(3, 4, 3, 2, padding=((2, 0),)), (2, 3, 8)),
    "conv2d padded unevenly": Case(
        lambda: co.Conv2d(2, 4, (4, 3), padding=((1, 2), (0, 2))), (2, 2, 9, 4)
    ),
    "conv2d replicated in space, unevenly": Case(
        lambda: co.Conv2d(2, 4, 3, padding=((2, 1), (2, 0)), padding_mode="replicate"),
        (2, 2, 7, 4),
    ),
    "conv2d grouped dilated": Case(
        lambda: co.Conv2d(4, 4, (2, 3), stride=(1, 2), dilation=(2, 1), groups=2), (2, 4, 8, 7)
    ),
    "conv1d dilated, replicated": Case(
        lambda: co.Conv1d(2, 3, 3, padding=3, dilation=2, temporal_fill="replicate"), (2, 2, 8)
    ),
    "conv2d reflected in space": Case(
        lambda: co.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 2, 7, 4)
    ),
    "conv3d circular in space": Case(
        lambda: co.Conv3d(2, 2, (2, 3, 3), padding=(1, 1, 1), padding_mode="circular"),
        (2, 2, 6, 4, 4),
    ),
    "groupnorm per step": Case(lambda: co.GroupNorm(2, 4, 0.1, per_step=True), (2, 4, 5)),
    "groupnorm per step, in space": Case(
        lambda: co.GroupNorm(2, 4, bias=False, per_step=True), (2, 4, 5, 2, 3)
    ),
    "instancenorm2d per step": Case(
        lambda: co.InstanceNorm2d(3, affine=True, per_step=True), (2, 3, 5, 4)
    ),
    "instancenorm3d per step": Case(lambda: co.InstanceNorm3d(3, per_step=True), (2, 3, 5, 2, 3)),
    "instancenorm1d without parameters": Case(
        lambda: co.InstanceNorm1d(3, track_running_stats=True), (2, 3, 5)
    ),
    "layernorm of channels": Case(lambda: co.LayerNorm(3, channel_dim=1), (2, 3, 5, 4)),
    "layernorm per step": Case(lambda: co.LayerNorm((3, 4), per_step=True), (2, 3, 5, 4)),
    "dropout1d": Case(lambda: co.Dropout1d(), (2, 3, 5)),
    "delay cropped": Case(lambda: co.Delay(3, auto_shrink=(1, 2)), (2, 3, 10)),
    "residual leading and padded": Case(
        lambda: co.Residual(co.Conv1d(3, 3, 6, padding=1), residual_shrink="leading"), (2, 3, 10)
    ),
}

WITHOUT_CONTINUAL |= {
    "attention with added tokens": Case(
        lambda: co.SingleOutputMultiheadAttention(
            6, 2, add_bias_kv=True, add_zero_attn=True, sequence_len=4
        ),
        (2, 6, 9),
    ),
    "attention within a window": Case(lambda: co.WindowMultiheadAttention(6, 3), (2, 6, 4, 3)),
    "attention of one token within a window": Case(
        lambda: co.WindowMultiheadAttention(6, 3, bias=False, query_index=1), (2, 6, 4, 3)
    ),
    "encoder layer with its norms first": Case(
        lambda: co.RetroactiveTransformerEncoderLayer(
            6, 2, 8, activation=co.PReLU(), norm_first=True, sequence_len=4
        ),
        (2, 6, 7),
    ),
    "encoder layer without biases": Case(
        lambda: co.SingleOutputTransformerEncoderLayer(6, 2, 8, bias=False, sequence_len=4),
        (2, 6, 7),
    ),
    "three encoder layers": Case(
        lambda: co.TransformerEncoder(
            co.TransformerEncoderLayerFactory(6, 2, 8, activation=gated, sequence_len=4), 3
        ),
        (2, 6, 9),
    ),
    "window": Case(lambda: co.Window(3), (2, 3, 7, 2)),
}

# The faults of continual: in these modes of these networks it is wrong, as torch or the definition
# shows, and cojax is right. A fault that is mended over there fails a test here.
FAULTS = {
    # Delays are counted in input steps, but inserted behind strides.
    "strided branches, k3 and k5": Case(
        lambda: co.BroadcastReduce(
            co.Conv1d(2, 3, 3, stride=2, padding=1), co.Conv1d(2, 3, 5, stride=2, padding=2)
        ),
        (2, 2, 12),
        wrong=(STEP, RESTART),
    ),
    "strided branches, k3 and k7": Case(
        lambda: co.BroadcastReduce(
            co.Conv1d(2, 3, 3, stride=2, padding=1), co.Conv1d(2, 3, 7, stride=2, padding=3)
        ),
        (2, 2, 14),
        wrong=(STEP, STEPS, RESTART),
    ),
    # A pointwise convolution keeps no state, and so forgets which steps it was to skip.
    "conv1d pointwise strided": Case(
        lambda: co.Conv1d(3, 4, 1, stride=2), (2, 3, 8), wrong=(STEP, RESTART)
    ),
    # A centered delay declares less delay than it has. No crop behind is known to the flush.
    "delay centered": Case(
        lambda: co.Delay(2, auto_shrink=True), (2, 3, 10), wrong=(PAD_END, DELAY)
    ),
    "delay lagging": Case(lambda: co.Delay(2, auto_shrink="lagging"), (2, 3, 8), wrong=(PAD_END,)),
    "residual centered": Case(
        lambda: co.Residual(co.Conv1d(3, 3, 5), residual_shrink=True), (2, 3, 11), wrong=(PAD_END,)
    ),
    "residual lagging": Case(
        lambda: co.Residual(co.Conv1d(3, 3, 4), residual_shrink="lagging"),
        (2, 3, 9),
        wrong=(PAD_END,),
    ),
    "residual lagging and padded": Case(
        lambda: co.Residual(co.Conv1d(3, 3, 4, padding=1), residual_shrink="lagging"),
        (2, 3, 10),
        wrong=(FORWARD, PAD_END),
        peer=lambda: continual.Residual(
            continual.Conv1d(3, 3, 4, padding=1), residual_shrink="lagging"
        ),
    ),
    "residual centered and padded": Case(
        lambda: co.Residual(co.Conv1d(3, 3, 7, padding=1), residual_shrink="centered"),
        (2, 3, 12),
        wrong=(BUILDING,),
        peer=lambda: continual.Residual(
            continual.Conv1d(3, 3, 7, padding=1), residual_shrink="centered"
        ),
    ),
    # Only the state of the branch taken is returned, and pad_end is not passed on.
    "conditional, padded": Case(
        lambda: co.Conditional(
            lambda module, x, train: not train, co.Conv1d(2, 2, 3, padding=1), co.Delay(2)
        ),
        (2, 2, 9),
        wrong=(PAD_END, FUNCTIONAL),
    ),
    "conditional, recurrent": Case(
        lambda: co.Conditional(lambda module, x, train: not train, co.RNN(3, 3), co.LSTM(3, 3)),
        (2, 3, 8),
        wrong=(FUNCTIONAL,),
    ),
    # A dilated pool declares a field of d * k; its ring wraps at k, and forward of an average
    # knows no dilation.
    "avgpool1d dilated": Case(
        lambda: co.AvgPool1d(3, stride=1, dilation=2),
        (2, 3, 12),
        wrong=(FIELD, FORWARD, STEP, STEPS, PAD_END, RESTART),
    ),
    "maxpool1d dilated": Case(
        lambda: co.MaxPool1d(3, stride=1, dilation=3),
        (2, 3, 16),
        wrong=(STEP, STEPS, PAD_END, RESTART),
    ),
    "conv1d dilated": Case(
        lambda: co.Conv1d(3, 4, 3, padding=3, dilation=2),
        (2, 3, 10),
        wrong=(BUILDING,),
        peer=lambda: continual.Conv1d(3, 4, 3, padding=3, dilation=2),
    ),
    # An axis counted from the back is another one without time.
    "linear over channels from the back": Case(
        lambda: co.Linear(3, 5, channel_dim=-4), (2, 3, 6, 3, 2), wrong=(STEP, RESTART)
    ),
    # The fill is counted in every average, whether pads count or not.
    "avgpool1d, pads not counted": Case(
        lambda: co.AvgPool1d(4, stride=1, padding=2, count_include_pad=False),
        (2, 3, 9),
        wrong=(STEP, STEPS, PAD_END, RESTART),
    ),
    # ceil_mode and divisor_override concern forward alone.
    "avgpool1d ceil": Case(
        lambda: co.AvgPool1d(3, stride=2, padding=1, ceil_mode=True), (2, 3, 10), wrong=(PAD_END,)
    ),
    "maxpool3d ceil": Case(
        lambda: co.MaxPool3d((3, 2, 2), (2, 2, 1), padding=(1, 0, 1), ceil_mode=True),
        (1, 2, 8, 5, 4),
        wrong=(PAD_END,),
    ),
    "avgpool2d divisor": Case(
        lambda: co.AvgPool2d((2, 3), (1, 2), (1, 1), divisor_override=5),
        (2, 3, 7, 5),
        wrong=(STEP, STEPS, PAD_END, RESTART),
    ),
    # The default fill of maxima over space is zero, which may be the largest.
    "maxpool2d by default": Case(
        lambda: co.Sequential(co.Add(-9.0), co.MaxPool2d(3, stride=1, padding=1)),
        (2, 2, 6, 4),
        wrong=(STEP, STEPS, PAD_END, RESTART),
        peer=lambda: continual.Sequential(
            continual.Add(-9.0), continual.MaxPool2d(3, stride=1, padding=1)
        ),
    ),
    # Norms of a clip take the statistics of whatever they are given, so that the outputs depend on
    # how a stream is cut. Only single steps are those of the norm of each step by itself.
    "groupnorm": Case(
        lambda: co.GroupNorm(2, 4, per_step=True),
        (2, 4, 8),
        wrong=(FORWARD, STEPS, PAD_END, RESTART),
        peer=lambda: continual.continual(nn.GroupNorm(2, 4)),
    ),
    # A layer of torch is asked for its mode in words that it does not know.
    "layers of torch for branches": Case(
        lambda: co.BroadcastReduce(co.Tanh(), co.Sigmoid()),
        (2, 2, 8),
        wrong=(FORWARD, STEP, STEPS, PAD_END, RESTART),
    ),
    # Time is padded as space is, in forward alone.
    "conv2d padded in time, replicated in space": Case(
        lambda: co.Conv2d(2, 4, 3, padding=1, padding_mode="replicate"),
        (2, 2, 7, 4),
        wrong=(FORWARD,),
    ),
    # What a Parallel does not emit yet is an error in the next.
    "streams behind streams that warm up": Case(
        lambda: co.Sequential(
            co.Broadcast(2),
            co.Parallel(co.Conv1d(3, 3, 3, padding=1), co.Add(1)),
            co.ParallelDispatch([1, [0, 0], 0]),
            co.Parallel(
                co.Conv1d(3, 3, 5, padding=2),
                co.Sequential(co.Parallel(co.Delay(1), co.Add(2)), co.Reduce("max")),
                co.Identity(),
            ),
            co.Reduce(difference),
        ),
        (2, 3, 11),
        wrong=(STEP, RESTART),
    ),
    # A flush leaves the layers behind the first in the state of after it.
    "two convolutions": Case(
        lambda: co.Sequential(co.Conv1d(2, 3, 3, padding=1), co.Conv1d(3, 2, 3, padding=1)),
        (2, 2, 12),
        wrong=(RESUMED,),
    ),
    "recurrent behind a convolution": Case(
        lambda: co.Sequential(co.Conv1d(2, 3, 3, padding=1), co.GRU(3, 4)),
        (2, 2, 12),
        wrong=(RESUMED,),
    ),
}


# Where continual has another meaning: its ``forward`` is over the whole of a clip, however long.
FAULTS |= {
    "attention of one token, longer clip": Case(
        lambda: co.SingleOutputMultiheadAttention(6, 2, bias=False, sequence_len=4),
        (2, 6, 11),
        wrong=(FORWARD, DELAY),
    ),
    "attention of an older token": Case(
        lambda: co.SingleOutputMultiheadAttention(6, 2, sequence_len=4, query_index=1),
        (2, 6, 11),
        wrong=(FORWARD, DELAY),
    ),
    "attention of all tokens": Case(
        lambda: co.RetroactiveMultiheadAttention(6, 2, sequence_len=4),
        (2, 6, 11),
        wrong=(FORWARD,),
    ),
    # Of the layers' residuals only that of the newest token is right.
    "encoder layer, an older token": Case(
        lambda: co.SingleOutputTransformerEncoderLayer(
            6, 2, 8, sequence_len=4, query_index=1, single_output_forward=True
        ),
        (2, 6, 11),
        wrong=(FORWARD, PAD_END),
    ),
    # The ring of the retroactive residual wraps at delay instead of delay + 1 slots.
    "two encoder layers": Case(
        lambda: co.TransformerEncoder(
            co.TransformerEncoderLayerFactory(6, 2, 8, sequence_len=4), 2
        ),
        (2, 6, 13),
        wrong=(FORWARD, STEP, STEPS, PAD_END, RESTART),
    ),
    # "gelu" is taken for relu.
    "encoder of gelu": Case(
        lambda: co.TransformerEncoder(
            co.TransformerEncoderLayerFactory(6, 2, 8, activation="gelu", sequence_len=4), 1
        ),
        (2, 6, 6),
        wrong=(FORWARD, STEP, STEPS, PAD_END, RESTART),
        peer=lambda: continual.TransformerEncoder(
            continual.TransformerEncoderLayerFactory(6, 2, 8, activation="gelu", sequence_len=4), 1
        ),
    ),
    # A clip longer than there are encodings is refused.
    "positions, used again": Case(
        lambda: co.RecyclingPositionalEncoding(6, 3),
        (2, 6, 8),
        wrong=(FORWARD, STEPS, PAD_END, RESTART),
    ),
}
