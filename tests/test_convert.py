"""Whole modules of torch, of Flax and of ``continual``, converted: the same function, and steps."""

import types
from functools import partial

import continual
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from continual import convert as continual_convert

import cojax as co
from cojax.interop import convert
from cojax.interop.from_flax import BUILDERS as FLAX
from tests.laws import clip_of

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a test registers holds for it alone."""
    monkeypatch.setattr(convert, "_registered", {})


def shaken(module):
    """The torch module with random weights and statistics, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(noise + 0.5 if name.endswith("var") else noise - 0.4)
    return module.eval()


def as_torch(x):
    return torch.from_numpy(np.array(x))


def clip_and_stream(net, variables, x):
    """What the network gives for a clip at once, and streamed."""
    modes = ("forward", "forward_stream")
    return jax.jit(lambda v, x: [net.apply(v, x, method=mode) for mode in modes])(variables, x)


def declared(net):
    """The specs of the network's variables."""
    return jax.eval_shape(partial(net.init, method="declare"), jax.random.key(0))


def assert_is_state_dict(net, variables, module):
    state_dict, expected = co.to_torch(net, variables), module.state_dict()
    assert list(state_dict) == list(expected)
    for name, tensor in state_dict.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


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
    hooked = torch.nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
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
        "9 (ParametrizedLinear)": "is a Linear of its own",
    }.items():
        (line,) = (line for line in str(error.value).splitlines() if f"  {path}: " in line)
        assert words in line
    assert "2 (ReLU)" not in str(error.value)
    with pytest.raises(co.ConversionError, match=r"the module itself \(Mish\): no conversion"):
        co.continual(torch.nn.Mish())


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
            "has a norm1 that is no LayerNorm as torch makes it, but a RMSNorm",
        ),
        (encoder_layer(adding_zeros), "attends to more than its tokens"),
        (encoder_layer(lambda layer: tripled(layer.linear2)), "has a linear2 that has hooks"),
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
        (Negated(4, 2, 6, batch_first=True), None, "no TransformerEncoderLayer as torch makes it"),
        (encoder_layer(tripled), None, "has a 0 that has hooks"),
        (encoder_layer(), torch.nn.RMSNorm(4), "has a norm that is no LayerNorm"),
    ],
)
def test_an_encoder_that_computes_otherwise_is_refused(layer, norm, words):
    encoder = torch.nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    with pytest.raises(co.ConversionError, match=words):
        co.continual(encoder, sequence_len=3)


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
    with pytest.raises(TypeError, match="ReLU has its variables within"):
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


# Flax.

norm = partial(nn.BatchNorm, use_running_average=True)

