"""Continual Inference Networks in JAX: trained on clips, run on streams, one step at a time."""

from cojax.combinators import *  # noqa: F403
from cojax.combinators import __all__ as _combinators
from cojax.layers import *  # noqa: F403
from cojax.layers import __all__ as _layers
from cojax.module import CoModule, Frame, InputError
from cojax.timing import Timing

__version__ = "0.1.0"

__all__ = [*_combinators, *_layers, "CoModule", "Frame", "InputError", "Timing"]
