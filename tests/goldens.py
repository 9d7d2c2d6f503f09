"""Weights, clips, and what the PyTorch networks of the zoo answer to them.

Small ones lie in ``tests/golden``; the others in a folder beside the repository, or in
``$COJAX_SHARED``. Tests of those that are not there are skipped.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("COJAX_SHARED", HERE.parent.parent / "shared"))
FOLDERS = (HERE / "golden", SHARED / "zoo" / "golden")


class Golden(NamedTuple):
    """What a reference network was given, and what it answered.

    ``steps`` ``(N, B, classes)`` left at the inputs ``step_index`` ``(N,)``; ``arrays`` holds the
    other answers and ``meta`` the configuration.
    """

    state_dict: dict[str, np.ndarray]
    x: np.ndarray
    steps: np.ndarray
    step_index: np.ndarray
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def golden_file(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / f"{name}.npz").is_file():
            return folder / f"{name}.npz"
    pytest.skip(f"there is no golden {name} in {' or '.join(map(str, FOLDERS))}")


def load(name: str) -> Golden:
    with np.load(golden_file(name)) as file:
        stored = {key: file[key] for key in file.files}
    meta = json.loads(str(stored.pop("meta")))
    drawn = zip(stored.pop("rule_keys", ()), stored.pop("rule_shapes", ()), strict=True)
    state_dict = {key[3:]: stored.pop(key) for key in list(stored) if key.startswith("sd/")}
    for key, shape in drawn:
        state_dict[str(key)] = _drawn(str(key), json.loads(str(shape)), meta.get("attn_rule", 1.0))
    x = stored.pop("x", None)
    if x is None:
        x = _rng("x").standard_normal(meta["x_shape"]).astype(np.float32)
    return Golden(state_dict, x, stored.pop("steps"), stored.pop("step_index"), stored, meta)


def _drawn(key: str, shape: list[int], graph_attention: float) -> np.ndarray:
    """A weight that is not stored: its values follow from its name."""
    leaf, owner = ("", *key.split("."))[:-3:-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    rng = _rng(key)
    normal, uniform = rng.standard_normal(shape), rng.random(shape)
    if leaf == "graph_attn":
        value = graph_attention + 0.1 * normal
    elif leaf == "running_var":
        value = 0.5 + uniform
    elif leaf in ("running_mean", "bias", "in_proj_bias"):
        value = 0.1 * normal
    elif len(shape) == 1:
        value = (0.5 + uniform) * (0.3 if owner in ("c_bn", "norm_c") else 1.0)
    elif key.endswith("pe.weight"):
        value = 0.5 * normal
    else:
        gain = 0.3 if leaf == "in_proj_weight" else 1.0 if owner in ("projection", "fc") else 2.0
        value = normal * np.sqrt(gain / np.prod(shape[1:]))
    return value.astype(np.float32)


def _rng(key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()))