# Layers and functions, and the shape of a clip with the channels last.
LINEN = {
    "conv of 1 axis": (nn.Conv(3, 3), (2, 7, 4)),
    "conv of 2 axes": (nn.Conv(3, (3, 2), (2, 1), padding=[1, (0, 1)]), (2, 7, 5, 4)),
    "conv of 3 axes": (nn.Conv(2, (2, 3, 4)), (1, 5, 4, 5, 3)),
    "conv, valid and grouped": (
        nn.Conv(4, (3,), (2,), "VALID", kernel_dilation=2, feature_group_count=2, use_bias=False),
        (2, 9, 4),
    ),
    "conv, causal": (nn.Conv(3, (3,), 2, "CAUSAL", kernel_dilation=2), (2, 8, 4)),
    "conv, circular in space": (nn.Conv(3, (1, 4), padding="CIRCULAR"), (2, 4, 5, 3)),
    "conv, reflecting space": (nn.Conv(3, (1, 3), padding="REFLECT"), (2, 4, 5, 3)),
    "conv, strided in space": (nn.Conv(3, (3, 2), (1, 2), padding="VALID"), (2, 4, 5, 3)),
    "dense": (nn.Dense(5), (2, 4, 3, 3)),
    "dense, unbiased": (nn.Dense(5, use_bias=False), (2, 4, 3)),
    "batch norm": (norm(epsilon=0.1), (2, 4, 2, 3)),
    "batch norm, plain": (norm(use_scale=False, use_bias=False), (2, 4, 3)),
    "layer norm": (nn.LayerNorm(use_bias=False), (2, 4, 2, 3)),
    "group norm": (nn.GroupNorm(2), (2, 4, 2, 6)),
    "group norm by size": (nn.GroupNorm(None, group_size=3), (2, 4, 6)),
    "instance norm": (nn.InstanceNorm(), (2, 4, 2, 3)),
    "dropout": (nn.Dropout(0.5, deterministic=True), (2, 4, 3)),
    "prelu": (nn.PReLU(), (2, 4, 3)),
    "rnn": (nn.RNN(nn.SimpleCell(3)), (2, 5, 4)),
    "rnn, relu": (nn.RNN(nn.SimpleCell(3, activation_fn=nn.relu)), (2, 5, 4)),
    "lstm": (nn.RNN(nn.LSTMCell(3)), (2, 5, 4)),
    "lstm, optimised": (nn.RNN(nn.OptimizedLSTMCell(3)), (2, 5, 4)),
    "gru": (nn.RNN(nn.GRUCell(3)), (2, 5, 4)),
    "avg pool": (partial(nn.avg_pool, window_shape=(3,)), (2, 7, 4)),
    "avg pool, same": (
        partial(nn.avg_pool, window_shape=(3, 1), padding="SAME", count_include_pad=False),
        (2, 7, 3, 4),
    ),
    "max pool": (
        partial(nn.max_pool, window_shape=(2, 2, 3), strides=(2, 1, 2), padding=((1, 1),) * 3),
        (2, 7, 3, 4, 2),
    ),
    "gelu, exact": (partial(nn.gelu, approximate=False), (2, 4, 3)),
    "leaky relu": (partial(nn.leaky_relu, negative_slope=0.3), (2, 4, 3)),
    **{
        function.__name__: (function, (2, 4, 6))
        for function in FLAX
        if not isinstance(function, type) and function not in (nn.avg_pool, nn.max_pool)
    },
}


def variables_for(module, x, seed=0):
    """Random variables of a Flax module, positive where they must be; none of a function."""
    if not isinstance(module, nn.Module):
        return {}
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 0.8, leaf.shape), leaf.dtype),
        jax.jit(module.init)(jax.random.key(0), x),
    )


def applied(module, variables, x):
    return module.apply(variables, x) if isinstance(module, nn.Module) else module(x)


@pytest.mark.parametrize("case", LINEN)
def test_a_flax_layer_keeps_its_function_with_the_axes_moved(case):
    module, shape = LINEN[case]
    x = clip_of(shape)
    variables = variables_for(module, x)
    net, converted = co.continual(module, variables)
    y = jax.jit(net.apply)(converted, jnp.moveaxis(x, -1, 1))
    expected = jax.jit(partial(applied, module))(variables, x)
    np.testing.assert_allclose(jnp.moveaxis(y, 1, -1), expected, **TOLERANCE)
    co.to_torch(net, converted)


def test_all_layers_of_flax_that_are_known_are_compared():
    compared = {convert._kind(module) for module, _ in LINEN.values()}
    assert set(FLAX) - compared == {nn.Sequential, nn.Bidirectional}


def test_nested_flax_modules_stream_what_they_compute():
    module = nn.Sequential(
        [
            nn.Conv(8, (4,)),
            nn.relu,
            norm(),
            nn.Sequential([nn.Conv(6, (3,), padding="CAUSAL", kernel_dilation=2), nn.glu]),
            partial(nn.max_pool, window_shape=(2,), strides=(2,)),
            nn.RNN(nn.GRUCell(4)),
            nn.Dropout(0.5, deterministic=True),
            nn.Dense(3),
        ]
    )
    x = clip_of((2, 12, 4))
    variables = variables_for(module, x)
    net, converted = co.continual(module, variables)
    assert net.timing == co.Timing(receptive_field=9, stride=2, padding=5, end=2, delay=3)
    expected = jnp.moveaxis(module.apply(variables, x), -1, 1)

    for y in clip_and_stream(net, converted, jnp.moveaxis(x, -1, 1)):
        np.testing.assert_allclose(y, expected, **TOLERANCE)


