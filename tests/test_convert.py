"""Modules of torch, converted: the same function, and steps; and what one registers."""

import types
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from continual import convert as continual_convert

import cojax as co
from tests.conversion import (
    TOLERANCE,
    as_torch,
    assert_is_state_dict,
    clip_and_stream,
    shaken,
)
from tests.laws import clip_of

pytestmark = pytest.mark.usefixtures("quick_compilation", "own_registrations")


def declared(net):
    """The specs of the network's variables."""
    return jax.eval_shape(partial(net.init, method="declare"), jax.random.key(0))


# Modules of torch, and the shape of a clip.
TORCH = {
    "conv1d": (torch.nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 8)),
    "conv1d valid": (torch.nn.Conv1d(4, 6, 3, padding="valid", bias=False), (2, 4, 8)),
    "conv1d same": (torch.nn.Conv1d(4, 6, 3, padding="same", dilation=2), (2, 4, 8)),
    "conv1d same, even": (torch.nn.Conv1d(4, 6, 4, padding="same", dilation=2), (2, 4, 8)),
    "conv2d": (
        torch.nn.Conv2d(2, 3, 3, padding=(0, 1), padding_mode="reflect", dilation=(2, 1)),
        (2, 2, 7, 4),
    ),
    "conv3d": (torch.nn.Conv3d(2, 3, (3, 1, 2), (1, 2, 1), (1, 0, 1)), (2, 2, 5, 4, 4)),
    "avg pool 1d": (torch.nn.AvgPool1d(3, 2, 1, ceil_mode=True), (2, 3, 8)),
    "avg pool 2d": (torch.nn.AvgPool2d((2, 3), divisor_override=4), (2, 3, 6, 6)),
    "avg pool 3d": (torch.nn.AvgPool3d(3, 1, 1, count_include_pad=False), (2, 3, 5, 4, 4)),
    "max pool 1d": (torch.nn.MaxPool1d(3, 1, 1, dilation=2), (2, 3, 8)),
    "max pool 2d": (torch.nn.MaxPool2d(2, ceil_mode=True), (2, 3, 7, 5)),
    "max pool 3d": (torch.nn.MaxPool3d((2, 1, 2), stride=1), (2, 3, 5, 4, 4)),
    "adaptive avg pool 1d": (torch.nn.AdaptiveAvgPool1d(1), (2, 3, 5)),
    "adaptive avg pool 2d": (torch.nn.AdaptiveAvgPool2d((1, 2)), (2, 3, 5, 4)),
    "adaptive avg pool 3d": (torch.nn.AdaptiveAvgPool3d(1), (2, 3, 5, 4, 4)),
    "adaptive max pool 1d": (torch.nn.AdaptiveMaxPool1d(1), (2, 3, 5)),
    "adaptive max pool 2d": (torch.nn.AdaptiveMaxPool2d((1, 2)), (2, 3, 5, 4)),
    "adaptive max pool 3d": (torch.nn.AdaptiveMaxPool3d((1, None, 2)), (2, 3, 5, 4, 4)),
    "linear": (torch.nn.Linear(4, 5), (2, 3, 6, 4)),
    "linear, unbiased": (torch.nn.Linear(4, 5, bias=False), (2, 3, 6, 4)),
    "batch norm 1d": (torch.nn.BatchNorm1d(3, eps=0.1), (2, 3, 5)),
    "batch norm 2d": (torch.nn.BatchNorm2d(3, affine=False), (2, 3, 5, 2)),
    "batch norm 3d": (torch.nn.BatchNorm3d(3, track_running_stats=False), (2, 3, 5, 2, 2)),
    "instance norm 1d": (torch.nn.InstanceNorm1d(3), (2, 3, 5)),
    "instance norm 2d": (
        torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        (2, 3, 5, 2),
    ),
    "instance norm 3d": (torch.nn.InstanceNorm3d(3, affine=True), (2, 3, 5, 2, 2)),
    "group norm": (torch.nn.GroupNorm(2, 4), (2, 4, 5)),
    "group norm, plain": (torch.nn.GroupNorm(2, 4, affine=False), (2, 4, 5)),
    "layer norm": (torch.nn.LayerNorm(3), (2, 4, 5, 3)),
    "layer norm of two axes": (torch.nn.LayerNorm((2, 3), bias=False), (2, 4, 5, 2, 3)),
    "threshold": (torch.nn.Threshold(0.1, 3.0), (2, 4, 5)),
    "relu": (torch.nn.ReLU(inplace=True), (2, 4, 5)),
    "rrelu": (torch.nn.RReLU(0.1, 0.2), (2, 4, 5)),
    "hardtanh": (torch.nn.Hardtanh(-0.5, 0.3), (2, 4, 5)),
    "relu6": (torch.nn.ReLU6(), (2, 4, 5)),
    "sigmoid": (torch.nn.Sigmoid(), (2, 4, 5)),
    "hardsigmoid": (torch.nn.Hardsigmoid(), (2, 4, 5)),
    "tanh": (torch.nn.Tanh(), (2, 4, 5)),
    "silu": (torch.nn.SiLU(), (2, 4, 5)),
    "hardswish": (torch.nn.Hardswish(), (2, 4, 5)),
    "elu": (torch.nn.ELU(0.5), (2, 4, 5)),
    "celu": (torch.nn.CELU(0.5), (2, 4, 5)),
    "selu": (torch.nn.SELU(), (2, 4, 5)),
    "glu": (torch.nn.GLU(1), (2, 4, 5)),
    "gelu": (torch.nn.GELU(), (2, 4, 5)),
    "gelu by tanh": (torch.nn.GELU("tanh"), (2, 4, 5)),
    "hardshrink": (torch.nn.Hardshrink(0.3), (2, 4, 5)),
    "leaky relu": (torch.nn.LeakyReLU(0.3), (2, 4, 5)),
    "log sigmoid": (torch.nn.LogSigmoid(), (2, 4, 5)),
    "softplus": (torch.nn.Softplus(2.0, 1.0), (2, 4, 5)),
    "softshrink": (torch.nn.Softshrink(0.3), (2, 4, 5)),
    "prelu": (torch.nn.PReLU(4), (2, 4, 5)),
    "softsign": (torch.nn.Softsign(), (2, 4, 5)),
    "tanhshrink": (torch.nn.Tanhshrink(), (2, 4, 5)),
    "softmin": (torch.nn.Softmin(1), (2, 4, 5)),
    "softmax": (torch.nn.Softmax(-1), (2, 4, 5, 3)),
    "softmax 2d": (torch.nn.Softmax2d(), (2, 4, 5, 3)),
    "log softmax": (torch.nn.LogSoftmax(1), (2, 4, 5)),
    "dropout": (torch.nn.Dropout(0.3), (2, 4, 5)),
    "dropout 1d": (torch.nn.Dropout1d(0.3), (2, 4, 5)),
    "dropout 2d": (torch.nn.Dropout2d(0.3), (2, 4, 5, 2)),
    "dropout 3d": (torch.nn.Dropout3d(0.3), (2, 4, 5, 2, 2)),
    "alpha dropout": (torch.nn.AlphaDropout(0.3), (2, 4, 5)),
    "feature alpha dropout": (torch.nn.FeatureAlphaDropout(0.3), (2, 4, 5)),
    "identity": (torch.nn.Identity(54), (2, 4, 5)),
    "rnn": (torch.nn.RNN(4, 3, nonlinearity="relu", bias=False), (2, 4, 5)),
    "lstm": (torch.nn.LSTM(4, 3, 2, batch_first=True, dropout=0.5, proj_size=2), (2, 4, 5)),
    "gru": (torch.nn.GRU(4, 3, 2), (2, 4, 5)),
    "nothing": (torch.nn.Sequential(), (2, 4, 5)),
}


