"""What the tests of conversions share."""

import jax
import numpy as np
import torch

import cojax as co

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


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


def assert_is_state_dict(net, variables, module):
    state_dict, expected = co.to_torch(net, variables), module.state_dict()
    assert list(state_dict) == list(expected)
    for name, tensor in state_dict.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
