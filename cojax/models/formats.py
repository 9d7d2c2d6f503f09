"""The names that other libraries give to the weights of the networks in the zoo."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from cojax.layers.norm import BatchNorm3d
from cojax.models.skeleton_checkpoints import is_regular, rename_regular

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def _unchanged(name: str) -> str:
    return name


def _nothing(_given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {}


class Format(NamedTuple):
    """A naming of a network's weights, shared by checkpoint files of one origin.

    Example::

        format = co.models.Format(
            name="with a prefix",
            recognise=lambda names: "backbone.fc.weight" in names,
            rename=lambda name: name.removeprefix("backbone."),
            head="fc",
        )
        assert format.rename("backbone.fc.weight") == "fc.weight"

    Attributes:
      name: the name of the format.
      recognise: whether a file that holds these names has this format.
      rename: the network's name for a name in the file. Numeric parts between its first part and
        its last may be omitted if it remains unique.
      head: the prefix of the names of the classification layer.
      fill: the tensors, by the network's names, that such files lack, given those that they hold.
    """

    name: str
    recognise: Callable[[Collection[str]], bool]
    rename: Callable[[str], str]
    head: str
    fill: Callable[[Mapping[str, Any]], dict[str, np.ndarray]] = _nothing


def _holding(*marks: str) -> Callable[[Collection[str]], bool]:
    return lambda names: all(mark in names for mark in marks)


def _replacing(*rules: Rule) -> Callable[[str], str]:
    """A function that applies rules, regular expressions with their replacements, in order."""

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


def _stage(shift: int, template: str) -> Callable[[re.Match[str]], str]:
    """A replacement that adds ``shift`` to the number of a stage, the first group of the match."""
    return lambda match: match.expand(template.format(int(match[1]) + shift))


def _identity_norms(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Identity norms after projections that keep the channel count: pytorchvideo has none there.

    ``(x - 0) / sqrt(1 + eps) * weight + 0`` is ``x``, to the last bit.
    """
    filled: dict[str, np.ndarray] = {}
    for name, tensor in given.items():
        norm = name.removesuffix("branch1.weight") + "branch1_bn."
        lacks_norm = not any(other.startswith(norm) for other in given)
        if name.endswith(".branch1.weight") and tensor.shape[0] == tensor.shape[1] and lacks_norm:
            ones = np.ones(tensor.shape[0], np.float32)
            zeros = np.zeros_like(ones)
            filled |= {
                f"{norm}weight": ones * math.sqrt(1 + BatchNorm3d.eps),
                f"{norm}bias": zeros,
                f"{norm}running_mean": zeros,
                f"{norm}running_var": ones,
            }
    return filled


_PROJECTION: tuple[Rule, ...] = (
    (r"\.branch1_conv\.", ".branch1."),
    (r"\.branch1_norm\.", ".branch1_bn."),
)

_pytorchvideo_x3d = _replacing(
    (r"^blocks\.0\.conv\.conv_t\.", "s1.pathway0_stem.conv_xy."),  # Their conv_t is spatial.
    (r"^blocks\.0\.conv\.conv_xy\.", "s1.pathway0_stem.conv."),
    (r"^blocks\.0\.norm\.", "s1.pathway0_stem.bn."),
    (r"^blocks\.([1-4])\.res_blocks\.(\d+)\.", _stage(1, r"s{}.pathway0_res\2.")),
    *_PROJECTION,
    (r"\.norm_b\.0\.", ".norm_b."),
    (r"\.norm_b\.1\.block\.0\.", ".se.fc1."),
    (r"\.norm_b\.1\.block\.2\.", ".se.fc2."),
    (r"\.branch2\.conv_([abc])\.", r".branch2.\1."),
    (r"\.branch2\.norm_([abc])\.", r".branch2.\1_bn."),
    (r"^blocks\.5\.pool\.pre_conv\.", "head.conv_5."),
    (r"^blocks\.5\.pool\.pre_norm\.", "head.conv_5_bn."),
    (r"^blocks\.5\.pool\.post_conv\.", "head.lin_5."),
    (r"^blocks\.5\.proj\.", "head.projection."),
)

