"""The peers of a cojax network: the same network in ``continual`` and in plain ``torch.nn``.

:func:`to_continual` and :func:`to_torch_nn` build a peer from the network's own fields and load the
network's variables into it, by name and strictly. A layer is taught to both by a function
registered for its type.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce, singledispatch
from typing import Any, NamedTuple

import continual
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in torch
from torch import Tensor, nn

import cojax as co
from cojax.layers.activation import _Activation
from cojax.layers.norm import _BatchNorm, _InstanceNorm

Functions = Mapping[Callable[..., Any], Callable[..., Any]]


class NoPeer(TypeError):  # noqa: N818 - an answer, not a failure of the program
    """A layer, or an argument of it, has no counterpart in the other library."""


class Options(NamedTuple):
    """What a peer is built with.

    Attributes:
      functions: the torch function for each JAX function in Lambdas and reductions.
      fill_time: whether ``temporal_fill="replicate"`` is computed by the plain ``torch.nn`` peer.
    """

    functions: Functions
    fill_time: bool = False

    def translated(self, fn: Callable[..., Any] | None, where: co.CoModule) -> Any:
        """The torch function for a JAX one.

        Raises:
          NoPeer: if there is none.
        """
        if fn is None:
            return None
        if fn not in self.functions:
            raise NoPeer(f"{type(where).__name__} calls {fn!r}, which functions does not translate")
        return self.functions[fn]


def to_continual(
    net: co.CoModule, variables: Mapping[str, Any], functions: Functions | None = None
) -> Any:
    """The network in ``continual``, with these variables, in eval mode.

    Args:
      net: the network.
      variables: its variables.
      functions: the torch function for each JAX function that the network calls.

    Returns:
      A ``continual`` module with a fresh state.

    Raises:
      NoPeer: if a layer has none; the message names it.
    """
    # continual makes a bare torch.nn layer one of its own when it is added or converted.
    peer = continual.continual(_continual(net, Options(functions or {})))
    return _loaded(peer, co.to_torch(net, variables, delayed_names=True))


def to_torch_nn(
    net: co.CoModule,
    variables: Mapping[str, Any],
    functions: Functions | None = None,
    fill_time: bool = False,
) -> nn.Module:
    """The network in plain ``torch.nn``, with these variables, in eval mode.

    Its forward is the network's ``forward``, over clips ``(B, C, T, *S)``.

    Args:
      net: the network.
      variables: its variables.
      functions: the torch function for each JAX function that the network calls.
      fill_time: whether layers of ``temporal_fill="replicate"`` replicate the first and the last
        frame of their clip, so that the peer equals ``forward_stream`` instead of ``forward``.

    Raises:
      NoPeer: if a layer has none; the message names it.
    """
    peer = _torch(net, Options(functions or {}, fill_time))
    return _loaded(peer, co.to_torch(net, variables))


def _loaded(peer: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    dtypes = {tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        peer = peer.to(dtypes.pop())
    peer.load_state_dict(state_dict, strict=True)
    return peer.eval()


@singledispatch
def _continual(net: co.CoModule, options: Options) -> nn.Module:
    """The module in ``continual`` (or a torch.nn layer that it takes in), without its weights."""
    raise NoPeer(f"{type(net).__name__} has no peer in continual")


@singledispatch
def _torch(net: co.CoModule, options: Options) -> nn.Module:
    """The module in ``torch.nn``, without its weights."""
    raise NoPeer(f"{type(net).__name__} has no peer in torch.nn")


def _both(*kinds: type[co.CoModule]) -> Callable[[Any], Any]:
    """Registers one function for both libraries."""

    def register(function: Any) -> Any:
        for kind in kinds:
            _continual.register(kind)(function)
            _torch.register(kind)(function)
        return function

    return register


def _only(register: Any, *kinds: type[co.CoModule]) -> Callable[[Any], Any]:
    """Registers one function for several types."""

    def registered(function: Any) -> Any:
        for kind in kinds:
            register.register(kind)(function)
        return function

    return registered


# Convolutions.

_CONVOLUTIONS = (co.Conv1d, co.Conv2d, co.Conv3d)


def _conv_arguments(net: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "bias")
    return {name: getattr(net, name) for name in names}


@_only(_continual, *_CONVOLUTIONS)
def _(net: Any, options: Options) -> nn.Module:
    if net.dilation[0] > 1:
        raise NoPeer(f"continual's {type(net).__name__} refuses dilation={net.dilation} in time")
    if any(isinstance(pads, tuple) for pads in net.padding):
        raise NoPeer(f"continual's {type(net).__name__} pads evenly, not by {net.padding}")
    if net.padding_mode not in ("zeros", "replicate"):
        raise NoPeer(f"continual's {type(net).__name__} refuses padding_mode={net.padding_mode!r}")
    return getattr(continual, type(net).__name__)(
        **_conv_arguments(net),
        padding=net.padding,
        padding_mode=net.padding_mode,
        temporal_fill=net.temporal_fill,
    )


class _Padded:
    """Pads a clip before the layer that it is mixed into.

    Attributes:
      pads: what is padded and how, as pairs of ``F.pad``'s ``pad`` and ``mode``.
    """

    pads: Sequence[tuple[tuple[int, ...], str]] = ()

    def forward(self, x: Tensor) -> Tensor:
        for pad, mode in self.pads:
            x = F.pad(x, pad, mode=mode)
        return super().forward(x)  # type: ignore[misc]


class _Conv1d(_Padded, nn.Conv1d):
    pass


class _Conv2d(_Padded, nn.Conv2d):
    pass


class _Conv3d(_Padded, nn.Conv3d):
    pass


_PADDED_CONVOLUTIONS = dict(zip(_CONVOLUTIONS, (_Conv1d, _Conv2d, _Conv3d), strict=True))


def _time_pad(net: Any, front: int, back: int) -> tuple[int, ...]:
    """``F.pad``'s argument, which names the last axis first, for time alone."""
    return (*(0, 0) * net.space, front, back)


