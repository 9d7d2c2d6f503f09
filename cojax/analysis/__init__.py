"""The cost, state and outputs of a network, derived from its shapes and timing alone."""

from cojax.analysis.macs import Macs, register_macs

__all__ = ["Macs", "register_macs"]