def test_a_converted_batch_norm_trains_as_in_flax():
    x = clip_of((3, 5, 2, 4))
    trained = nn.BatchNorm(use_running_average=False, momentum=0.8)
    variables = trained.init(jax.random.key(0), x)
    net, converted = co.continual(trained, variables)
    y, updated = net.apply(converted, jnp.moveaxis(x, -1, 1), train=True, mutable="batch_stats")
    expected, statistics = trained.apply(variables, x, mutable="batch_stats")
    np.testing.assert_allclose(jnp.moveaxis(y, 1, -1), expected, **TOLERANCE)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            updated["batch_stats"][name], statistics["batch_stats"][name], rtol=1e-5
        )


class Gate(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(x))


def halved(x):
    return x / 2


def test_what_flax_has_and_streams_have_not_is_named_by_path():
    module = nn.Sequential(
        [
            nn.Conv(2, (3,), 2),
            nn.Conv(2, (3,), padding="CIRCULAR"),
            nn.Conv(2, (3,), input_dilation=2),
            nn.Sequential([Gate(), halved, nn.relu]),
            nn.RNN(nn.MGUCell(2)),
            nn.RNN(nn.GRUCell(2), reverse=True),
            nn.Bidirectional(nn.RNN(nn.GRUCell(2)), nn.RNN(nn.GRUCell(2))),
            nn.LayerNorm(reduction_axes=(1, 2)),
            norm(axis_name="batch"),
            nn.avg_pool,
            partial(nn.max_pool, window_shape=(2,), padding="SAME"),
            partial(nn.softmax, axis=1),
            nn.Dense(2, dtype=jnp.bfloat16),
            nn.GroupNorm(2, use_scale=False, use_bias=False),
        ]
    )
    variables = {
        "params": {
            **{f"layers_{i}": {"kernel": jnp.ones((3, 2, 2))} for i in range(3)},
            "layers_12": {"kernel": jnp.ones((2, 2))},
        }
    }
    with pytest.raises(co.ConversionError) as error:
        co.continual(module, variables)
    for path, words in {
        "layers_0 (Conv)": "padding='SAME' pads by the length of what comes",
        "layers_1 (Conv)": "pads time with padding='CIRCULAR'",
        "layers_2 (Conv)": "a transposed convolution",
        "layers_3/layers_0 (Gate)": "lambda part: co.forward_stepping(part, channels_last=True)",
        "layers_3/layers_1 (halved)": "co.register(halved, builder)",
        "layers_4 (RNN)": "repeats a MGUCell",
        "layers_5 (RNN)": "runs in reverse",
        "layers_6 (Bidirectional)": "is bidirectional",
        "layers_7 (LayerNorm)": "has reduction_axes=(1, 2)",
        "layers_8 (BatchNorm)": "has axis_name='batch'",
        "layers_9 (avg_pool)": "needs its window",
        "layers_10 (max_pool)": "pads unevenly",
        "layers_11 (softmax)": "runs along channels alone",
        "layers_12 (Dense)": "computes in bfloat16",
        "layers_13 (GroupNorm)": "does not say how many channels",
    }.items():
        (line,) = (line for line in str(error.value).splitlines() if f"  {path}: " in line)
        assert words in line
    assert "layers_3/layers_2" not in str(error.value)


def test_flax_variables_that_do_not_fit_are_named():
    kernel = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    with pytest.raises(
        co.ConversionError, match=r"no 'kernel' among 'params'.*\(module, variables\)"
    ):
        co.continual(nn.Dense(3))
    with pytest.raises(co.ConversionError, match="beside those of its parts: layers_1"):
        co.continual(nn.Sequential([nn.relu]), {"params": {"layers_1": kernel}})
    with pytest.raises(co.ConversionError) as error:
        co.continual(nn.Dense(4), {"params": {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3)}})
    assert "params/kernel has shape (2, 3), expected (2, 4)" in str(error.value)
    assert "params/bias, of shape (4,), is missing" in str(error.value)
    assert "params/scale, of shape (3,), is none of the network's" in str(error.value)


