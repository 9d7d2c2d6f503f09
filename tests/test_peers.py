"""cojax beside its peers with the same weights: torch.nn, which decides, and ``continual``."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import continual
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cojax as co
from benchmarks.peers import NoPeer, to_continual, to_torch_nn
from cojax.frames import map_streams
from tests.laws import Bench, assert_same_bits, at, check_receptive_field, clip_of, part
from tests.networks import ACTIVATIONS, random_network, random_variables

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


# Random networks are compiled with all optimisations, in test_compositions.
pytestmark = pytest.mark.usefixtures("quick_compilation")


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


def streams(value: Any) -> list[np.ndarray] | None:
    """The arrays of one stream or several; None where there is no output."""
    if isinstance(value, tuple | list):
        each = [streams(one) for one in value]
        return None if None in each else [array for arrays in each for array in arrays]
    return None if value is None else [np.asarray(value)]


def emitted(read: Callable[[co.Frame], Any], frames: Any) -> list[np.ndarray] | None:
    return streams(map_streams(read, jax.tree.map(np.asarray, frames)))


Outputs = list[list[np.ndarray] | None]


def assert_alike(ours: Outputs, others: Outputs, what: str) -> None:
    assert len(ours) == len(others), what
    for t, (our, other) in enumerate(zip(ours, others, strict=True)):
        assert (our is None) == (other is None), f"{what}: only one is None, at {t}"
        for a, b in zip(our or [], other or [], strict=True):
            assert a.shape == b.shape, what
            np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=f"{what}, at {t}")


def thirds(steps: int) -> tuple[int, int]:
    """Where a stream of single steps becomes a chunk (of half its length), and steps again."""
    return steps // 4, steps // 4 + steps // 2


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


class Ours:
    """What cojax gives. Clips and frames are numpy's, whose slices need no compilation."""

    def __init__(self, net: co.CoModule, variables: Any, x: jax.Array):
        self.bench = Bench(net, np.asarray(x), variables)
        self.forward, self.stream = jax.jit(
            lambda x: [net.apply(variables, x, method=m) for m in ("forward", "forward_stream")]
        )(x)

    def steps(self, state: Any, start: int, stop: int) -> tuple[Outputs, Any]:
        outputs = []
        for t in range(start, stop):
            frame, state = self.bench.step(state, at(self.bench.x, t))
            outputs.append(emitted(co.Frame.or_none, frame))
        return outputs, state

    def chunk(self, state: Any, start: int, stop: int, pad_end: bool) -> tuple[Outputs, Any]:
        frames, state = self.bench.chunk(state, part(self.bench.x, start, stop), pad_end=pad_end)
        return [emitted(co.Frame.dense, frames)], state

    def run(self, mode: str) -> Outputs:
        steps, fresh = self.bench.steps, self.bench.fresh()
        if mode == FORWARD:
            return [streams(self.forward)]
        if mode in (STEP, FUNCTIONAL):
            return self.steps(fresh, 0, steps)[0]
        if mode == PAD_END:
            return self.chunk(fresh, 0, steps, True)[0]
        half = steps // 2
        if mode in (STEPS, RESUMED):
            before, state = self.chunk(fresh, 0, half, mode == RESUMED)
            after, _ = self.chunk(state, half, 2 * half, False)
            return after if mode == RESUMED else before + after
        first, last = thirds(steps)
        before, state = self.steps(fresh, 0, first)
        between, state = self.chunk(state, first, last, False)
        after, state = self.steps(state, last, steps)
        return before + between + after


class Theirs:
    """What ``continual`` gives."""

    def __init__(self, build: Callable[[], Any], x: jax.Array):
        self.build, self.x = build, torch.from_numpy(np.array(x))

    @torch.no_grad()
    def run(self, mode: str) -> Outputs:
        peer, x, steps = self.build(), self.x, self.x.shape[2]
        if mode == FORWARD:
            y = peer.forward(x)
            # On its own, a recurrent layer returns its hidden state too.
            return [streams(y[0] if isinstance(peer, nn.RNNBase) else y)]
        if mode == STEP:
            return [streams(peer.forward_step(x_t)) for x_t in x.unbind(2)]
        if mode == FUNCTIONAL:
            state, outputs = None, []
            for x_t in x.unbind(2):
                y, state = peer._forward_step(x_t, state)
                outputs.append(streams(y))
            return outputs
        if mode == PAD_END:
            return [streams(peer.forward_steps(x, pad_end=True))]
        half = steps // 2
        if mode in (STEPS, RESUMED):
            before = [streams(peer.forward_steps(x[:, :, :half], pad_end=mode == RESUMED))]
            after = [streams(peer.forward_steps(x[:, :, half : 2 * half]))]
            return after if mode == RESUMED else before + after
        first, last = thirds(steps)
        before = [streams(peer.forward_step(x_t)) for x_t in x[:, :, :first].unbind(2)]
        between = [streams(peer.forward_steps(x[:, :, first:last]))]
        after = [streams(peer.forward_step(x_t)) for x_t in x[:, :, last:].unbind(2)]
        return before + between + after


