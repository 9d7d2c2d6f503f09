"""Modules made of modules."""

from cojax.combinators.conditional import Conditional
from cojax.combinators.parallel import (
    Broadcast,
    BroadcastReduce,
    Parallel,
    ParallelDispatch,
    Reduce,
)
from cojax.combinators.residual import Residual
from cojax.combinators.sequential import Sequential

__all__ = [
    "Broadcast",
    "BroadcastReduce",
    "Conditional",
    "Parallel",
    "ParallelDispatch",
    "Reduce",
    "Residual",
    "Sequential",
]
