"""Convolutions and pools."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import continual
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in torch
from torch import Tensor, nn

import cojax as co
from benchmarks.peers.building import Function, NoPeer, Options, in_continual, in_torch, only

_CONVOLUTIONS = (co.Conv1d, co.Conv2d, co.Conv3d)


def _conv_arguments(net: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "bias")
    return {name: getattr(net, name) for name in names}


_FORGETS = "convolutions of one frame with a stride in time forget their phase in continual's steps"


class _Keeps:
    """A convolution of ``continual`` that keeps its phase, although it keeps no frames."""

    def get_state(self) -> Any:
        return getattr(self, "kept", None)

    def set_state(self, state: Any) -> None:
        self.kept = state

    def clean_state(self) -> None:
        self.kept = None


class _KeepingConv1d(_Keeps, continual.Conv1d):
    pass


class _KeepingConv2d(_Keeps, continual.Conv2d):
    pass


class _KeepingConv3d(_Keeps, continual.Conv3d):
    pass


_KEEPING = dict(zip(_CONVOLUTIONS, (_KeepingConv1d, _KeepingConv2d, _KeepingConv3d), strict=True))


@only(in_continual, *_CONVOLUTIONS)
def _(net: Any, options: Options) -> nn.Module:
    if net.dilation[0] > 1:
        raise NoPeer(f"continual's {type(net).__name__} refuses dilation={net.dilation} in time")
    if any(isinstance(pads, tuple) for pads in net.padding):
        raise NoPeer(f"continual's {type(net).__name__} pads evenly, not by {net.padding}")
    if net.padding_mode not in ("zeros", "replicate"):
        raise NoPeer(f"continual's {type(net).__name__} refuses padding_mode={net.padding_mode!r}")
    layer = getattr(continual, type(net).__name__)
    if net.kernel_size[0] == 1 and net.stride[0] > 1 and options.mends(_FORGETS):
        layer = _KEEPING[type(net)]
    return layer(
        **_conv_arguments(net),
        padding=net.padding,
        padding_mode=net.padding_mode,
        temporal_fill=net.temporal_fill,
    )


class _Padded:
    """Pads a clip before the layer that it is mixed into.

    Attributes:
      pads: the paddings, as pairs of ``F.pad``'s ``pad`` and ``mode``.
    """

    pads: Sequence[tuple[tuple[int, ...], str]] = ()

    def forward(self, x: Tensor) -> Tensor:
        for pad, mode in self.pads:
            x = F.pad(x, pad, mode=mode)
        return super().forward(x)  # type: ignore[misc]  # of the layer it is mixed into


class _Conv1d(_Padded, nn.Conv1d):
    pass


class _Conv2d(_Padded, nn.Conv2d):
    pass


class _Conv3d(_Padded, nn.Conv3d):
    pass


_PADDED_CONVOLUTIONS = dict(zip(_CONVOLUTIONS, (_Conv1d, _Conv2d, _Conv3d), strict=True))


def _time_pad(net: Any, front: int, back: int) -> tuple[int, ...]:
    """``F.pad``'s argument for time alone; it lists the last axis first."""
    return (*(0, 0) * net.space, front, back)


