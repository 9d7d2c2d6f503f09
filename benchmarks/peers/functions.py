"""Torch versions of the functions that the networks of the zoo call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import cojax as co
from cojax.models.skeleton import ChannelsToJoints, _mean_of_joints
from cojax.models.video import _mean_over_space
from cojax.models.x3d import _mean_of_frame
from cojax.module import walk

Functions = Mapping[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class OfSpace:
    """A function of the spatial axes, which is the same for a clip and for each of its steps."""

    fn: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.fn(x)


_OF_VIDEO = {
    _mean_of_frame: OfSpace(lambda x: x.mean((-2, -1), keepdim=True)),
    _mean_over_space: OfSpace(lambda x: x.mean((-2, -1))),
}


def functions_within(net: co.CoModule) -> dict[Any, Any]:
    """The torch functions for the JAX functions of the zoo that the network may contain."""
    functions: dict[Any, Any] = dict(_OF_VIDEO)
    for _, module in walk(net):
        if isinstance(module, ChannelsToJoints):
            functions[_mean_of_joints] = _mean_of_persons(module.persons)
    return functions


def _mean_of_persons(persons: int) -> Callable[[Tensor], Tensor]:
    """The mean over joints and over persons, which the peers fold into the batch."""
    return lambda x: x.unflatten(0, (-1, persons)).mean((1, -1))
