"""Layers other than windows: layers that are local in time, recurrent layers and delays."""

import dataclasses
import inspect
from typing import Any

import continual
import numpy as np
import torch
from torch import Tensor, nn

import cojax as co
from benchmarks.peers.building import Function, NoPeer, Options, both, in_continual, in_torch, only
from benchmarks.peers.functions import OfSpace
from cojax.layers.activation import _Activation
from cojax.layers.norm import _BatchNorm, _InstanceNorm


@only(in_continual, co.Linear)
def _(net: co.Linear, options: Options) -> nn.Module:
    return continual.Linear(
        net.in_features, net.out_features, net.bias, channel_dim=net.channel_dim
    )


@only(in_torch, co.Linear)
def _(net: co.Linear, options: Options) -> nn.Module:
    return _along(net, nn.Linear(net.in_features, net.out_features, net.bias))


def _along(net: Any, layer: nn.Module) -> nn.Module:
    """A layer of the last axis, applied to the axis ``net.channel_dim`` instead."""
    last = layer.forward
    if net.channel_dim != -1:
        layer.forward = lambda x: last(x.swapaxes(net.channel_dim, -1)).swapaxes(
            net.channel_dim, -1
        )
    return layer


def in_steps(net: Any, layer: nn.Module) -> nn.Module:
    """The layer; if ``net.per_step``, applied to each step by itself, with time in the batch."""
    together = layer.forward

    def forward(x: Tensor) -> Tensor:
        steps = x.swapaxes(1, 2)
        y = together(steps.flatten(0, 1))
        return y.unflatten(0, steps.shape[:2]).swapaxes(1, 2)

    if net.per_step:
        layer.forward = forward
    return layer


def _namesake(net: co.CoModule, kind: str | None = None) -> nn.Module:
    """The torch layer with the net's name, or ``kind``, and those of its arguments torch has."""
    linen = {field.name for field in dataclasses.fields(co.CoModule)}
    ours = linen | {"param_dtype", "scale_init", "negative_slope_init", "channel_dim", "per_step"}
    names = [field.name for field in dataclasses.fields(net) if field.name not in ours]
    kind = kind or type(net).__name__
    if not hasattr(nn, kind):
        raise NoPeer(f"torch has no {kind}")
    layer = getattr(nn, kind)
    arguments = {name: getattr(net, name) for name in names}
    # Batch norms take no bias=False in versions of torch below 2.12.
    if arguments.get("bias") and "bias" not in inspect.signature(layer).parameters:
        del arguments["bias"]
    return layer(**arguments)


@both(_Activation, _BatchNorm, co.Dropout)
def _(net: co.CoModule, options: Options) -> nn.Module:
    return _namesake(net)


@only(in_continual, co.Dropout1d)
def _(net: co.Dropout1d, options: Options) -> nn.Module:
    raise NoPeer("continual does not take in torch's Dropout1d")


@only(in_torch, co.GroupNorm)
def _(net: co.GroupNorm, options: Options) -> nn.Module:
    return in_steps(net, _namesake(net))


@only(in_torch, co.LayerNorm)
def _(net: co.LayerNorm, options: Options) -> nn.Module:
    return in_steps(net, _along(net, _namesake(net)))


@only(in_torch, _InstanceNorm)
def _(net: Any, options: Options) -> nn.Module:
    return in_steps(net, _namesake(net, f"InstanceNorm{net.space + (not net.per_step)}d"))


_ACROSS = "torch's LayerNorm is of the last axis: that of channels is transposed there"


@only(in_continual, co.GroupNorm, co.LayerNorm, _InstanceNorm)
def _(net: Any, options: Options) -> nn.Module:
    if net.per_step:
        raise NoPeer(f"continual's norms know no per_step, asked of {type(net).__name__}")
    if isinstance(net, co.LayerNorm) and net.channel_dim == 1 and options.mends(_ACROSS):
        return _along(net, _namesake(net))
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


@only(in_continual, *_RECURRENT)
def _(net: Any, options: Options) -> nn.Module:
    return getattr(continual, type(net).__name__)(**_recurrent_arguments(net))


