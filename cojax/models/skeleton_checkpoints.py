"""The names in the checkpoints of ``continual-skeletons``.

Its continual networks have the same names as the networks here. In its regular networks (ST-GCN,
AGCN, S-TR) and in checkpoints flattened by ``continual``, the names do not include the residual
connection that a block is wrapped in.
"""

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"layers\.layer(\d+)\.(gcn|tcn|residual)\.")


def is_regular(names: Iterable[str]) -> bool:
    """Whether these are the names of a regular skeleton network's checkpoint.

    They are if a block other than the first has no residual connection around it.
    """
    blocks = (_BLOCK.match(name) for name in names)
    return any(block is not None and block[1] != "1" for block in blocks)


def rename_regular(name: str) -> str:
    """Maps a name in a regular network to the name in the continual network.

    ``layers.layer2.gcn.bn.weight`` is ``layers.layer2.0.1.gcn.bn.weight``. Names of a continual
    network stay as they are.

    Example::

        from cojax.models.skeleton_checkpoints import rename_regular

        net = co.models.cost_gcn(modified=False)
        variables = co.load_torch(net, "st_gcn.ckpt", rename=rename_regular)
    """
    block = _BLOCK.match(name)
    if block is None or block[1] == "1":
        return name
    branch = 0 if block[2] == "residual" else 1
    return f"layers.layer{block[1]}.0.{branch}.{block[2]}.{name[block.end() :]}"