def output_of(module, x):
    """What the torch module gives for a clip."""
    if not isinstance(module, torch.nn.RNNBase):
        return module(x)
    axes = (0, 2, 1) if module.batch_first else (2, 0, 1)
    y, _ = module(x.permute(axes))
    return y.permute(0, 2, 1) if module.batch_first else y.permute(1, 2, 0)


@pytest.mark.parametrize("case", TORCH)
def test_a_torch_module_keeps_its_function_its_weights_and_their_names(case):
    module, shape = TORCH[case]
    x = clip_of(shape)
    expected = output_of(shaken(module), as_torch(x)).detach().numpy()
    options = {"kernel_size": 5} if "Adaptive" in type(module).__name__ else {}
    net, variables = co.continual(module, **options)
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, **TOLERANCE)
    assert_is_state_dict(net, variables, module)
    assert jax.tree.structure(variables) == jax.tree.structure({"params": {}, **declared(net)})


def test_all_that_continual_converts_is_converted():
    theirs = {
        *continual_convert.NAIVE_MAPPING,
        *continual_convert.CONDITIONAL_MAPPING,
        *continual_convert.MODULE_MAPPING,
    }
    ours = {type(module) for module, _ in TORCH.values()}
    assert theirs - ours == {types.FunctionType, torch.nn.TransformerEncoder}


