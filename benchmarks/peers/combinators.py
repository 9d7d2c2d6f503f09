"""Modules that consist of other modules."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import continual
import torch
from torch import Tensor, nn

import cojax as co
from benchmarks.peers.building import Function, NoPeer, Options, in_continual, in_torch, only


def _children(
    net: co.CoModule, options: Options, build: Callable[..., nn.Module]
) -> "OrderedDict[str, nn.Module]":
    return OrderedDict((name, build(child, options)) for name, child in net.children().items())


class _Branches(nn.Module):
    """Modules side by side, under their own names."""

    def __init__(self, branches: Mapping[str, nn.Module]):
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, streams: Sequence[Any]) -> Any:
        return tuple(m(x) for m, x in zip(self.children(), streams, strict=True))


class _BroadcastReduce(_Branches):
    """Branches over one clip, whose outputs are reduced."""

    def __init__(self, branches: Mapping[str, nn.Module], reduction: Callable[..., Tensor]):
        super().__init__(branches)
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction([branch(x) for branch in self.children()])


_REDUCTIONS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": partial(reduce, torch.add),
    "mul": partial(reduce, torch.mul),
    "max": partial(reduce, torch.maximum),
    "concat": partial(torch.cat, dim=1),
}


@only(in_continual, co.Sequential)
def _(net: co.Sequential, options: Options) -> nn.Module:
    return continual.Sequential(_children(net, options, in_continual))


@only(in_torch, co.Sequential)
def _(net: co.Sequential, options: Options) -> nn.Module:
    return nn.Sequential(_children(net, options, in_torch))


@only(in_continual, co.Broadcast)
def _(net: co.Broadcast, options: Options) -> nn.Module:
    return continual.Broadcast(net.num_streams)


@only(in_torch, co.Broadcast)
def _(net: co.Broadcast, options: Options) -> nn.Module:
    return Function(lambda x: (x,) * net.num_streams)


def _side_by_side(net: co.CoModule, options: Options) -> "OrderedDict[str, nn.Module]":
    """Branches for ``continual``, whose containers of branches take only its own modules."""
    branches = _children(net, options, in_continual)
    return OrderedDict((name, continual.continual(m)) for name, m in branches.items())


def _auto_delay(net: Any) -> bool:
    """Whether ``continual`` is to align the branches: only if there is something to align.

    Otherwise, a residual that is cropped at the start would be delayed a second time.
    """
    return any(net.shifts().values())


@only(in_continual, co.Parallel)
def _(net: co.Parallel, options: Options) -> nn.Module:
    return continual.Parallel(_side_by_side(net, options), auto_delay=_auto_delay(net))


@only(in_torch, co.Parallel)
def _(net: co.Parallel, options: Options) -> nn.Module:
    return _Branches(_children(net, options, in_torch))


@only(in_continual, co.ParallelDispatch)
def _(net: co.ParallelDispatch, options: Options) -> nn.Module:
    return continual.ParallelDispatch(net.dispatch_mapping)


@only(in_torch, co.ParallelDispatch)
def _(net: co.ParallelDispatch, options: Options) -> nn.Module:
    def dispatched(streams: Sequence[Any], mapping: Any) -> Any:
        if isinstance(mapping, int):
            return streams[mapping]
        return tuple(dispatched(streams, each) for each in mapping)

    return Function(lambda streams: dispatched(streams, net.dispatch_mapping))


@only(in_continual, co.Reduce)
def _(net: co.Reduce, options: Options) -> nn.Module:
    return continual.Reduce(_reduction_name(net, options))


@only(in_torch, co.Reduce)
def _(net: co.Reduce, options: Options) -> nn.Module:
    return Function(_reduction(net, options))


@only(in_continual, co.BroadcastReduce)
def _(net: co.BroadcastReduce, options: Options) -> nn.Module:
    branches, aligns = _side_by_side(net, options), _auto_delay(net)
    shifts, stride = net.shifts(), net.timing.stride
    whole = not any(shift % stride for shift in shifts.values())
    if stride > 1 and aligns and whole and options.mends(_LATE):
        aligns = False
        for name, shift in shifts.items():
            if shift:
                late = continual.Delay(shift // stride)
                branches[name] = continual.Sequential(branches[name], late)
    return continual.BroadcastReduce(
        branches, reduce=_reduction_name(net, options), auto_delay=aligns
    )


_LATE = "continual would hold strided branches back by as many outputs as inputs; here it does not"


@only(in_torch, co.BroadcastReduce)
def _(net: co.BroadcastReduce, options: Options) -> nn.Module:
    return _BroadcastReduce(_children(net, options, in_torch), _reduction(net, options))


def _reduction_name(net: Any, options: Options) -> Any:
    return options.translated(net.reduce, net) if callable(net.reduce) else net.reduce


def _reduction(net: Any, options: Options) -> Callable[[Sequence[Tensor]], Tensor]:
    name = _reduction_name(net, options)
    return name if callable(name) else _REDUCTIONS[name]


def _decide(net: co.Conditional, x: Tensor, train: bool) -> bool:
    """The choice of a predicate that does not depend on the data.

    Raises:
      NoPeer: for any other predicate, since that computes with JAX arrays.
    """
    choice = net.predicate(net, x, train)
    if not isinstance(choice, bool):
        raise NoPeer(f"Conditional has a peer where its predicate gives a bool, got {choice!r}")
    return choice


@only(in_continual, co.Conditional)
def _(net: co.Conditional, options: Options) -> nn.Module:
    branches = _side_by_side(net, options)
    return continual.Conditional(
        lambda module, x: _decide(net, x, module.training), *branches.values()
    )


class _Conditional(_Branches):
    """One branch or the other."""

    def __init__(self, branches: Mapping[str, nn.Module], net: co.Conditional):
        super().__init__(branches)
        self.net = net

    def forward(self, x: Any) -> Any:
        first, second = self.children()
        return (first if _decide(self.net, x, self.training) else second)(x)


@only(in_torch, co.Conditional)
def _(net: co.Conditional, options: Options) -> nn.Module:
    return _Conditional(_children(net, options, in_torch), net)


def overwriting(peer: nn.Module) -> nn.Module:
    """The peer, with ReLUs that overwrite inputs that only they read, as in published code."""
    for module in peer.modules():
        if type(module) in (nn.Sequential, continual.Sequential):
            for before, after in pairwise(module):
                if isinstance(after, nn.ReLU) and isinstance(before, _NEW):
                    after.inplace = True
    return peer


# Modules whose outputs are new arrays; containers of branches sum or multiply theirs.
_NEW = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.conv._ConvNd,
    continual.BroadcastReduce,
    _BroadcastReduce,
)
