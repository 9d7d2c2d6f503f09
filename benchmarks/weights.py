"""Weights drawn from the names of their entries, the same on every machine."""

import zlib

import numpy as np

import cojax as co
from cojax.interop.names import entries


def state_dict_of(net: co.CoModule) -> dict[str, np.ndarray]:
    """The weights of a network, and statistics of its norms that differ from the initial ones."""
    return {entry.name: weight_rule(entry.name, entry.torch_shape) for entry in entries(net)}


def weight_rule(name: str, shape: tuple[int, ...], graph_attention_mean: float = 1.0) -> np.ndarray:
    """The value of an entry of a state dict, drawn from its name: the same on every machine."""
    parts = name.split(".")
    leaf, owner = parts[-1], parts[-2] if len(parts) > 1 else ""
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    rng = named_rng(name)
    normal, uniform = rng.standard_normal(shape), rng.random(shape)
    if leaf == "graph_attn":
        value = graph_attention_mean + 0.1 * normal
    elif leaf == "running_var":
        value = 0.5 + uniform
    elif leaf in ("running_mean", "bias", "in_proj_bias"):
        value = 0.1 * normal
    elif len(shape) == 1:  # Scales of norms, smaller in the last norm of a residual branch.
        value = (0.5 + uniform) * (0.3 if owner in ("c_bn", "norm_c") else 1.0)
    elif name.endswith("pe.weight"):
        value = 0.5 * normal
    else:
        gain = 0.3 if leaf == "in_proj_weight" else 1.0 if owner in ("projection", "fc") else 2.0
        value = normal * np.sqrt(gain / np.prod(shape[1:]))
    return value.astype(np.float32)


def named_rng(name: str) -> np.random.Generator:
    """A random generator seeded with a name."""
    return np.random.default_rng(zlib.crc32(name.encode()))