def nested_module():
    branch = torch.nn.Sequential(
        torch.nn.Conv2d(6, 4, (5, 1), padding=(2, 0), stride=(2, 1)),
        torch.nn.BatchNorm2d(4),
        torch.nn.Sequential(torch.nn.PReLU(), torch.nn.MaxPool2d(2, 1)),
    )
    module = torch.nn.Sequential()
    module.add_module("stem", torch.nn.Conv2d(3, 6, 3, padding=1))
    module.add_module("norm", torch.nn.BatchNorm2d(6))
    module.add_module("10", torch.nn.ReLU())
    module.add_module("2", branch)
    module.add_module("head", torch.nn.Linear(3, 5))
    return shaken(module), (2, 3, 12, 4)


def test_a_tree_of_modules_streams_what_torch_computes():
    module, shape = nested_module()
    x = clip_of(shape)
    net, variables = co.continual(module)
    assert net.order == ("stem", "norm", "10", "2", "head")
    assert net.timing == co.Timing(receptive_field=9, stride=2, padding=3, end=3, delay=5)
    expected = module(as_torch(x)).detach().numpy()
    assert_is_state_dict(net, variables, module)

    for y in clip_and_stream(net, variables, x):
        np.testing.assert_allclose(y, expected, **TOLERANCE)


def test_parameters_keep_their_dtypes_and_their_bits():
    module, _ = nested_module()
    for dtype in (torch.bfloat16, torch.float16):
        net, variables = co.continual(module.to(dtype))
        assert_is_state_dict(net, variables, module)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(variables["params"])} == {
            str(dtype).removeprefix("torch.")
        }
        assert jax.tree.map(lambda leaf: leaf.dtype, declared(net)["params"]) == jax.tree.map(
            lambda leaf: leaf.dtype, variables["params"]
        )


def test_a_module_in_training_is_converted_all_the_same():
    module, shape = nested_module()
    x = clip_of(shape)
    expected = module(as_torch(x)).detach().numpy()
    net, variables = co.continual(module.train())
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, **TOLERANCE)
    assert module.training


def test_options_go_to_all_that_take_them_or_by_path():
    norms = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.LayerNorm(4))
    module = torch.nn.Sequential(norms, torch.nn.Linear(4, 5), torch.nn.AdaptiveAvgPool2d(1))
    net, _ = co.continual(module, per_step=True, channel_dim={"1": 1}, kernel_size=3)
    assert net == co.Sequential(
        co.Sequential(co.GroupNorm(2, 4, per_step=True), co.LayerNorm(4, per_step=True)),
        co.Linear(4, 5, channel_dim=1),
        co.AdaptiveAvgPool2d(1, kernel_size=3),
    )
    net, _ = co.continual(module, channel_dim=1, kernel_size={"2": 4})
    assert net == co.Sequential(
        co.Sequential(co.GroupNorm(2, 4), co.LayerNorm(4, channel_dim=1)),
        co.Linear(4, 5, channel_dim=1),
        co.AdaptiveAvgPool2d(1, kernel_size=4),
    )


