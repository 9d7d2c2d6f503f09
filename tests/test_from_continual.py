"""Networks of ``continual``, converted: the same function, and steps."""

import continual
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cojax as co
from tests.conversion import (
    TOLERANCE,
    as_torch,
    assert_is_state_dict,
    clip_and_stream,
    shaken,
)
from tests.laws import clip_of

pytestmark = [
    pytest.mark.usefixtures("quick_compilation", "own_registrations"),
    # continual calls torch's state_dict with positional arguments.
    pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning"),
]


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
        (continual.Add(torch.nn.Parameter(torch.tensor(2.0))), co.Add(np.float32(2))),
        (continual.Multiply(torch.tensor(2.0, dtype=torch.bfloat16)), co.Multiply(jnp.bfloat16(2))),
        (continual.Zero(), co.Zero()),
        (continual.One(), co.One()),
    ],
)
def test_a_layer_of_continual_keeps_its_arguments(module, expected):
    assert co.continual(module)[0] == expected


# Modules that are given each step of a clip, and the shape of the clip.
OF_EACH_STEP = {
    "relu": (torch.nn.ReLU(), (2, 4, 6)),
    "prelu": (torch.nn.PReLU(4), (2, 4, 6, 3)),
    "dropout of channels": (torch.nn.Dropout2d(), (2, 4, 6, 3, 2)),
    "softmax of channels": (torch.nn.Softmax(1), (2, 4, 6, 3)),
    "softmax of space": (torch.nn.Softmax(3), (2, 4, 6, 3, 2)),
    "softmin of the first axis of space": (torch.nn.Softmin(2), (2, 4, 6, 3, 2)),
    "glu": (torch.nn.GLU(3), (2, 4, 6, 3, 2)),
    "softmax of the last axis": (torch.nn.Softmax(-1), (2, 4, 6)),
    "log softmax of the last axis": (torch.nn.LogSoftmax(-1), (2, 4, 6, 3)),
    "glu of the last axis but one": (torch.nn.GLU(-2), (2, 4, 6, 3)),
    "softmax of the batch": (torch.nn.Softmax(-3), (2, 4, 6, 3)),
    "softmax 2d": (torch.nn.Softmax2d(), (2, 4, 6, 3, 2)),
    "softmax 2d of the batch": (torch.nn.Softmax2d(), (2, 4, 6, 3)),
    "group norm": (torch.nn.GroupNorm(2, 4), (2, 4, 6, 3)),
    "instance norm 1d": (torch.nn.InstanceNorm1d(4, affine=True), (2, 4, 6, 3)),
    "instance norm 2d": (
        torch.nn.InstanceNorm2d(4, track_running_stats=True),
        (2, 4, 6, 3, 2),
    ),
    "layer norm of channels": (torch.nn.LayerNorm(4), (2, 4, 6)),
    "layer norm of steps": (torch.nn.LayerNorm((4, 3)), (2, 4, 6, 3)),
    "batch norm 1d": (torch.nn.BatchNorm1d(4), (2, 4, 6)),
    "batch norm 1d of space": (torch.nn.BatchNorm1d(4), (2, 4, 6, 3)),
    "batch norm 2d": (torch.nn.BatchNorm2d(4), (2, 4, 6, 3, 2)),
    "linear": (torch.nn.Linear(3, 5), (2, 4, 6, 3)),
    "sequence": (
        torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.Identity(), torch.nn.ReLU()),
        (2, 4, 6),
    ),
}


@pytest.mark.parametrize("case", OF_EACH_STEP)
def test_a_module_that_is_given_each_step_keeps_its_function(case):
    fn, shape = OF_EACH_STEP[case]
    module = shaken(continual.Lambda(fn))
    x = clip_of(shape)
    net, variables = co.continual(module)
    expected = module.forward(as_torch(x)).detach().numpy()
    for y in clip_and_stream(net, variables, x):
        np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert_is_state_dict(net, variables, module)
    co.load_torch(net, module.state_dict())