def _space_pad(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """``F.pad``'s argument for the spatial axes."""
    return (*(n for pair in reversed(pads) for n in pair), 0, 0)


@only(in_torch, *_CONVOLUTIONS)
def _(net: Any, options: Options) -> nn.Module:
    filled = options.as_stream and net.temporal_fill == "replicate"
    if net.padding_mode == "zeros" and not filled and all(isinstance(p, int) for p in net.padding):
        return getattr(nn, type(net).__name__)(**_conv_arguments(net), padding=net.padding)
    # torch pads both ends alike, and time in the same mode as space.
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


@only(in_continual, *_AVERAGES)
def _(net: Any, options: Options) -> nn.Module:
    arguments = _pool_arguments(net)
    arguments |= {"dilation": net.dilation, "temporal_fill": net.temporal_fill}
    return getattr(continual, type(net).__name__)(
        **arguments, count_include_pad=net.count_include_pad, **_divisor_override(net)
    )


@only(in_continual, *_MAXIMA)
def _(net: Any, options: Options) -> nn.Module:
    return getattr(continual, type(net).__name__)(
        **_pool_arguments(net), dilation=net.dilation, temporal_fill=_max_fill(net)
    )


@only(in_continual, *_ADAPTIVE_2D, *_ADAPTIVE_3D)
def _(net: Any, options: Options) -> nn.Module:
    fill = _max_fill(net) if net.largest else net.temporal_fill
    sizes = {n: getattr(net, n)[0] for n in ("kernel_size", "stride", "padding", "dilation")}
    return getattr(continual, type(net).__name__)(net.output_size, **sizes, temporal_fill=fill)


@only(in_torch, *_MAXIMA)
def _(net: Any, options: Options) -> nn.Module:
    if net.padding[0] > net.kernel_size[0] // 2:
        # torch allows at most half of the undilated kernel as padding.
        return _WindowByWindow(net, _fills(net, options))
    layer = partial(getattr(nn, type(net).__name__), dilation=net.dilation)
    return _time_filled(net, options, layer)


@only(in_torch, *_AVERAGES)
def _(net: Any, options: Options) -> nn.Module:
    if net.dilation[0] > 1:
        return _WindowByWindow(net, _fills(net, options))
    counts = {"count_include_pad": net.count_include_pad}
    layer = partial(getattr(nn, type(net).__name__), **counts, **_divisor_override(net))
    return _time_filled(net, options, layer)


@only(in_continual, *_ADAPTIVE_1D)
def _(net: Any, options: Options) -> nn.Module:
    raise NoPeer(f"continual has no {type(net).__name__}")


@only(in_torch, *_ADAPTIVE_1D, *_ADAPTIVE_2D, *_ADAPTIVE_3D)
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
    """The name in ``continual`` of the fill with which a maximum equals that of torch."""
    return "neg_inf" if net.temporal_fill == "zeros" else net.temporal_fill


def _fills(net: Any, options: Options) -> bool:
    return options.as_stream and net.temporal_fill == "replicate"


def _time_filled(net: Any, options: Options, layer: Callable[..., nn.Module]) -> nn.Module:
    """The pool, with a replicate padding of time before it if that is asked for."""
    arguments = _pool_arguments(net)
    if not _fills(net, options):
        return layer(**arguments)
    if net.ceil_mode and net.space:
        raise NoPeer(
            f"{type(net).__name__} with ceil_mode rounds space up, and time down behind its fill"
        )
    arguments |= {"padding": (0, *net.padding[1:]), "ceil_mode": False}
    pad = _time_pad(net, net.timing.padding, net.timing.end)
    return nn.Sequential(Function(lambda x: F.pad(x, pad, mode="replicate")), layer(**arguments))


class _WindowByWindow(nn.Module):
    """A pool whose dilation or padding in time torch does not offer, computed window by window."""

    def __init__(self, net: Any, fills: bool):
        super().__init__()
        self.net, self.fills = net, fills
        self.space = nn.Identity()
        if net.space:
            kernel, stride, dilation = (
                (1, *getattr(net, name)[1:]) for name in ("kernel_size", "stride", "dilation")
            )
            arguments: dict[str, Any] = {"dilation": dilation}
            if not net.largest:
                arguments = {"count_include_pad": net.count_include_pad}
                arguments |= {} if net.divisor_override is None else {"divisor_override": 1}
            self.space = getattr(nn, type(net).__name__)(
                kernel, stride, (0, *net.padding[1:]), ceil_mode=net.ceil_mode, **arguments
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.space(x)
        return torch.stack([self.pooled(x, k) for k in range(self.net.timing.n_out(x.shape[2]))], 2)

    def pooled(self, x: Tensor, window: int) -> Tensor:
        """The maximum or the average of the window with this index."""
        net, steps = self.net, x.shape[2]
        start = window * net.stride[0] - net.padding[0]
        taps = [start + net.dilation[0] * tap for tap in range(net.kernel_size[0])]
        if self.fills:
            taps = [min(max(tap, 0), steps - 1) for tap in taps]
        seen = [tap for tap in taps if 0 <= tap < steps]
        if net.largest:
            return x[:, :, seen].amax(2) if seen else torch.full_like(x[:, :, 0], -torch.inf)
        padded = [tap for tap in taps if -net.padding[0] <= tap < steps + net.padding[0]]
        counted = padded if net.count_include_pad else seen
        return x[:, :, seen].sum(2) / (net.divisor_override or len(counted))