# Sequences that pad zeros before a convolution, and the shape of a clip.
PADDED = {
    "causal 1d": (
        (torch.nn.ConstantPad1d((4, 0), 0.0), torch.nn.Conv1d(3, 4, 3, dilation=2)),
        (2, 3, 7),
    ),
    "strided 1d": ((torch.nn.ZeroPad1d((1, 2)), torch.nn.Conv1d(3, 4, 4, stride=2)), (2, 3, 9)),
    "padded twice": (
        (torch.nn.ZeroPad1d((2, 0)), torch.nn.Conv1d(3, 4, 5, padding=1)),
        (2, 3, 7),
    ),
    "same, and padded": (
        (torch.nn.ZeroPad2d((1, 0, 0, 0)), torch.nn.Conv2d(3, 4, 3, padding="same")),
        (2, 3, 7, 4),
    ),
    "2d": (
        (torch.nn.ZeroPad2d((1, 0, 2, 0)), torch.nn.Conv2d(3, 4, 3, padding_mode="reflect")),
        (2, 3, 7, 4),
    ),
    "3d": (
        (torch.nn.ConstantPad3d((0, 1, 2, 1, 2, 0), 0), torch.nn.Conv3d(3, 4, 3)),
        (2, 3, 5, 4, 4),
    ),
}


@pytest.mark.parametrize("case", PADDED)
def test_zeros_padded_before_a_convolution_become_its_padding(case):
    parts, shape = PADDED[case]
    module = shaken(torch.nn.Sequential(*parts, torch.nn.ReLU()))
    x = clip_of(shape)
    net, variables = co.continual(module)
    expected = module(as_torch(x)).detach()
    for y in clip_and_stream(net, variables, x):
        np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert_is_state_dict(net, variables, module)
    assert module[1].padding == parts[1].padding != net.layers["1"].padding


@pytest.mark.parametrize(
    "parts",
    [
        (torch.nn.ZeroPad1d(1),),
        (torch.nn.ZeroPad1d(1), torch.nn.ReLU(), torch.nn.Conv1d(2, 2, 3)),
        (torch.nn.ConstantPad1d(1, 0.5), torch.nn.Conv1d(2, 2, 3)),
        (torch.nn.ConstantPad1d((-1, 2), 0), torch.nn.Conv1d(2, 2, 3)),
        (torch.nn.ZeroPad1d(1), torch.nn.Conv2d(2, 2, 3)),
        (
            torch.nn.ZeroPad2d(1),
            torch.nn.Conv2d(2, 2, 3, padding=(0, 1), padding_mode="reflect"),
        ),
        (torch.nn.ZeroPad1d(1), torch.nn.MaxPool1d(3)),
    ],
)
def test_padding_that_is_no_convolutions_is_refused(parts):
    words = r"  0 \(\w+\): pads by itself, and time can only be padded by a convolution or a pool"
    with pytest.raises(co.ConversionError, match=words):
        co.continual(torch.nn.Sequential(*parts))


def test_padding_with_hooks_and_convolutions_of_ones_own_are_refused():
    module = torch.nn.Sequential(torch.nn.ZeroPad1d(1), Doubled(2, 2, 3))
    with pytest.raises(co.ConversionError, match=r"1 \(Doubled\): is a Conv1d of its own"):
        co.continual(module)
    tripled(module[0])
    module[1] = torch.nn.Conv1d(2, 2, 3)
    with pytest.raises(co.ConversionError, match=r"0 \(ZeroPad1d\): has hooks"):
        co.continual(module)


