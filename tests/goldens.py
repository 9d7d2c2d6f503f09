"""Goldens of the model zoo: weights, a clip, and what the PyTorch reference answers to it.

Small ones lie in ``tests/golden``. Those of full-size networks are looked for in ``zoo/golden``
within the folder that the environment variable COJAX_SHARED names, or ``shared`` beside the
repository; where there are none, ``load`` skips the test.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import cojax as co
from cojax.interop.names import entries

_TESTS = Path(__file__).parent
SHARED = Path(os.environ.get("COJAX_SHARED", _TESTS.parents[1] / "shared")) / "zoo"


class Golden(NamedTuple):
    """A reference network's state dict, the clip it was given, and what it answered.

    ``steps`` ``(N, B, classes)`` were emitted at the input steps ``step_index``; ``arrays`` holds
    what else was stored, ``meta`` the reference's configuration.
    """

    state_dict: dict[str, np.ndarray]
    x: np.ndarray
    steps: np.ndarray
    step_index: np.ndarray
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def find(path: str) -> Path:
    """A file of the goldens, by its path within ``zoo``; skips the test where there is none."""
    for place in (_TESTS / path, SHARED / path):
        if place.exists():
            return place
    pytest.skip(f"{path} is not at hand")


def load(name: str) -> Golden:
    """One golden, with its weights that follow ``weight_rule`` drawn again."""
    with np.load(find(f"golden/{name}.npz")) as file:
        stored = {key: file[key] for key in file.files}
    meta = json.loads(str(stored.pop("meta")))
    names, shapes = stored.pop("rule_keys", ()), stored.pop("rule_shapes", ())
    mean = meta.get("attn_rule", 1.0)
    state_dict = {key[3:]: stored.pop(key) for key in list(stored) if key.startswith("sd/")}
    for key, shape in zip(map(str, names), map(str, shapes), strict=True):
        state_dict[key] = weight_rule(key, tuple(json.loads(shape)), mean)
    x = stored.pop("x", None)
    if x is None:
        x = _rng("x").standard_normal(tuple(meta["x_shape"])).astype(np.float32)
    return Golden(state_dict, x, stored.pop("steps"), stored.pop("step_index"), stored, meta)


def state_dict_of(net: co.CoModule) -> dict[str, np.ndarray]:
    """Weights by the same rule for a network of one's own."""
    return {entry.name: weight_rule(entry.name, entry.torch_shape) for entry in entries(net)}


def weight_rule(name: str, shape: tuple[int, ...], graph_attention_mean: float = 1.0) -> np.ndarray:
    """The value of an entry of a state dict, drawn from its name: the same on every machine."""
    parts = name.split(".")
    leaf, owner = parts[-1], parts[-2] if len(parts) > 1 else ""
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    rng = _rng(name)
    normal, uniform = rng.standard_normal(shape), rng.random(shape)
    if leaf == "graph_attn":
        value = graph_attention_mean + 0.1 * normal
    elif leaf == "running_var":
        value = 0.5 + uniform
    elif leaf in ("running_mean", "bias", "in_proj_bias"):
        value = 0.1 * normal
    elif len(shape) == 1:  # Scales of norms; the last norm of a residual branch is smaller.
        value = (0.5 + uniform) * (0.3 if owner in ("c_bn", "norm_c") else 1.0)
    elif name.endswith("pe.weight"):
        value = 0.5 * normal
    else:
        gain = 0.3 if leaf == "in_proj_weight" else 1.0 if owner in ("projection", "fc") else 2.0
        value = normal * np.sqrt(gain / np.prod(shape[1:]))
    return value.astype(np.float32)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