_pytorchvideo_slow = _replacing(
    (r"^blocks\.0\.", "0."),
    (r"^blocks\.([1-4])\.res_blocks\.(\d+)\.", r"\1.pathway0_res\2."),
    *_PROJECTION,
    (r"^blocks\.5\.proj\.", "5.projection."),
)

# Block 2 is a pool, without weights.
_without_pool = _replacing((r"^blocks\.([3-6])\.", _stage(-1, "blocks.{}.")))

_pyslowfast_resnet = _replacing(
    (r"^s1\.pathway0_stem\.conv\.", "0.conv."),
    (r"^s1\.pathway0_stem\.bn\.", "0.norm."),
    (r"^s([2-5])\.", _stage(-1, "{}.")),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
    (r"\.branch2\.([abc])_bn\.", r".branch2.norm_\1."),
    (r"^head\.projection\.", "5.projection."),
)


def _last_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules for the block of CoOadTR's encoder in which the newest token attends."""
    return (
        (rf"^{theirs}\.0\.1\.", f"{ours}.self_attn."),
        (rf"^{theirs}\.1\.fn\.", f"{ours}.norm1."),
        (rf"^{theirs}\.2\.1\.0\.", f"{ours}.linear1."),
        (rf"^{theirs}\.2\.1\.3\.", f"{ours}.linear2."),
        (rf"^{theirs}\.3\.fn\.", f"{ours}.norm2."),
    )


_COOADTR_NORM: Rule = (r"^4\.fn\.", "4.")
_cooadtr_b1 = _replacing(*_last_block(r"3", "3.layers.0"), _COOADTR_NORM)
_cooadtr_b2 = _replacing(
    (r"^3\.0\.0\.1\.", "3.layers.0.self_attn."),
    (r"^3\.0\.1\.fn\.0\.", "3.layers.0.norm1."),
    (r"^3\.0\.1\.fn\.1\.fn\.0\.", "3.layers.0.linear1."),
    (r"^3\.0\.1\.fn\.1\.fn\.3\.", "3.layers.0.linear2."),
    (r"^3\.0\.1\.fn\.2\.", "3.layers.0.norm2."),
    *_last_block(r"3\.1\.fn", "3.layers.1"),
    _COOADTR_NORM,
)

# The first format that recognises a file is used.
FORMATS = (
    Format("ST-GCN, AGCN or S-TR", is_regular, rename_regular, "fc"),
    Format(
        "continual-skeletons",
        _holding("layers.layer1.gcn.bn.weight", "layers.layer2.0.1.gcn.bn.weight"),
        str,
        "fc",
    ),
    Format(
        "pytorchvideo X3D",
        _holding("blocks.0.conv.conv_t.weight"),
        _pytorchvideo_x3d,
        "head.projection",
        _identity_norms,
    ),
    Format(
        "pytorchvideo Slow",
        _holding("blocks.0.conv.weight", "blocks.2.res_blocks.0.branch2.conv_a.weight"),
        _pytorchvideo_slow,
        "5.projection",
    ),
    Format(
        "pytorchvideo I3D",
        _holding("blocks.0.conv.weight", "blocks.5.res_blocks.0.branch2.conv_a.weight"),
        lambda name: _pytorchvideo_slow(_without_pool(name)),
        "5.projection",
    ),
    Format(
        "co3d X3D",
        _holding("s1.pathway0_stem.conv_xy.weight", "s2.pathway0_res0.0.1.branch2.a.weight"),
        _unchanged,
        "head.projection",
    ),
    Format(
        "co3d ResNet",
        _holding("0.conv.weight", "1.pathway0_res0.0.1.branch2.conv_a.weight"),
        _unchanged,
        "5.projection",
    ),
    Format(
        "PySlowFast X3D",
        _holding("s1.pathway0_stem.conv_xy.weight", "s2.pathway0_res0.branch2.a.weight"),
        _unchanged,
        "head.projection",
    ),
    Format(
        "PySlowFast ResNet",
        _holding("s1.pathway0_stem.conv.weight", "s2.pathway0_res0.branch2.a.weight"),
        _pyslowfast_resnet,
        "5.projection",
    ),
    Format("CoOadTR-b1", _holding("3.0.1.in_proj_weight"), _cooadtr_b1, "5"),
    Format("CoOadTR-b2", _holding("3.0.0.1.in_proj_weight"), _cooadtr_b2, "5"),
)
