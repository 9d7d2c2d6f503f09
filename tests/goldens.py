"""Goldens of the model zoo: weights, a clip, and what the PyTorch reference answers to it.

Small ones lie in ``tests/golden``. Those of full-size networks are looked for in ``zoo/golden``
within the folder that the environment variable COJAX_SHARED names (by default ``shared``, beside
the repository); where there are none, ``load`` skips the test.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.weights import named_rng, state_dict_of, weight_rule

__all__ = ["Golden", "find", "load", "state_dict_of"]

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
        x = named_rng("x").standard_normal(tuple(meta["x_shape"])).astype(np.float32)
    return Golden(state_dict, x, stored.pop("steps"), stored.pop("step_index"), stored, meta)
