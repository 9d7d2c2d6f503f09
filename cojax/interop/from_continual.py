"""Builders for modules of ``continual``. Torch layers among them are converted as usual."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import continual
import torch
from continual import closure, container

import cojax as co
from cojax.interop.from_torch import RECURRENT, Kind, conv, like, linear, recurrent, sequential
from cojax.interop.torch import array_of

_FUNCTIONS: dict[Any, Kind] = {
    closure._unity: co.Identity,
    torch.zeros_like: co.Zero,
    torch.ones_like: co.One,
}
_REDUCTIONS = {
    container.reduce_sum: "sum",
    container.reduce_concat: "concat",
    container.reduce_mul: "mul",
    container.reduce_max: "max",
}
# What may return its input, or a view of it.
_HANDS_ON = (
    torch.nn.Identity,
    torch.nn.Flatten,
    torch.nn.modules.dropout._DropoutNd,
    continual.Delay,
    continual.Skip,
    continual.Reshape,
    continual.Broadcast,
    continual.ParallelDispatch,
)
_POOL = "kernel_size stride padding ceil_mode dilation"


def _conv(kind: Kind, module: Any) -> co.CoModule:
    return conv(kind, module, temporal_fill=module.t_padding_mode)


def _pool(kind: Kind, names: str, module: Any) -> co.CoModule:
    return kind(**{name: getattr(module, name) for name in names.split()}, **_fill(module))


def _adaptive_pool(kind: Kind, module: Any) -> co.CoModule:
    time = {name: getattr(module, name)[0] for name in ("kernel_size", "stride", "padding")}
    return kind(module.output_size, dilation=module.dilation[0], **time, **_fill(module))


def _fill(module: Any) -> dict[str, str]:
    """The argument ``temporal_fill`` of a pool, if it is not the default.

    A maximum starts from minus infinity, even where it starts from zero in ``continual``, so that a
    stream equals its clip.
    """
    return {"temporal_fill": "replicate"} if module._make_padding is torch.clone else {}


def _linear(module: Any) -> co.CoModule:
    return linear(module, channel_dim=module.channel_dim)


def _delay(module: Any) -> co.CoModule:
    return co.Delay(module.delay, auto_shrink=module.auto_shrink)


def _lambda(module: Any, *, convert: Kind) -> co.CoModule:
    fn = module.fn
    by_mode = ("forward_only_fn", "forward_step_only_fn", "forward_steps_only_fn")
    if any(getattr(module, name) is not None for name in by_mode):
        raise ValueError(
            "computes by other functions in some modes: build co.Lambda(...) of functions of JAX"
        )
    if isinstance(fn, torch.nn.Module):
        return co.Sequential({"fn": convert(fn, "fn", each_step=not module.takes_time)})
    if fn in _FUNCTIONS:
        return _FUNCTIONS[fn]()
    if isinstance(fn, partial) and fn.func is closure._add:
        return co.Add(_constant(fn.keywords["constant"]))
    if isinstance(fn, partial) and fn.func is closure._multiply:
        return co.Multiply(_constant(fn.keywords["factor"]))
    return convert(fn, "fn")


def _constant(value: Any) -> Any:
    return array_of(value) if isinstance(value, torch.Tensor) else value


def _reduction(module: Any) -> str:
    function = getattr(module.reduce, "__wrapped__", module.reduce)
    if function not in _REDUCTIONS:
        raise ValueError(f"reduces by a function of torch, {function.__name__}, not by its name")
    return _REDUCTIONS[function]


def _branches(kind: Kind, module: Any, *, convert: Kind) -> co.CoModule:
    branches = {name: convert(part, name) for name, part in module._modules.items()}
    overwriting, _ = _overwriting(module)
    if overwriting:
        raise ValueError(
            f"has branches that overwrite their input, which others may read: {overwriting} work "
            "in place; set inplace=False there, if it was trained so"
        )
    return kind(branches)


def _overwriting(module: Any, name: str = "") -> tuple[list[str], bool]:
    """The parts that overwrite a module's input, and whether its output may be the input itself."""
    if getattr(module, "inplace", False):
        return [name], True
    if isinstance(module, continual.Lambda) and not isinstance(module.fn, torch.nn.Module):
        return [], module.fn is closure._unity
    if not isinstance(module, torch.nn.Sequential | continual.Lambda):
        return [], isinstance(module, _HANDS_ON)
    in_parallel = isinstance(module, continual.Parallel | continual.BroadcastReduce)
    found, handed_on = [], []
    for key, part in module._modules.items():
        overwriting, itself = _overwriting(part, f"{name}.{key}".removeprefix("."))
        found += overwriting
        handed_on.append(itself)
        if not (itself or in_parallel):
            break
    copied = isinstance(module, continual.BroadcastReduce) or not getattr(
        module, "takes_time", True
    )
    return found, not copied and (any if in_parallel else all)(handed_on)


def _broadcast_reduce(module: Any, *, convert: Kind) -> co.CoModule:
    return _branches(
        partial(co.BroadcastReduce, reduce=_reduction(module)), module, convert=convert
    )


def _reduce(module: Any) -> co.CoModule:
    return co.Reduce(_reduction(module))


def _conditional(module: Any) -> co.CoModule:
    raise ValueError(
        "chooses by a function of torch: build co.Conditional(predicate, ...), whose predicate is "
        "one of JAX"
    )


_DIMENSIONS = ("1d", "2d", "3d")

BUILDERS: dict[Hashable, Callable[..., Any]] = {
    continual.Sequential: sequential,
    continual.Broadcast: like(co.Broadcast, "num_streams"),
    continual.Parallel: partial(_branches, co.Parallel),
    continual.ParallelDispatch: like(co.ParallelDispatch, "dispatch_mapping"),
    continual.Reduce: _reduce,
    continual.BroadcastReduce: _broadcast_reduce,
    continual.Conditional: _conditional,
    continual.Delay: _delay,
    continual.Skip: like(co.Skip, "steps"),
    continual.Reshape: like(co.Reshape, "shape contiguous"),
    continual.Lambda: _lambda,
    continual.Linear: _linear,
    **{
        getattr(continual, f"Conv{d}"): partial(_conv, getattr(co, f"Conv{d}")) for d in _DIMENSIONS
    },
    continual.AvgPool1d: partial(_pool, co.AvgPool1d, f"{_POOL} count_include_pad"),
    continual.AvgPool2d: partial(
        _pool, co.AvgPool2d, f"{_POOL} count_include_pad divisor_override"
    ),
    continual.AvgPool3d: partial(
        _pool, co.AvgPool3d, f"{_POOL} count_include_pad divisor_override"
    ),
    **{
        getattr(continual, f"MaxPool{d}"): partial(_pool, getattr(co, f"MaxPool{d}"), _POOL)
        for d in _DIMENSIONS
    },
    **{
        getattr(continual, f"{family}{d}"): partial(_adaptive_pool, getattr(co, f"{family}{d}"))
        for family in ("AdaptiveAvgPool", "AdaptiveMaxPool")
        for d in _DIMENSIONS[1:]
    },
    **{
        getattr(continual, name): partial(recurrent, getattr(co, name), own)
        for name, own in RECURRENT.items()
    },
}