class Doubled(torch.nn.Conv1d):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(torch.nn.Conv1d):
    """A convolution by another name."""


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv1d(channels, channels, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Scaled(Block):
    def __init__(self, channels):
        super().__init__(channels)
        self.scale = torch.nn.Parameter(torch.ones(channels, 1))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        return self.scale * super().forward(x)


def convert_block(block, *, convert):
    inner = co.Sequential(convert(block.conv), convert(block.norm))
    return co.Sequential(co.Residual(inner), co.ReLU())


def test_what_cannot_be_converted_is_named_by_path_all_of_it_at_once():
    hooked, doubling = torch.nn.ReLU(), torch.nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    doubling.forward = lambda x: 2 * x
    module = torch.nn.Sequential(
        torch.nn.LSTM(2, 2, bidirectional=True),
        torch.nn.Sequential(
            Doubled(2, 2, 1),
            torch.nn.Mish(),
            torch.nn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate"),
        ),
        torch.nn.ReLU(),
        torch.nn.MaxPool1d(2, return_indices=True),
        torch.nn.AdaptiveMaxPool2d((2, 1)),
        torch.nn.Flatten(),
        torch.nn.InstanceNorm1d(3),
        torch.nn.Softmax(),
        hooked,
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2)),
        doubling,
    )
    with pytest.raises(co.ConversionError) as error:
        co.continual(module, kernel_size={"6": 2}, per_step=True)
    for path, words in {
        "0 (LSTM)": "is bidirectional",
        "1.0 (Doubled)": "is a Conv1d of its own and may compute something else",
        "1.1 (Mish)": "no conversion is known; give one with co.register(Mish, builder)",
        "1.2 (Conv1d)": "pads time with padding_mode='replicate'",
        "3 (MaxPool1d)": "returns indices",
        "4 (AdaptiveMaxPool2d)": "say over how many steps it pools",
        "5 (Flatten)": "makes channels of time and space",
        "6 (InstanceNorm1d)": "one value a channel",
        "7 (Softmax)": "does not say along which axis",
        "8 (ReLU)": "has hooks",
        "9 (ParametrizedLinear)": 'parametrize.remove_parametrizations(module, "weight")',
        "10 (ReLU)": "has a forward of its own",
    }.items():
        (line,) = (line for line in str(error.value).splitlines() if f"  {path}: " in line)
        assert words in line
    assert "2 (ReLU)" not in str(error.value)
    with pytest.raises(co.ConversionError, match=r"the module itself \(Mish\): no conversion"):
        co.continual(torch.nn.Mish())


def test_a_norm_that_no_longer_tracks_its_statistics_is_refused():
    for kind in (torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d):
        norm = kind(3, track_running_stats=True)
        norm.track_running_stats = False
        with pytest.raises(co.ConversionError, match=r"0 .*has running statistics and track_"):
            co.continual(torch.nn.Sequential(norm))


def encoder_layer(change=lambda layer: None, **options):
    layer = torch.nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **options)
    change(layer)
    return layer


class Negated(torch.nn.TransformerEncoderLayer):
    def forward(self, src, *args, **options):
        return -super().forward(src)


def tripled(part):
    part.register_forward_hook(lambda module, inputs, output: 3 * output)


def adding_zeros(layer):
    layer.self_attn = torch.nn.MultiheadAttention(4, 2, batch_first=True, add_zero_attn=True)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (encoder_layer(lambda layer: setattr(layer.norm2, "eps", 0.5)), "has norms that differ"),
        (
            encoder_layer(lambda layer: setattr(layer, "norm1", torch.nn.RMSNorm(4))),
            "has a norm1 that is not torch's own LayerNorm, but a RMSNorm",
        ),
        (encoder_layer(adding_zeros), "attends to more than its tokens"),
        (encoder_layer(lambda layer: tripled(layer.linear2)), "has a linear2 that has hooks"),
        (
            encoder_layer(lambda layer: tripled(layer.activation), activation=torch.nn.SiLU()),
            "has a activation that has hooks",
        ),
        (
            encoder_layer(lambda layer: tripled(layer.self_attn.out_proj)),
            "has a out_proj that has hooks",
        ),
        (
            encoder_layer(lambda layer: setattr(layer.dropout1, "p", 0.7)),
            "has probabilities of dropout that differ",
        ),
    ],
)
def test_an_encoder_layer_that_computes_otherwise_is_refused(layer, words):
    for module in (layer, torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)):
        with pytest.raises(co.ConversionError, match=words):
            co.continual(module, sequence_len=3)


@pytest.mark.parametrize(
    ("layer", "norm", "words"),
    [
        (Negated(4, 2, 6, batch_first=True), None, "not torch's own TransformerEncoderLayer"),
        (encoder_layer(tripled), None, "has a 0 that has hooks"),
        (encoder_layer(), torch.nn.RMSNorm(4), "has a norm that is not torch's own LayerNorm"),
    ],
)
def test_an_encoder_that_computes_otherwise_is_refused(layer, norm, words):
    encoder = torch.nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    with pytest.raises(co.ConversionError, match=words):
        co.continual(encoder, sequence_len=3)