def test_flax_modules_and_functions_of_ones_own_are_registered():
    module = nn.Sequential([nn.Conv(4, (3,), padding="VALID"), Gate(), halved, co.ReLU()])
    x = clip_of((2, 6, 3))
    variables = variables_for(nn.Sequential(module.layers[:3]), x)
    expected = nn.relu(nn.Sequential(module.layers[:3]).apply(variables, x))
    co.register(Gate, lambda gate: co.forward_stepping(gate, channels_last=True))
    co.register(halved, lambda _: co.Multiply(0.5))
    expected = jnp.moveaxis(expected, -1, 1)
    net, converted = co.continual(module, variables)
    for y in clip_and_stream(net, converted, jnp.moveaxis(x, -1, 1)):
        np.testing.assert_allclose(y, expected, **TOLERANCE)

    def gate_of_parts(gate, *, convert):
        branch = co.Sequential(convert(nn.Dense(4), "Dense_0"), co.Sigmoid())
        return co.Residual(branch, reduce="mul")

    co.register(Gate, gate_of_parts)
    again, converted = co.continual(module, variables)
    y = again.apply(converted, jnp.moveaxis(x, -1, 1))
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert list(co.to_torch(again, converted))[2:] == ["1.1.0.weight", "1.1.0.bias"]


# Networks of continual.


@pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning")
def test_a_network_of_continual_keeps_its_function_and_streams():
    module = shaken(
        continual.Sequential(
            continual.Conv1d(4, 6, 3, padding=1),
            torch.nn.BatchNorm1d(6),
            torch.nn.ReLU(),
            continual.Residual(
                continual.Sequential(continual.Conv1d(6, 6, 3), torch.nn.PReLU()),
                residual_shrink=True,
            ),
            continual.BroadcastReduce(
                continual.Conv1d(6, 3, 5, padding=2),
                continual.MaxPool1d(3, 1, 1),
                continual.Conv1d(6, 3, 1),
                reduce="concat",
            ),
            continual.Broadcast(2),
            continual.Parallel(continual.Delay(2), continual.Conv1d(12, 12, 5, padding=2)),
            continual.ParallelDispatch([1, 0]),
            continual.Reduce("max"),
            continual.Add(torch.ones(12, 1)),
            continual.Multiply(2.0),
            continual.Skip(2),
            continual.Reshape(-1, 6),
            continual.Lambda(torch.nn.LayerNorm(6), takes_time=True),
            continual.Identity(),
            continual.GRU(6, 3),
        )
    )
    module[13] = continual.Lambda(torch.nn.Tanhshrink(), takes_time=True)
    x = clip_of((2, 4, 15))
    net, variables = co.continual(module)
    expected = module(as_torch(x)).detach().numpy()
    for y in clip_and_stream(net, variables, x):
        np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert_is_state_dict(net, variables, module)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            continual.Conv2d(2, 4, 3, padding=1, temporal_fill="replicate"),
            co.Conv2d(2, 4, 3, padding=1, temporal_fill="replicate"),
        ),
        (
            continual.AvgPool2d(3, 1, dilation=(2, 1), count_include_pad=False),
            co.AvgPool2d(3, 1, dilation=(2, 1), count_include_pad=False),
        ),
        (continual.MaxPool3d(2), co.MaxPool3d(2)),
        (
            continual.AdaptiveAvgPool3d((1, 2, 2), 5, stride=2, temporal_fill="replicate"),
            co.AdaptiveAvgPool3d((1, 2, 2), 5, stride=2, temporal_fill="replicate"),
        ),
        (continual.AdaptiveMaxPool2d(1, 4, padding=1), co.AdaptiveMaxPool2d(1, 4, padding=1)),
        (continual.Linear(3, 4, channel_dim=1), co.Linear(3, 4, channel_dim=1)),
        (continual.LSTM(3, 4, 2, proj_size=2), co.LSTM(3, 4, 2, proj_size=2)),
        (continual.Zero(), co.Zero()),
        (continual.One(), co.One()),
    ],
)
def test_a_layer_of_continual_keeps_its_arguments(module, expected):
    assert co.continual(module)[0] == expected


def test_what_continual_computes_by_functions_of_torch_is_refused_or_registered():
    for module, words in (
        (continual.Conditional(lambda *_: True, torch.nn.ReLU()), "chooses by a function of torch"),
        (continual.Reduce(lambda streams: streams[0]), "reduces by a function of torch"),
        (continual.Lambda(torch.sin), r"  fn \(sin\): no conversion is known"),
    ):
        with pytest.raises(co.ConversionError, match=words):
            co.continual(module)
    co.register(torch.sin, lambda _: co.Lambda(jnp.sin))
    assert co.continual(continual.Lambda(torch.sin))[0] == co.Lambda(jnp.sin)