def test_what_is_not_known_of_single_steps_is_refused_by_its_path():
    within = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv1d(4, 4, 3), torch.nn.Mish())
    untracked = torch.nn.BatchNorm1d(4, track_running_stats=False)
    module = continual.Sequential(
        *(continual.Lambda(fn) for fn in (within, torch.nn.AvgPool2d(2), untracked))
    )
    with pytest.raises(co.ConversionError) as error:
        co.continual(module)
    for path, words in {
        "0.fn.1 (Conv1d)": "is given single steps, where cojax knows it for clips",
        "0.fn.2 (Mish)": "no conversion is known",
        "1.fn (AvgPool2d)": "such as a Conv3d with a kernel of 1 in time",
        "2.fn (BatchNorm1d)": "normalises by their statistics",
    }.items():
        (line,) = (line for line in str(error.value).splitlines() if f"  {path}: " in line)
        assert words in line
    by_mode = continual.Lambda(torch.nn.ReLU(), forward_only_fn=torch.nn.Tanh())
    with pytest.raises(co.ConversionError, match="computes by other functions in some modes"):
        co.continual(by_mode)


def test_norms_of_single_steps_take_their_statistics_whatever_the_option_says():
    norms = torch.nn.GroupNorm(2, 4), torch.nn.LayerNorm((4, 3)), torch.nn.InstanceNorm1d(4)
    module = continual.Sequential(*map(continual.Lambda, norms))
    net, _ = co.continual(module)
    assert co.continual(module, per_step=True)[0] == net
    assert co.continual(module, per_step=False)[0] == net


def test_what_is_registered_may_be_given_single_steps():
    co.register(torch.nn.Mish, lambda _: co.Lambda(jax.nn.mish))
    module = continual.Lambda(torch.nn.Sequential(torch.nn.Mish(), torch.nn.Softmax(-1)))
    x = clip_of((2, 4, 6))
    net, variables = co.continual(module)
    np.testing.assert_allclose(net.apply(variables, x), module.forward(as_torch(x)), **TOLERANCE)


def rectified(inplace):
    return torch.nn.ReLU(inplace=inplace)


def conv(kernel_size=1):
    return continual.Conv1d(4, 4, kernel_size, padding=kernel_size // 2)


# Networks with an activation that works in place if it is told to.
OVERWRITING = {
    "residual": lambda inplace: continual.Residual(
        continual.Sequential(rectified(inplace), conv(3))
    ),
    "branch": lambda inplace: continual.BroadcastReduce(
        continual.Sequential(continual.Identity(), continual.Delay(1), rectified(inplace)), conv(3)
    ),
    "parallel": lambda inplace: continual.Sequential(
        continual.Broadcast(2),
        continual.Parallel(
            continual.Sequential(torch.nn.Dropout(), continual.Sequential(rectified(inplace))),
            conv(),
        ),
        continual.Reduce("sum"),
    ),
    "nested": lambda inplace: continual.Residual(
        continual.Residual(continual.Lambda(rectified(inplace)))
    ),
}


@pytest.mark.parametrize("case", OVERWRITING)
def test_a_branch_that_overwrites_what_others_read_is_refused(case):
    with pytest.raises(co.ConversionError, match=r"'[012.fn]+'\] work in place; set inplace=False"):
        co.continual(OVERWRITING[case](inplace=True))
    module = shaken(OVERWRITING[case](inplace=False))
    x = clip_of((2, 4, 6))
    net, variables = co.continual(module)
    expected = module.forward(as_torch(x)).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)


def test_a_branch_may_overwrite_what_it_made_itself():
    module = continual.Residual(
        continual.Sequential(
            conv(3), rectified(True), continual.Residual(conv(3)), rectified(inplace=True)
        )
    )
    module = shaken(continual.Sequential(rectified(inplace=True), module))
    x = clip_of((2, 4, 6))
    net, variables = co.continual(module)
    expected = module.forward(as_torch(x)).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)


def test_modules_that_continual_wrapped_are_converted_unless_their_forward_is_anothers():
    module = continual.Sequential(
        continual.forward_stepping(continual.forward_stepping(torch.nn.BatchNorm1d(4))),
        continual.continual(torch.nn.Sequential(torch.nn.PReLU(), torch.nn.ReLU())),
    )
    module = shaken(module)
    x = clip_of((2, 4, 6))
    net, variables = co.continual(module)
    expected = module.forward(as_torch(x)).detach()
    np.testing.assert_allclose(net.apply(variables, x), expected, **TOLERANCE)
    module[1][0].forward = torch.nn.PReLU().forward
    with pytest.raises(co.ConversionError, match=r"1\.0 \(PReLU\): has a forward of its own"):
        co.continual(module)
    doubling = torch.nn.ReLU()
    doubling.forward = lambda x: 2 * x
    with pytest.raises(co.ConversionError, match="has a forward of its own"):
        co.continual(continual.forward_stepping(doubling))


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
