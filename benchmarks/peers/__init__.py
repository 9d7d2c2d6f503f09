"""The peers of a cojax network: the same network in ``continual`` and in plain ``torch.nn``.

:func:`to_continual` and :func:`to_torch_nn` build a peer from the fields of the network and load
its variables, strictly and by name. How the counterparts of a layer are built is registered for its
type, in the modules that are imported here.
"""

from benchmarks.peers import (  # noqa: F401 - imported for what they register
    attention,
    combinators,
    joints,
    layers,
    windows,
)
from benchmarks.peers.building import NoPeer, to_continual, to_torch_nn
from benchmarks.peers.combinators import overwriting

__all__ = ["NoPeer", "overwriting", "to_continual", "to_torch_nn"]