class _OutputAlone:
    """Maps clips ``(B, C, T)`` to clips, without returning the hidden state."""

    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x.swapaxes(1, 2))  # type: ignore[misc]  # of the layer it is mixed into
        return output.swapaxes(1, 2)


class _RNN(_OutputAlone, nn.RNN):
    pass


class _LSTM(_OutputAlone, nn.LSTM):
    pass


class _GRU(_OutputAlone, nn.GRU):
    pass


@only(in_torch, *_RECURRENT)
def _(net: Any, options: Options) -> nn.Module:
    layer = dict(zip(_RECURRENT, (_RNN, _LSTM, _GRU), strict=True))[type(net)]
    return layer(**_recurrent_arguments(net), batch_first=True)


# Functions and constants.


@only(in_continual, co.Lambda)
def _(net: co.Lambda, options: Options) -> nn.Module:
    return continual.Lambda(
        options.translated(net.fn, net),
        forward_only_fn=options.translated(net.forward_only_fn, net),
        forward_step_only_fn=options.translated(net.forward_step_only_fn, net),
        forward_steps_only_fn=options.translated(net.forward_steps_only_fn, net),
        takes_time=net.takes_time,
    )


@only(in_torch, co.Lambda)
def _(net: co.Lambda, options: Options) -> nn.Module:
    if net.forward_only_fn is not None:
        return Function(options.translated(net.forward_only_fn, net))
    fn = options.translated(net.fn, net)
    if net.takes_time or isinstance(fn, OfSpace):
        return Function(fn)
    return Function(lambda x: torch.stack([fn(x_t) for x_t in x.unbind(2)], 2))


@only(in_continual, co.Identity)
def _(net: co.Identity, options: Options) -> nn.Module:
    return continual.Identity()


@only(in_torch, co.Identity)
def _(net: co.Identity, options: Options) -> nn.Module:
    return nn.Identity()


def _constant(value: Any) -> Any:
    """A number, or a tensor if the constant has axes."""
    array = np.asarray(value)
    return torch.from_numpy(array.copy()) if array.ndim else array.item()


@only(in_continual, co.Add)
def _(net: co.Add, options: Options) -> nn.Module:
    return continual.Add(_constant(net.constant))


@only(in_continual, co.Multiply)
def _(net: co.Multiply, options: Options) -> nn.Module:
    return continual.Multiply(_constant(net.factor))


@only(in_continual, co.Constant)
def _(net: co.Constant, options: Options) -> nn.Module:
    return continual.Constant(_constant(net.constant))


@only(in_torch, co.Add)
def _(net: co.Add, options: Options) -> nn.Module:
    constant = _constant(net.constant)
    return Function(lambda x: x + constant)


@only(in_torch, co.Multiply)
def _(net: co.Multiply, options: Options) -> nn.Module:
    factor = _constant(net.factor)
    return Function(lambda x: x * factor)


@only(in_torch, co.Constant)
def _(net: co.Constant, options: Options) -> nn.Module:
    constant = _constant(net.constant)
    return Function(lambda x: torch.ones_like(x) * constant)


@only(in_continual, co.Reshape)
def _(net: co.Reshape, options: Options) -> nn.Module:
    return continual.Reshape(net.shape, contiguous=net.contiguous)


@only(in_torch, co.Reshape)
def _(net: co.Reshape, options: Options) -> nn.Module:
    return Function(lambda x: torch.stack([x_t.reshape(net.shape) for x_t in x.unbind(2)], 2))


# Delays.


def _crop(net: co.Delay) -> tuple[int, int]:
    """The numbers of steps that ``forward`` crops at the start and at the end."""
    timing = net.timing
    return -timing.padding, net.steps - timing.end


@only(in_continual, co.Delay)
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


@only(in_torch, co.Delay)
def _(net: co.Delay, options: Options) -> nn.Module:
    front, back = _crop(net)
    return Function(lambda x: x[:, :, front : x.shape[2] - back])


@only(in_continual, co.Skip)
def _(net: co.Skip, options: Options) -> nn.Module:
    return continual.Skip(net.steps)


@only(in_torch, co.Skip)
def _(net: co.Skip, options: Options) -> nn.Module:
    return Function(lambda x: x[:, :, net.steps :])