@pytest.mark.parametrize(
    "activation",
    [
        torch.nn.Softmax(-1),
        torch.nn.LogSoftmax(2),
        torch.nn.Softmin(-1),
        torch.nn.PReLU(),
        torch.nn.LeakyReLU(0.3),
        "gelu",
    ],
)
def test_an_encoder_layer_keeps_its_activation_along_the_channels(activation):
    layer = shaken(encoder_layer(activation=activation))
    x = clip_of((2, 4, 5))
    net, variables = co.continual(layer, sequence_len=5)
    expected = layer(as_torch(x).swapaxes(1, 2)).swapaxes(1, 2).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)
    net, variables = co.continual(
        torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), sequence_len=5
    )
    expected = layer(layer(as_torch(x).swapaxes(1, 2)))[:, -1:].swapaxes(1, 2).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "activation",
    [
        torch.nn.Softmax(1),
        torch.nn.Softmax(-2),
        torch.nn.Softmax(),
        torch.nn.PReLU(6),
        torch.nn.Softmax2d(),
        torch.nn.LayerNorm(6),
        torch.nn.Conv1d(6, 6, 1),
        torch.nn.Sequential(torch.nn.ReLU()),
        torch.tanh,
    ],
)
def test_an_activation_that_is_not_known_along_the_channels_is_refused(activation):
    with pytest.raises(co.ConversionError, match="has an activation that is not known"):
        co.continual(encoder_layer(activation=activation), sequence_len=3)


def test_options_that_nothing_takes_are_refused():
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.ReLU())
    with pytest.raises(co.ConversionError) as error:
        co.continual(module, kernel_size={"0": 3, "1": 3}, channel_dimm=1)
    assert "nothing at '1' takes kernel_size" in str(error.value)
    assert "nothing takes channel_dimm" in str(error.value)