def _space_pad(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """``F.pad``'s argument for the spatial axes."""
    return (*(n for pair in reversed(pads) for n in pair), 0, 0)


@_only(_torch, *_CONVOLUTIONS)
def _(net: Any, options: Options) -> nn.Module:
    filled = options.fill_time and net.temporal_fill == "replicate"
    if net.padding_mode == "zeros" and not filled and all(isinstance(p, int) for p in net.padding):
        return getattr(nn, type(net).__name__)(**_conv_arguments(net), padding=net.padding)
    # torch pads evenly, and time in the same mode as space.
    time, *space = (pads if isinstance(pads, tuple) else (pads, pads) for pads in net.padding)
    layer = _PADDED_CONVOLUTIONS[type(net)](**_conv_arguments(net))
    layer.pads = [
        (_space_pad(space), net.padding_mode.replace("zeros", "constant")),
        (_time_pad(net, *time), "replicate" if filled else "constant"),
    ]
    return layer


# Pools.

_AVERAGES = (co.AvgPool1d, co.AvgPool2d, co.AvgPool3d)
_MAXIMA = (co.MaxPool1d, co.MaxPool2d, co.MaxPool3d)
_ADAPTIVE_1D = (co.AdaptiveAvgPool1d, co.AdaptiveMaxPool1d)
_ADAPTIVE_2D = (co.AdaptiveAvgPool2d, co.AdaptiveMaxPool2d)
_ADAPTIVE_3D = (co.AdaptiveAvgPool3d, co.AdaptiveMaxPool3d)


@_only(_continual, *_AVERAGES)
def _(net: Any, options: Options) -> nn.Module:
    arguments = _pool_arguments(net)
    arguments |= {"dilation": net.dilation, "temporal_fill": net.temporal_fill}
    return getattr(continual, type(net).__name__)(
        **arguments, count_include_pad=net.count_include_pad, **_divisor_override(net)
    )


@_only(_continual, *_MAXIMA)
def _(net: Any, options: Options) -> nn.Module:
    return getattr(continual, type(net).__name__)(
        **_pool_arguments(net), dilation=net.dilation, temporal_fill=_max_fill(net)
    )


@_only(_continual, *_ADAPTIVE_2D, *_ADAPTIVE_3D)
def _(net: Any, options: Options) -> nn.Module:
    fill = _max_fill(net) if net.maximum else net.temporal_fill
    sizes = {n: getattr(net, n)[0] for n in ("kernel_size", "stride", "padding", "dilation")}
    return getattr(continual, type(net).__name__)(net.output_size, **sizes, temporal_fill=fill)


@_only(_torch, *_MAXIMA)
def _(net: Any, options: Options) -> nn.Module:
    if net.padding[0] > net.kernel_size[0] // 2:
        # torch takes half of the kernel as padding at most, undilated.
        return _WindowByWindow(net, _fills(net, options))
    layer = partial(getattr(nn, type(net).__name__), dilation=net.dilation)
    return _time_filled(net, options, layer)


@_only(_torch, *_AVERAGES)
def _(net: Any, options: Options) -> nn.Module:
    if net.dilation[0] > 1:
        return _WindowByWindow(net, _fills(net, options))
    counts = {"count_include_pad": net.count_include_pad}
    layer = partial(getattr(nn, type(net).__name__), **counts, **_divisor_override(net))
    return _time_filled(net, options, layer)


@_only(_continual, *_ADAPTIVE_1D)
def _(net: Any, options: Options) -> nn.Module:
    raise NoPeer(f"continual has no {type(net).__name__}")


@_only(_torch, *_ADAPTIVE_1D, *_ADAPTIVE_2D, *_ADAPTIVE_3D)
def _(net: Any, options: Options) -> nn.Module:
    return getattr(nn, type(net).__name__)(net.output_size)


def _pool_arguments(net: Any) -> dict[str, Any]:
    return {n: getattr(net, n) for n in ("kernel_size", "stride", "padding", "ceil_mode")}


def _divisor_override(net: Any) -> dict[str, Any]:
    if net.divisor_override is None:
        return {}
    if not net.space:
        raise NoPeer("AvgPool1d has no divisor_override in torch")
    return {"divisor_override": net.divisor_override}


def _max_fill(net: Any) -> str:
    """What ``continual`` calls the fill that makes a maximum equal torch's."""
    return "neg_inf" if net.temporal_fill == "zeros" else net.temporal_fill


def _fills(net: Any, options: Options) -> bool:
    return options.fill_time and net.temporal_fill == "replicate"


def _time_filled(net: Any, options: Options, layer: Callable[..., nn.Module]) -> nn.Module:
    """The pool, behind a replicate padding of time where that is asked for."""
    arguments = _pool_arguments(net)
    if not _fills(net, options):
        return layer(**arguments)
    if net.ceil_mode and net.space:
        raise NoPeer(
            f"{type(net).__name__} with ceil_mode rounds space up, and time down behind its fill"
        )
    arguments |= {"padding": (0, *net.padding[1:]), "ceil_mode": False}
    pad = _time_pad(net, net.timing.padding, net.timing.end)
    return nn.Sequential(_Function(lambda x: F.pad(x, pad, mode="replicate")), layer(**arguments))


class _WindowByWindow(nn.Module):
    """A pool of dilated time that torch has not got, by its definition: window by window."""

    def __init__(self, net: Any, fills: bool):
        super().__init__()
        self.net, self.fills = net, fills
        self.space = nn.Identity()
        if net.space:
            kernel, stride, dilation = (
                (1, *getattr(net, name)[1:]) for name in ("kernel_size", "stride", "dilation")
            )
            arguments: dict[str, Any] = {"dilation": dilation}
            if not net.maximum:
                arguments = {"count_include_pad": net.count_include_pad}
                arguments |= {} if net.divisor_override is None else {"divisor_override": 1}
            self.space = getattr(nn, type(net).__name__)(
                kernel, stride, (0, *net.padding[1:]), ceil_mode=net.ceil_mode, **arguments
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.space(x)
        return torch.stack([self.pooled(x, k) for k in range(self.net.timing.n_out(x.shape[2]))], 2)

    def pooled(self, x: Tensor, window: int) -> Tensor:
        """The maximum or the average of the window of this number."""
        net, steps = self.net, x.shape[2]
        start = window * net.stride[0] - net.padding[0]
        taps = [start + net.dilation[0] * tap for tap in range(net.kernel_size[0])]
        if self.fills:
            taps = [min(max(tap, 0), steps - 1) for tap in taps]
        seen = [tap for tap in taps if 0 <= tap < steps]
        if net.maximum:
            return x[:, :, seen].amax(2) if seen else torch.full_like(x[:, :, 0], -torch.inf)
        padded = [tap for tap in taps if -net.padding[0] <= tap < steps + net.padding[0]]
        counted = padded if net.count_include_pad else seen
        return x[:, :, seen].sum(2) / (net.divisor_override or len(counted))


# Layers without memory.


@_only(_continual, co.Linear)
def _(net: co.Linear, options: Options) -> nn.Module:
    return continual.Linear(
        net.in_features, net.out_features, net.bias, channel_dim=net.channel_dim
    )


@_only(_torch, co.Linear)
def _(net: co.Linear, options: Options) -> nn.Module:
    return _along(net, nn.Linear(net.in_features, net.out_features, net.bias))


def _along(net: Any, layer: nn.Module) -> nn.Module:
    """A layer of the last axis, of ``net.channel_dim`` instead."""
    last = layer.forward
    if net.channel_dim != -1:
        layer.forward = lambda x: last(x.swapaxes(net.channel_dim, -1)).swapaxes(
            net.channel_dim, -1
        )
    return layer


def _in_steps(net: Any, layer: nn.Module) -> nn.Module:
    """A layer that sees each step by itself, time folded into the batch, where ``net.per_step``."""
    together = layer.forward

    def forward(x: Tensor) -> Tensor:
        steps = x.swapaxes(1, 2)
        y = together(steps.flatten(0, 1))
        return y.unflatten(0, steps.shape[:2]).swapaxes(1, 2)

    if net.per_step:
        layer.forward = forward
    return layer


def _namesake(net: co.CoModule, kind: str | None = None) -> nn.Module:
    """The layer of this name, or another, and these arguments, less those torch has not got."""
    ours = ("parent", "name", "param_dtype", "negative_slope_init", "channel_dim", "per_step")
    names = [field.name for field in dataclasses.fields(net) if field.name not in ours]
    return getattr(nn, kind or type(net).__name__)(**{name: getattr(net, name) for name in names})


@_both(_Activation, _BatchNorm, co.Dropout)
def _(net: co.CoModule, options: Options) -> nn.Module:
    return _namesake(net)


@_only(_continual, co.Dropout1d)
def _(net: co.Dropout1d, options: Options) -> nn.Module:
    raise NoPeer("continual does not take in torch's Dropout1d")


@_only(_torch, co.GroupNorm)
def _(net: co.GroupNorm, options: Options) -> nn.Module:
    return _in_steps(net, _namesake(net))


@_only(_torch, co.LayerNorm)
def _(net: co.LayerNorm, options: Options) -> nn.Module:
    return _in_steps(net, _along(net, _namesake(net)))


@_only(_torch, _InstanceNorm)
def _(net: Any, options: Options) -> nn.Module:
    return _in_steps(net, _namesake(net, f"InstanceNorm{net.space + (not net.per_step)}d"))


@_only(_continual, co.GroupNorm, co.LayerNorm, _InstanceNorm)
def _(net: Any, options: Options) -> nn.Module:
    if net.per_step:
        raise NoPeer(f"continual's norms know no per_step, asked of {type(net).__name__}")
    if isinstance(net, co.LayerNorm) and net.channel_dim != -1:
        raise NoPeer(f"torch's LayerNorm knows no channel_dim={net.channel_dim}")
    if isinstance(net, _InstanceNorm) and not (net.affine and net.track_running_stats):
        raise NoPeer(
            f"continual refuses {type(net).__name__} unless affine and with running statistics"
        )
    return _namesake(net)


# Recurrent layers.

_RECURRENT = (co.RNN, co.LSTM, co.GRU)


def _recurrent_arguments(net: Any) -> dict[str, Any]:
    names = ["input_size", "hidden_size", "num_layers", "bias", "dropout"]
    names += {co.RNN: ["nonlinearity"], co.LSTM: ["proj_size"], co.GRU: []}[type(net)]
    return {name: getattr(net, name) for name in names}


@_only(_continual, *_RECURRENT)
def _(net: Any, options: Options) -> nn.Module:
    return getattr(continual, type(net).__name__)(**_recurrent_arguments(net))


class _OutputAlone:
    """Takes and gives clips ``(B, C, T)``, and keeps the hidden state to itself."""

    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x.swapaxes(1, 2))  # type: ignore[misc]
        return output.swapaxes(1, 2)


class _RNN(_OutputAlone, nn.RNN):
    pass


class _LSTM(_OutputAlone, nn.LSTM):
    pass


class _GRU(_OutputAlone, nn.GRU):
    pass


@_only(_torch, *_RECURRENT)
def _(net: Any, options: Options) -> nn.Module:
    layer = dict(zip(_RECURRENT, (_RNN, _LSTM, _GRU), strict=True))[type(net)]
    return layer(**_recurrent_arguments(net), batch_first=True)


# Functions and constants.


class _Function(nn.Module):
    """A function as a module, of one clip or of a sequence of them."""

    def __init__(self, fn: Callable[[Any], Any]):
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return self.fn(x)


@_only(_continual, co.Lambda)
def _(net: co.Lambda, options: Options) -> nn.Module:
    return continual.Lambda(
        options.translated(net.fn, net),
        forward_only_fn=options.translated(net.forward_only_fn, net),
        forward_step_only_fn=options.translated(net.forward_step_only_fn, net),
        forward_steps_only_fn=options.translated(net.forward_steps_only_fn, net),
        takes_time=net.takes_time,
    )


@_only(_torch, co.Lambda)
def _(net: co.Lambda, options: Options) -> nn.Module:
    if net.forward_only_fn is not None:
        return _Function(options.translated(net.forward_only_fn, net))
    fn = options.translated(net.fn, net)
    if net.takes_time:
        return _Function(fn)
    return _Function(lambda x: torch.stack([fn(x_t) for x_t in x.unbind(2)], 2))


@_only(_continual, co.Identity)
def _(net: co.Identity, options: Options) -> nn.Module:
    return continual.Identity()


@_only(_torch, co.Identity)
def _(net: co.Identity, options: Options) -> nn.Module:
    return nn.Identity()


def _constant(value: Any) -> Any:
    """A number, or a tensor where the constant has axes."""
    array = np.asarray(value)
    return torch.from_numpy(array.copy()) if array.ndim else array.item()


@_only(_continual, co.Add)
def _(net: co.Add, options: Options) -> nn.Module:
    return continual.Add(_constant(net.constant))


@_only(_continual, co.Multiply)
def _(net: co.Multiply, options: Options) -> nn.Module:
    return continual.Multiply(_constant(net.factor))


@_only(_continual, co.Constant)
def _(net: co.Constant, options: Options) -> nn.Module:
    return continual.Constant(_constant(net.constant))


@_only(_torch, co.Add)
def _(net: co.Add, options: Options) -> nn.Module:
    constant = _constant(net.constant)
    return _Function(lambda x: x + constant)


@_only(_torch, co.Multiply)
def _(net: co.Multiply, options: Options) -> nn.Module:
    factor = _constant(net.factor)
    return _Function(lambda x: x * factor)


@_only(_torch, co.Constant)
def _(net: co.Constant, options: Options) -> nn.Module:
    constant = _constant(net.constant)
    return _Function(lambda x: torch.ones_like(x) * constant)


@_only(_continual, co.Reshape)
def _(net: co.Reshape, options: Options) -> nn.Module:
    return continual.Reshape(net.shape, contiguous=net.contiguous)


@_only(_torch, co.Reshape)
def _(net: co.Reshape, options: Options) -> nn.Module:
    return _Function(lambda x: torch.stack([x_t.reshape(net.shape) for x_t in x.unbind(2)], 2))


# Delays.


def _crop(net: co.Delay) -> tuple[int, int]:
    """The steps that ``forward`` crops in front and behind."""
    timing = net.timing
    return -timing.padding, net.steps - timing.end


@_only(_continual, co.Delay)
def _(net: co.Delay, options: Options) -> nn.Module:
    front, back = _crop(net)
    if net.steps == back == 0:
        return continual.Skip(front) if front else continual.Delay(0)
    shrinks = {(0, 0): False, (net.steps, net.steps): True, (0, net.steps): "lagging"}
    if (front, back) not in shrinks:
        raise NoPeer(f"continual's Delay({net.steps}) cannot crop {front} and {back} steps")
    return continual.Delay(
        net.steps, temporal_fill=net.temporal_fill, auto_shrink=shrinks[front, back]
    )


@_only(_torch, co.Delay)
def _(net: co.Delay, options: Options) -> nn.Module:
    front, back = _crop(net)
    return _Function(lambda x: x[:, :, front : x.shape[2] - back])


@_only(_continual, co.Skip)
def _(net: co.Skip, options: Options) -> nn.Module:
    return continual.Skip(net.steps)


@_only(_torch, co.Skip)
def _(net: co.Skip, options: Options) -> nn.Module:
    return _Function(lambda x: x[:, :, net.steps :])


# Combinators.


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
    """Branches over one clip, reduced."""

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


@_only(_continual, co.Sequential)
def _(net: co.Sequential, options: Options) -> nn.Module:
    return continual.Sequential(_children(net, options, _continual))


@_only(_torch, co.Sequential)
def _(net: co.Sequential, options: Options) -> nn.Module:
    return nn.Sequential(_children(net, options, _torch))


@_only(_continual, co.Broadcast)
def _(net: co.Broadcast, options: Options) -> nn.Module:
    return continual.Broadcast(net.num_streams)


@_only(_torch, co.Broadcast)
def _(net: co.Broadcast, options: Options) -> nn.Module:
    return _Function(lambda x: (x,) * net.num_streams)


def _side_by_side(net: co.CoModule, options: Options) -> "OrderedDict[str, nn.Module]":
    """Branches for ``continual``, whose containers of branches know its own modules only."""
    branches = _children(net, options, _continual)
    return OrderedDict((name, continual.continual(m)) for name, m in branches.items())


def _auto_delay(net: Any) -> bool:
    """Whether ``continual`` is to align the branches: only where there is something to align.

    It would delay a residual that is cropped in front once more.
    """
    return any(net.shifts().values())


@_only(_continual, co.Parallel)
def _(net: co.Parallel, options: Options) -> nn.Module:
    return continual.Parallel(_side_by_side(net, options), auto_delay=_auto_delay(net))


@_only(_torch, co.Parallel)
def _(net: co.Parallel, options: Options) -> nn.Module:
    return _Branches(_children(net, options, _torch))


@_only(_continual, co.ParallelDispatch)
def _(net: co.ParallelDispatch, options: Options) -> nn.Module:
    return continual.ParallelDispatch(net.dispatch_mapping)


@_only(_torch, co.ParallelDispatch)
def _(net: co.ParallelDispatch, options: Options) -> nn.Module:
    def dispatched(streams: Sequence[Any], mapping: Any) -> Any:
        if isinstance(mapping, int):
            return streams[mapping]
        return tuple(dispatched(streams, each) for each in mapping)

    return _Function(lambda streams: dispatched(streams, net.dispatch_mapping))


@_only(_continual, co.Reduce)
def _(net: co.Reduce, options: Options) -> nn.Module:
    return continual.Reduce(_reduction_name(net, options))


@_only(_torch, co.Reduce)
def _(net: co.Reduce, options: Options) -> nn.Module:
    return _Function(_reduction(net, options))


@_only(_continual, co.BroadcastReduce)
def _(net: co.BroadcastReduce, options: Options) -> nn.Module:
    return continual.BroadcastReduce(
        _side_by_side(net, options),
        reduce=_reduction_name(net, options),
        auto_delay=_auto_delay(net),
    )


@_only(_torch, co.BroadcastReduce)
def _(net: co.BroadcastReduce, options: Options) -> nn.Module:
    return _BroadcastReduce(_children(net, options, _torch), _reduction(net, options))


def _reduction_name(net: Any, options: Options) -> Any:
    return options.translated(net.reduce, net) if callable(net.reduce) else net.reduce


def _reduction(net: Any, options: Options) -> Callable[[Sequence[Tensor]], Tensor]:
    name = _reduction_name(net, options)
    return name if callable(name) else _REDUCTIONS[name]


def _decide(net: co.Conditional, x: Tensor, train: bool) -> bool:
    """The choice of a predicate that does not depend on the data.

    Raises:
      NoPeer: for any other predicate: it computes with JAX arrays.
    """
    choice = net.predicate(net, x, train)
    if not isinstance(choice, bool):
        raise NoPeer(f"Conditional has a peer where its predicate gives a bool, got {choice!r}")
    return choice


@_only(_continual, co.Conditional)
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


@_only(_torch, co.Conditional)
def _(net: co.Conditional, options: Options) -> nn.Module:
    return _Conditional(_children(net, options, _torch), net)
