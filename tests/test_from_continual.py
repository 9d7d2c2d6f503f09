"""Networks of ``continual``, converted: the same function, and steps."""

import continual
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

pytestmark = pytest.mark.usefixtures("quick_compilation", "own_registrations")


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