def due(net: co.CoModule, y: list[np.ndarray], mode: str, steps: int) -> Outputs:
    """What a mode must give, by torch's clip and the network's timing."""
    leaving = {t: k for k, t in enumerate(net.timing.outputs(steps))}

    def step(t: int) -> list[np.ndarray] | None:
        return [stream[:, :, leaving[t]] for stream in y] if t in leaving else None

    def chunk(start: int, stop: int) -> list[np.ndarray] | None:
        numbers = [leaving[t] for t in range(start, stop) if t in leaving]
        return [stream[:, :, numbers] for stream in y] if numbers else None

    if mode in (FORWARD, PAD_END):
        return [y]
    half = steps // 2
    if mode in (STEPS, RESUMED):
        return [chunk(0, half), chunk(half, 2 * half)][mode == RESUMED :]
    if mode in (STEP, FUNCTIONAL):
        return [step(t) for t in range(steps)]
    first, last = thirds(steps)
    return [*map(step, range(first)), chunk(first, last), *map(step, range(last, steps))]


@torch.no_grad()
def torch_outputs(net: co.CoModule, variables: Any, x: jax.Array, as_stream: bool) -> Any:
    peer = to_torch_nn(net, variables, FUNCTIONS, as_stream=as_stream)
    return streams(peer(torch.from_numpy(np.array(x))))


def checked_against_torch(
    net: co.CoModule, variables: Any, x: jax.Array, modes: Iterable[str] = MODES
) -> Ours:
    """cojax, after all its modes were compared with torch."""
    ours, steps = Ours(net, variables, x), x.shape[2]
    clip = torch_outputs(net, variables, x, as_stream=False)
    stream = torch_outputs(net, variables, x, as_stream=True)
    assert_alike([streams(ours.stream)], [stream], "forward_stream and torch")
    for mode in modes:
        y = clip if mode == FORWARD else stream
        assert_alike(ours.run(mode), due(net, y, mode, steps), f"{mode} and torch")
    return ours


def check_beside_peers(net: co.CoModule, variables: Any, x: jax.Array) -> None:
    ours = checked_against_torch(net, variables, x)
    theirs = Theirs(lambda: to_continual(net, variables, FUNCTIONS), x)
    for mode in MODES:
        assert_alike(ours.run(mode), theirs.run(mode), f"{mode} and continual")


@pytest.mark.parametrize("name", AGREED)
def test_every_mode_equals_torch_and_continual(name):
    net, shape = AGREED[name].net(), AGREED[name].shape
    check_beside_peers(net, random_variables(net, 0), clip_of(shape))


@pytest.mark.parametrize("name", WITHOUT_CONTINUAL)
def test_every_mode_equals_torch_where_continual_has_no_peer(name):
    net, shape = WITHOUT_CONTINUAL[name].net(), WITHOUT_CONTINUAL[name].shape
    variables = random_variables(net, 0)
    checked_against_torch(net, variables, clip_of(shape))
    with pytest.raises(NoPeer):
        to_continual(net, variables)


def is_wrong(mode: str, ours: Ours, theirs: Theirs) -> bool:
    """Whether ``continual`` differs from cojax, or fails."""
    timing = ours.bench.net.timing
    try:
        peer = theirs.build()
        if mode == FIELD:
            return peer.receptive_field != timing.receptive_field
        if mode == DELAY:
            emitted = [output is not None for output in theirs.run(STEP)]
            return peer.delay != emitted.index(True) == timing.delay
        assert_alike(ours.run(mode), theirs.run(mode), mode)
    except (AssertionError, RuntimeError, TypeError, LookupError, AttributeError):
        return True
    return False


@pytest.mark.parametrize("name", FAULTS)
def test_torch_decides_for_cojax_where_continual_is_wrong(name):
    case = FAULTS[name]
    net, x = case.net(), clip_of(case.shape)
    variables = random_variables(net, 0)
    runs = [mode for mode in (*MODES, FUNCTIONAL, RESUMED) if mode in (*MODES, *case.wrong)]
    ours = checked_against_torch(net, variables, x, runs)
    if FIELD in case.wrong:
        check_receptive_field(ours.bench)

    def built() -> Any:
        if case.peer is None:
            return to_continual(net, variables, FUNCTIONS)
        peer = case.peer().eval()
        peer.load_state_dict(co.to_torch(net, variables, delayed_names=True), strict=True)
        return peer

    theirs = Theirs(built, x)
    compared = {BUILDING} if BUILDING in case.wrong else {*MODES, *case.wrong}
    assert {mode for mode in compared if is_wrong(mode, ours, theirs)} == set(case.wrong)


