"""The laws, for every layer and combinator over a grid of arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from tests.laws import check_laws, clip_of
from tests.networks import ACTIVATIONS
from tests.peer_cases import AGREED, FAULTS, WITHOUT_CONTINUAL

PEERS = AGREED | WITHOUT_CONTINUAL | FAULTS

# Cases of test_peers whose laws are checked too.
SHARED = (
    "conv1d",
    "conv1d same",
    "conv1d full padding",
    "conv1d strided",
    "conv1d stride 3",
    "conv1d depthwise",
    "conv1d grouped",
    "conv1d pointwise strided",
    "conv2d",
    "conv2d grouped dilated",
    "conv3d",
    "conv3d strided",
    "avgpool1d",
    "avgpool1d default stride",
    "avgpool1d, pads not counted",
    "avgpool1d ceil",
    "maxpool1d",
    "maxpool2d, dilated in space",
    "linear",
    "linear last",
    "batchnorm1d",
    "batchnorm2d",
    "batchnorm3d",
    "softmax2d",
    "softmax last",
    "glu last",
    "delay",
    "delay of 0",
    "delay centered",
    "delay lagging",
    "delay cropped",
    "skip",
    "reshape",
    "reshape inferred",
    "identity",
    "add",
    "rnn",
    "sequential",
    "more than ten, named",
    "strides behind strides",
    "broadcast, parallel, reduce",
    "several streams out",
    "strided branches, k3 and k5",
    "strided branches, k3 and k7",
    "concat",
    "recurrent beside a convolution",
    "residual",
    "residual centered",
    "residual centered and padded",
    "residual lagging",
    "residual leading and padded",
    "nested residuals",
    "conditional, padded",
)

CASES = {name: (PEERS[name].net, PEERS[name].shape) for name in SHARED} | {
    "conv1d causal": (lambda: co.Conv1d(3, 4, 3, padding=((2, 0),)), (2, 3, 7)),
    "conv1d causal, strided and dilated": (
        lambda: co.Conv1d(3, 4, 3, stride=2, padding=((4, 0),), dilation=2),
        (2, 3, 11),
    ),
    "conv1d padded more behind": (
        lambda: co.Conv1d(3, 4, 5, stride=2, padding=((1, 3),)),
        (2, 3, 10),
    ),
    "conv1d dilated": (lambda: co.Conv1d(3, 4, 3, dilation=2, padding=3), (2, 3, 10)),
    "conv2d reflect": (
        lambda: co.Conv2d(2, 4, 3, padding=(0, 1), padding_mode="reflect"),
        (2, 2, 7, 4),
    ),
    "conv3d depthwise": (
        lambda: co.Conv3d(3, 6, 3, stride=(1, 2, 1), padding=1, groups=3, dilation=(1, 1, 2)),
        (2, 3, 7, 5, 6),
    ),
    "conv3d unevenly padded": (
        lambda: co.Conv3d(2, 2, 3, padding=((0, 1), (2, 0), (0, 2)), groups=2),
        (2, 2, 6, 4, 4),
    ),
    "conv2d circular, unevenly padded": (
        lambda: co.Conv2d(2, 2, (2, 4), padding=((1, 0), (1, 2)), padding_mode="circular"),
        (2, 2, 6, 4),
    ),
    "conv3d circular": (
        lambda: co.Conv3d(2, 2, (2, 3, 3), padding=(0, 1, 1), padding_mode="circular"),
        (2, 2, 6, 4, 4),
    ),
    "avgpool1d ceil, pads not counted": (
        lambda: co.AvgPool1d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        (2, 3, 10),
    ),
    "avgpool1d dilated": (
        lambda: co.AvgPool1d(3, stride=1, padding=2, dilation=2, count_include_pad=False),
        (2, 3, 9),
    ),
    "avgpool2d": (
        lambda: co.AvgPool2d((2, 3), stride=(1, 2), padding=(1, 1), divisor_override=5),
        (2, 3, 7, 5),
    ),
    "avgpool2d one frame": (lambda: co.AvgPool2d((1, 2), divisor_override=3), (2, 3, 6, 4)),
    "avgpool3d": (
        lambda: co.AvgPool3d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        (1, 2, 8, 6, 5),
    ),
    "avgpool3d counted pads": (
        lambda: co.AvgPool3d((3, 2, 3), stride=(2, 2, 2), padding=(1, 1, 0), ceil_mode=True),
        (1, 2, 8, 6, 6),
    ),
    "maxpool1d dilated": (lambda: co.MaxPool1d(3, stride=2, padding=2, dilation=2), (2, 3, 12)),
    "maxpool3d ceil": (
        lambda: co.MaxPool3d((3, 2, 2), stride=(2, 2, 1), padding=(1, 0, 1), ceil_mode=True),
        (1, 2, 8, 5, 4),
    ),
    "batchnorm of any clip": (lambda: co.BatchNorm(3), (2, 3, 4, 2)),
    "norms 1d": (
        lambda: co.Sequential(
            co.GroupNorm(2, 6, per_step=True),
            co.InstanceNorm1d(6, affine=True, track_running_stats=True),
            co.LayerNorm(6, channel_dim=1),
        ),
        (2, 6, 4),
    ),
    "norms 2d": (
        lambda: co.Sequential(
            co.InstanceNorm2d(3, affine=True, bias=False, per_step=True),
            co.LayerNorm(5),
            co.LayerNorm((3, 5), per_step=True),
        ),
        (2, 3, 4, 5),
    ),
    "norms 3d": (
        lambda: co.Sequential(
            co.InstanceNorm3d(4, per_step=True),
            co.GroupNorm(2, 4, affine=False, per_step=True),
            co.LayerNorm((2, 3), bias=False),
        ),
        (2, 4, 4, 2, 3),
    ),
    "dropouts": (
        lambda: co.Sequential(
            co.Dropout(), co.Dropout2d(), co.AlphaDropout(), co.FeatureAlphaDropout()
        ),
        (2, 3, 4, 2),
    ),
    "activations": (lambda: co.BroadcastReduce(*ACTIVATIONS, reduce="concat"), (2, 4, 5)),
    "one token attends": (
        lambda: co.SingleOutputMultiheadAttention(6, 3, sequence_len=5),
        (2, 6, 9),
    ),
    "one token attends, and tokens are remembered": (
        lambda: co.SingleOutputMultiheadAttention(6, 2, sequence_len=4),
        (2, 6, 9),
    ),
    "an older token attends, and tokens are remembered": (
        lambda: co.SingleOutputMultiheadAttention(8, 2, sequence_len=4, query_index=1),
        (2, 8, 9),
    ),
    "an older token attends": (
        lambda: co.SingleOutputMultiheadAttention(
            6, 3, bias=False, add_bias_kv=True, add_zero_attn=True, sequence_len=4, query_index=1
        ),
        (2, 6, 9),
    ),
    "one token alone": (
        lambda: co.SingleOutputMultiheadAttention(6, 2, sequence_len=1),
        (2, 6, 4),
    ),
    "all tokens attend": (
        lambda: co.RetroactiveMultiheadAttention(6, 2, sequence_len=4),
        (2, 6, 9),
    ),
    "tokens of a window attend": (
        lambda: co.WindowMultiheadAttention(6, 2, query_index=-2),
        (2, 6, 4, 5),
    ),
    "encoder layer, an older token": (
        lambda: co.SingleOutputTransformerEncoderLayer(
            6, 2, 8, sequence_len=4, single_output_forward=True, query_index=1
        ),
        (2, 6, 8),
    ),
    "encoder": (
        lambda: co.TransformerEncoder(
            co.TransformerEncoderLayerFactory(6, 2, 8, norm_first=True, sequence_len=4),
            num_layers=2,
            norm=co.LayerNorm(6, channel_dim=1),
        ),
        (2, 6, 7),
    ),
    "positions": (lambda: co.RecyclingPositionalEncoding(4, 3), (2, 4, 8)),
    "fixed positions": (lambda: co.RecyclingPositionalEncoding(4, 5, learned=False), (2, 4, 8)),
    "window": (lambda: co.Window(3), (2, 3, 8, 2)),
    "window of one": (lambda: co.Window(1), (2, 3, 4)),
    "lambda": (lambda: co.Lambda(lambda x: x * jnp.tanh(x)), (2, 3, 4)),
    "lambda takes time": (lambda: co.Lambda(lambda x: x[:, :2] ** 2, takes_time=True), (2, 3, 4)),
    "multiply": (lambda: co.Multiply(jnp.arange(3.0)[:, None] - 5), (2, 3, 4)),
    "rnn relu, unbiased": (lambda: co.RNN(3, 4, 2, "relu", bias=False), (2, 3, 7)),
    "lstm": (lambda: co.LSTM(3, 4, 2), (2, 3, 7)),
    "lstm projected": (lambda: co.LSTM(3, 5, 2, dropout=0.5, proj_size=2), (2, 3, 7)),
    "gru": (lambda: co.GRU(3, 4, 2), (2, 3, 7)),
    "padded behind ceil": (
        lambda: co.Sequential(
            co.AvgPool1d(3, stride=2, ceil_mode=True, padding=1),
            co.Conv1d(2, 3, 3, padding=1),
            co.MaxPool1d(2, ceil_mode=True),
        ),
        (2, 2, 18),
    ),
    "a product with what came in": (
        lambda: co.BroadcastReduce(co.Conv1d(2, 2, 1), co.Delay(0), reduce="mul"),
        (2, 2, 5),
    ),
    "batch norm before a maximum": (
        lambda: co.Sequential(co.BatchNorm2d(3), co.MaxPool2d((3, 2), stride=1, padding=(1, 0))),
        (2, 3, 9, 4),
    ),
    "max behind max": (
        lambda: co.Sequential(
            co.MaxPool1d(3, stride=1, padding=1),
            co.BroadcastReduce(co.MaxPool1d(3, stride=1, padding=1), co.Identity(), reduce="mul"),
            co.Linear(2, 2, channel_dim=1),
        ),
        (2, 2, 9),
    ),
    "dispatch": (
        lambda: co.Sequential(
            co.Broadcast(2),
            co.Parallel(co.Conv1d(3, 3, 3, padding=1), co.Add(1)),
            co.ParallelDispatch([1, [0, 0], 0]),
            co.Parallel(
                co.Conv1d(3, 3, 5, padding=2),
                co.Sequential(co.Parallel(co.Delay(1), co.Add(2)), co.Reduce("max")),
                co.Identity(),
            ),
            co.Reduce(lambda streams: streams[0] * streams[1] - streams[2]),
        ),
        (2, 3, 11),
    ),
    "strided pointwise branch": (
        lambda: co.BroadcastReduce(
            co.Conv1d(2, 3, 1, stride=2), co.Conv1d(2, 3, 9, stride=2, padding=4)
        ),
        (2, 2, 16),
    ),
    "recurrent between convolutions": (
        lambda: co.Sequential(
            co.Conv1d(2, 3, 3, stride=2, padding=1), co.LSTM(3, 4), co.Conv1d(4, 2, 3, padding=1)
        ),
        (2, 2, 13),
    ),
    "encoder behind a stride": (
        lambda: co.Sequential(
            co.Conv1d(3, 6, 3, stride=2, padding=1),
            co.RecyclingPositionalEncoding(6, 5),
            co.TransformerEncoder(co.TransformerEncoderLayerFactory(6, 2, 8, sequence_len=3), 1),
            co.Conv1d(6, 2, 2),
        ),
        (2, 3, 18),
    ),
    "attention beside its newest token": (
        lambda: co.Residual(
            co.SingleOutputMultiheadAttention(4, 2, sequence_len=3), residual_shrink="leading"
        ),
        (2, 4, 8),
    ),
    "windows of windows": (
        lambda: co.Sequential(
            co.Conv1d(2, 3, 2), co.Window(3), co.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(1, 0))
        ),
        (2, 2, 14),
    ),
    "conditional on data": (
        lambda: co.Conditional(
            lambda module, x, train: x[0].mean() > 0,
            co.Conv1d(2, 2, 3, padding=1),
            co.Conv1d(2, 2, 5, padding=2),
        ),
        (1, 2, 10),
    ),
    "conditional by row": (
        lambda: co.Conditional(
            lambda module, x, train: x.mean(axis=1) > 0, co.Conv1d(2, 2, 3, padding=1)
        ),
        (3, 2, 10),
    ),
    "conditional by row, strided": (
        lambda: co.Sequential(
            co.Conditional(
                lambda module, x, train: x.mean(axis=1) > 0,
                co.Conv1d(2, 2, 3, stride=2, padding=1),
                co.AvgPool1d(2, stride=2),
            ),
            co.Conv1d(2, 2, 3, padding=1),
        ),
        (3, 2, 12),
    ),
}


# Random networks are compiled with all optimisations, in test_compositions.
pytestmark = pytest.mark.usefixtures("quick_compilation")


# What the Jacobian does not show: a predicate sees steps without a gradient, and streams that cross
# in a dispatch make the declared field, which takes the longest at every stage, an upper bound. The
# output of a recurrent layer sees all that came before.
NO_FIELD = {
    "conditional on data",
    "conditional by row",
    "conditional by row, strided",
    "dispatch",
    "rnn",
    "rnn relu, unbiased",
    "lstm",
    "lstm projected",
    "gru",
    "recurrent between convolutions",
    "recurrent beside a convolution",
}


@pytest.mark.parametrize("name", CASES)
def test_layers_and_combinators_keep_the_laws(name):
    build, shape = CASES[name]
    check_laws(
        build(), clip_of(shape), receptive_field=name not in NO_FIELD, rows=name != "reshape"
    )


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_first_of_several_maxima_takes_the_gradient(dilation):
    net = co.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), dilation=(dilation, 1))
    x = jnp.round(clip_of((2, 3, 11, 4)))
    check_laws(net, x)
    y, pull = jax.vjp(lambda x: net.apply({}, x), x)
    theirs = torch.from_numpy(np.array(x)).requires_grad_()
    pool = torch.nn.MaxPool2d((3, 2), (2, 1), (1, 0), (dilation, 1))
    pool(theirs).backward(torch.from_numpy(np.array(y)))
    np.testing.assert_allclose(pull(y)[0], theirs.grad, rtol=1e-6)


@pytest.mark.parametrize("constant", [co.Constant(3.0), co.Zero(), co.One()])
def test_constants_keep_the_laws(constant):
    check_laws(constant, clip_of((2, 3, 4)), receptive_field=False)


@pytest.mark.parametrize("kind", [co.AdaptiveAvgPool1d, co.AdaptiveMaxPool1d])
def test_adaptive_pools_1d_keep_the_laws_for_clips_of_their_length(kind):
    check_laws(kind(1, kernel_size=4), clip_of((2, 3, 4)), receptive_field=False)


@pytest.mark.parametrize(
    "net",
    [
        co.AdaptiveAvgPool2d((1, 3), kernel_size=6),
        co.AdaptiveMaxPool2d((1, None), kernel_size=6),
    ],
)
def test_adaptive_pools_keep_the_laws_for_clips_of_their_length(net):
    check_laws(net, clip_of((2, 3, 6, 5)), receptive_field=False)


@pytest.mark.parametrize(
    "net",
    [
        co.AdaptiveAvgPool3d((1, 2, 3), kernel_size=5),
        co.AdaptiveMaxPool3d((1, 1, 2), kernel_size=5),
    ],
)
def test_adaptive_pools_3d_keep_the_laws_for_clips_of_their_length(net):
    check_laws(net, clip_of((1, 2, 5, 4, 4)), receptive_field=False)