def test_a_linear_map_of_time_is_refused_where_it_runs_and_converted_to_one_of_channels():
    module = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    x = clip_of((2, 3, 6))
    net, variables = co.continual(module)
    with pytest.raises(co.InputError, match=r"in layers_2: .*channel_dim=1 for the channels"):
        net.apply(variables, x)
    net, variables = co.continual(module, channel_dim=1)
    expected = module[2](module[:2](as_torch(x)).swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(net.apply(variables, x), expected.detach(), **TOLERANCE)


def test_what_is_no_module_or_has_its_variables_is_refused():
    for wrong in (torch.nn.ReLU, nn.Dense, 3, [torch.nn.ReLU()]):
        with pytest.raises(TypeError, match="continual takes a module, got"):
            co.continual(wrong)
    with pytest.raises(TypeError, match="ReLU holds its own variables"):
        co.continual(torch.nn.ReLU(), {})


# What one registers.


def test_a_registered_builder_puts_parts_where_it_likes():
    module = shaken(torch.nn.Sequential(Block(3), torch.nn.Sequential(Block(3))))
    x = clip_of((2, 3, 8))
    with pytest.raises(co.ConversionError, match=r"1.0 \(Block\): no conversion is known"):
        co.continual(module)
    co.register(Block, convert_block)
    net, variables = co.continual(module)
    expected = module(as_torch(x)).detach().numpy()
    for y in clip_and_stream(net, variables, x):
        np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert "0.0.1.0.weight" in co.to_torch(net, variables)


def shared_in_sequence(block, *, convert):
    conv = convert(block.conv)
    inner = co.Sequential({"z": conv, "norm": convert(block.norm), "a": conv})
    return co.Sequential(co.Residual(inner), co.ReLU())


def shared_in_branches(block, *, convert):
    conv = convert(block.conv)
    norm = co.Sequential(convert(block.norm))
    return co.BroadcastReduce(co.Sequential(conv, norm), co.Sequential(co.ReLU(), conv))


def test_a_registered_builder_may_place_a_part_twice():
    x = clip_of((2, 3, 8))
    block = shaken(Block(3))
    conv, norm, given = block.conv, block.norm, as_torch(x)
    for builder, expected in (
        (shared_in_sequence, torch.relu(given + conv(norm(conv(given))))),
        (shared_in_branches, norm(conv(given)) + conv(torch.relu(given))),
    ):
        co.register(Block, builder)
        net, variables = co.continual(torch.nn.Sequential(block))
        assert len(jax.tree.leaves(variables)) == len(block.state_dict())
        for y in clip_and_stream(net, variables, x):
            np.testing.assert_allclose(y, expected.detach(), **TOLERANCE)


def test_a_registered_builder_may_take_options_and_give_variables():
    def scaled(block, *, convert, epsilon=1e-3):
        net, variables = co.continual(block.norm)
        return net.clone(eps=epsilon), variables

    co.register(Scaled, scaled)
    block = shaken(Scaled(3))
    net, variables = co.continual(torch.nn.Sequential(block), epsilon=0.5)
    assert net == co.Sequential(co.BatchNorm1d(3, eps=0.5))
    np.testing.assert_array_equal(variables["params"]["layers_0"]["bias"], block.norm.bias.detach())
    co.register(Scaled, lambda block, *, steps: co.Delay(steps))
    with pytest.raises(co.ConversionError, match=r"0 \(Scaled\): needs steps, .* steps={'0': ...}"):
        co.continual(torch.nn.Sequential(Scaled(3)))


def test_a_registered_builder_must_use_all_variables():
    co.register(Scaled, convert_block)
    with pytest.raises(co.ConversionError, match="has variables beside those of its parts: scale;"):
        co.continual(Scaled(3))
    co.register(Block, lambda block, *, convert: (convert(block.conv), co.Identity())[1])
    with pytest.raises(co.ConversionError, match=r"norm\.weight"):
        co.continual(Block(3))
    co.register(Block, lambda block: co.Conv1d(3, 3, 3))
    with pytest.raises(co.ConversionError, match=r"unexpected conv\.weight"):
        co.continual(Block(3))

    def forgetful(block, *, convert):
        convert(block.conv)
        return co.Sequential(convert(block.norm))

    co.register(Block, forgetful)
    with pytest.raises(
        co.ConversionError, match="what was converted of conv is not in the network"
    ):
        co.continual(Block(3))


def test_a_part_that_fails_is_named_once_and_by_its_path():
    co.register(Block, convert_block)
    block = Block(2)
    block.conv = Doubled(2, 2, 1)
    with pytest.raises(co.ConversionError) as error:
        co.continual(torch.nn.Sequential(block))
    assert len(str(error.value).splitlines()) == 2
    assert "0.conv (Doubled): is a Conv1d of its own" in str(error.value)
    co.register(Block, lambda block, *, convert: co.Delay(convert(block.conv).kernel_size[0]))
    with pytest.raises(co.ConversionError, match=r"0\.conv \(Doubled\): is a Conv1d of its own"):
        co.continual(torch.nn.Sequential(block))
    co.register(Block, lambda block: block.missing)
    with pytest.raises(AttributeError, match="missing"):
        co.continual(torch.nn.Sequential(block))


def test_a_class_may_be_converted_like_another_but_never_is_by_itself():
    x = clip_of((2, 3, 6))
    for module in (Named(3, 2, 3), Doubled(3, 2, 3)):
        with pytest.raises(co.ConversionError, match="may compute something else"):
            co.continual(module)
    co.register(Named, torch.nn.Conv1d)
    module = Named(3, 2, 3)
    net, variables = co.continual(module)
    expected = module(as_torch(x)).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)
    co.register(Doubled, Named)
    with pytest.raises(co.ConversionError, match="converted like Named, and that is not"):
        co.continual(Doubled(3, 2, 3))


def test_what_is_registered_wins_over_what_is_built_in():
    class Doubling(co.CoModule):
        @staticmethod
        def build_from(conv):
            return co.Sequential({"conv": co.Multiply(2)}), {}

    co.register(torch.nn.Conv1d, Doubling)
    assert co.continual(torch.nn.Conv1d(1, 1, 1))[0] == co.Sequential({"conv": co.Multiply(2)})
    for wrong in (co.ReLU, "builder", co.ReLU()):
        with pytest.raises(TypeError, match="a builder is a function of the module"):
            co.register(torch.nn.ReLU, wrong)
    co.register(torch.nn.ReLU, lambda relu: "relu")
    with pytest.raises(TypeError, match="the builder of ReLU must return a CoModule"):
        co.continual(torch.nn.ReLU())