@pytest.mark.parametrize("seed", range(5))
def test_random_networks_equal_torch_in_every_mode(seed):
    net, shape = random_network(seed)
    checked_against_torch(net, random_variables(net, seed), clip_of(shape, seed))


@pytest.mark.parametrize("seed", range(5))
def test_random_networks_equal_continual_in_every_mode(seed):
    net, shape = random_network(seed, for_continual=True)
    check_beside_peers(net, random_variables(net, seed), clip_of(shape, seed))


@pytest.mark.parametrize(
    "net",
    [
        co.AdaptiveAvgPool2d((1, 2), kernel_size=4),
        co.AdaptiveMaxPool2d((1, 3), kernel_size=3, stride=2),
    ],
)
def test_steps_of_adaptive_pools_equal_torch_over_the_last_steps(net):
    x, length = clip_of((2, 3, 9, 4)), net.kernel_size[0]
    bench = Bench(net, x, {"params": {}})
    pool, peer = to_torch_nn(net, bench.variables), to_continual(net, bench.variables)
    clip = torch.from_numpy(np.array(x))
    frames, _ = bench.stepped()
    for t, frame in enumerate(frames):
        y = peer.forward_step(clip[:, :, t])
        assert (y is None) == (frame.or_none() is None) == (not net.timing.emits(t))
        if y is not None:
            window = pool(clip[:, :, t - length + 1 : t + 1])[:, :, 0]
            assert_alike([streams(frame.value)] * 2, [streams(window), streams(y)], f"step {t}")


# Batch norm in training.


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_trains_as_in_torch(momentum, affine):
    net = co.BatchNorm2d(3, momentum=momentum, affine=affine)
    variables = random_variables(net, 1)
    peer = to_torch_nn(net, variables).train()
    train = jax.jit(lambda v, x: net.apply(v, x, train=True, mutable="batch_stats"))
    for seed in range(3):
        x = 1 + 2 * clip_of((2, 3, 5, 4), seed)
        y, updated = train(variables, x)
        variables = {**variables, **updated}
        np.testing.assert_allclose(y, peer(torch.from_numpy(np.array(x))).detach(), **TOLERANCE)
        for name, tensor in co.to_torch(net, variables).items():
            torch.testing.assert_close(tensor, peer.state_dict()[name], rtol=1e-5, atol=1e-6)
    x = clip_of((2, 3, 5, 4), 9)
    y = peer.eval()(torch.from_numpy(np.array(x))).detach()
    np.testing.assert_allclose(net.apply(variables, x), y, **TOLERANCE)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_without_running_statistics_equals_torch(train):
    net, x = co.BatchNorm1d(3, track_running_stats=False), clip_of((2, 3, 6))
    variables = random_variables(net, 0)
    peer = to_torch_nn(net, variables).train(train)
    y, updated = net.apply(variables, x, train=train, mutable="batch_stats")
    assert not updated
    np.testing.assert_allclose(y, peer(torch.from_numpy(np.array(x))).detach(), **TOLERANCE)


def test_a_network_trains_as_in_torch_gradients_included():
    net = co.Sequential(
        co.Conv1d(3, 4, 3, padding=1),
        co.BatchNorm1d(4),
        co.SiLU(),
        co.BroadcastReduce(co.Conv1d(4, 2, 3, stride=2), co.Conv1d(4, 2, 5, stride=2, padding=1)),
    )
    variables, x = random_variables(net, 2), clip_of((2, 3, 9))
    stats = {"batch_stats": variables["batch_stats"]}

    def loss(params: Any) -> Any:
        y, updated = net.apply({"params": params, **stats}, x, train=True, mutable="batch_stats")
        return jnp.sum(jnp.sin(y)), updated

    grads, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    peer = to_torch_nn(net, variables).train()
    torch.sin(peer(torch.from_numpy(np.array(x)))).sum().backward()
    expected = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, tensor in co.to_torch(net, {"params": grads, **updated}).items():
        reference = expected[name] if name in expected else peer.state_dict()[name]
        torch.testing.assert_close(tensor, reference, rtol=1e-4, atol=1e-5)


# Checkpoints.

# continual calls torch's state_dict with positional arguments.
CONTINUALS_STATE_DICT = pytest.mark.filterwarnings(
    "ignore:Positional args are being deprecated:FutureWarning"
)


def small_network() -> co.CoModule:
    return co.Sequential(
        co.Conv1d(3, 4, 3, padding=1),
        co.BatchNorm1d(4),
        co.ReLU(),
        co.AvgPool1d(2),
        co.Linear(4, 5, channel_dim=1),
    )


