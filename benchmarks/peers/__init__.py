"""The peers of a cojax network: the same network in ``continual`` and in plain ``torch.nn``.

:func:`to_continual` and :func:`to_torch_nn` build a peer from the network's own fields and load the
network's variables into it, by name and strictly. A layer is taught to both by a function
registered for its type, in the modules imported here.
"""

from benchmarks.peers import attention, combinators, layers, windows  # noqa: F401 - they register
from benchmarks.peers.building import NoPeer, to_continual, to_torch_nn

__all__ = ["NoPeer", "to_continual", "to_torch_nn"]
