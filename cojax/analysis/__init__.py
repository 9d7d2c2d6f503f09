"""What a network costs, keeps and answers, known from its shapes and timing alone."""

from cojax.analysis.macs import Macs, register_macs

__all__ = ["Macs", "register_macs"]