class Small(nn.Sequential):
    """The same in torch, with random statistics."""

    def __init__(self):
        super().__init__(
            nn.Conv1d(3, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Linear(4, 5),
        )
        self.train()(torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *layers, head = self
        for layer in layers:
            x = layer(x)
        return head(x.swapaxes(1, 2)).swapaxes(1, 2)


def assert_loaded(variables: Any, module: nn.Module) -> None:
    x = clip_of((2, 3, 8))
    with torch.no_grad():
        y = module(torch.from_numpy(np.array(x)))
    np.testing.assert_allclose(small_network().apply(variables, x), y, **TOLERANCE)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pyth", ".ckpt"])
@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model_state",), ("model",)])
def test_torch_files_load(tmp_path, suffix, nested):
    module, path = Small(), tmp_path / f"weights{suffix}"
    content = module.state_dict()
    for name in nested:
        content = {name: content, "epoch": 3}
    torch.save(content, path)
    assert_loaded(co.load_torch(small_network(), path), module)


def test_safetensors_load(tmp_path):
    module = Small()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    assert_loaded(co.load_torch(small_network(), tmp_path / "weights.safetensors"), module)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_written_load_in_torch_and_here(tmp_path, suffix):
    net, path = small_network(), tmp_path / f"weights{suffix}"
    variables = random_variables(net, 3)
    co.save_torch(path, net, variables)
    module = Small()
    state_dict = torch.load(path, weights_only=True) if suffix == ".pt" else load_file(path)
    module.load_state_dict(state_dict, strict=True)
    assert_loaded(variables, module)
    assert_same_bits(co.load_torch(net, path), variables, "written and read")


def test_renamed_entries_load_by_a_mapping_and_by_a_function():
    module = Small()
    given = {f"backbone.{name}": tensor for name, tensor in module.state_dict().items()}
    mapping = {name: name.removeprefix("backbone.") for name in given}
    for rename in (mapping, lambda name: name.removeprefix("backbone.")):
        assert_loaded(co.load_torch(small_network(), given, rename=rename), module)


@CONTINUALS_STATE_DICT
def test_flattened_names_load():
    module = continual.Sequential(
        continual.Sequential(OrderedDict(conv=continual.Conv1d(3, 4, 3))),
        continual.Sequential(OrderedDict(norm=nn.BatchNorm1d(4))),
    ).eval()
    flat = module.state_dict(flatten=True)
    assert "conv.weight" in flat
    net = co.Sequential(
        co.Sequential({"conv": co.Conv1d(3, 4, 3)}), co.Sequential({"norm": co.BatchNorm1d(4)})
    )
    x = clip_of((2, 3, 7))
    y = net.apply(co.load_torch(net, flat, flatten=True), x)
    with torch.no_grad():
        np.testing.assert_allclose(y, module.forward(torch.from_numpy(np.array(x))), **TOLERANCE)


@CONTINUALS_STATE_DICT
@pytest.mark.parametrize("by_file", [True, False])
def test_the_names_of_branches_that_continual_delays_load(tmp_path, by_file):
    module = continual.BroadcastReduce(
        continual.Conv1d(3, 3, 3, padding=1), continual.Conv1d(3, 3, 5, padding=2)
    ).eval()
    assert "0.0.weight" in module.state_dict()
    source: Any = module.state_dict()
    if by_file:
        source = tmp_path / "weights.pt"
        torch.save(module.state_dict(), source)
    net = co.BroadcastReduce(co.Conv1d(3, 3, 3, padding=1), co.Conv1d(3, 3, 5, padding=2))
    variables, x = co.load_torch(net, source), clip_of((2, 3, 7))
    with torch.no_grad():
        y = module.forward(torch.from_numpy(np.array(x)))
    np.testing.assert_allclose(net.apply(variables, x), y, **TOLERANCE)
    module.load_state_dict(co.to_torch(net, variables, delayed_names=True), strict=True)


# The builders themselves.


class Unheard(co.CoModule):
    """A layer of which no peer knows."""


@pytest.mark.parametrize("build", [to_continual, to_torch_nn])
def test_a_layer_without_a_peer_is_named(build):
    with pytest.raises(NoPeer, match="Unheard"):
        build(co.Sequential(co.ReLU(), Unheard()), {"params": {}})


@pytest.mark.parametrize("build", [to_continual, to_torch_nn])
def test_a_function_without_a_translation_is_named(build):
    with pytest.raises(NoPeer, match="gated"):
        build(co.Lambda(gated), {"params": {}})


def test_a_predicate_of_the_data_has_no_peer():
    net = co.Conditional(lambda module, x, train: x.mean() > 0, co.ReLU())
    with pytest.raises(NoPeer, match="predicate"):
        to_torch_nn(net, {"params": {}})(torch.zeros(1, 2, 3))
