"""The peers of a cojax network: the same network in ``continual`` and in plain ``torch.nn``.

:func:`to_continual` and :func:`to_torch_nn` build a peer from the network's own fields and load the
network's variables into it, by name and strictly. A layer is taught to both by a function
registered for its type, in the modules imported here.
"""

from benchmarks.peers import (  # noqa: F401 - they register
    attention,
    combinators,
    joints,
    layers,
    windows,
)
from benchmarks.peers.building import NoPeer, to_continual, to_torch_nn
from benchmarks.peers.combinators import overwriting

__all__ = ["NoPeer", "overwriting", "to_continual", "to_torch_nn"]
