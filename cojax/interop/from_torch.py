"""Builders for modules of ``torch.nn``."""

import copy
import dataclasses
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import jax
from jax import Array
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

import cojax as co
from cojax.layers.arguments import padded_windows
from cojax.layers.axes import TIME

Kind = Callable[..., co.CoModule]


def builders(each_step: bool = False) -> Mapping[Hashable, Callable[..., Any]]:
    """The builder for each class, including those of ``continual`` if it is imported.

    For modules that are given each step ``(B, C, *S)`` of a clip, rather than the clip, the layers
    built compute of the clip what the module computes of its steps.
    """
    if each_step:
        return _OF_EACH_STEP
    if "continual" not in sys.modules:
        return _BUILDERS
    from cojax.interop.from_continual import BUILDERS

    return {**_BUILDERS, **BUILDERS}


def require_plain(module: nn.Module) -> None:
    """Raises a ValueError if a module does more than its class says."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            "has hooks, which change what it computes, or watch it: remove them (and weight or "
            "spectral norms with them, which leaves their weights)"
        )
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        name = next(iter(parametrized))
        raise ValueError(
            "is parametrised, by a weight norm or otherwise: fix its weights with "
            f'torch.nn.utils.parametrize.remove_parametrizations(module, "{name}")'
        )
    if not _computes_as_its_class(module):
        raise ValueError(
            "has a forward of its own, which may compute something else than its class: "
            "co.register a class that computes this"
        )


def _computes_as_its_class(module: nn.Module) -> bool:
    """Whether a module's ``forward`` is its class's, as it is or wrapped by ``continual``."""
    forward: Any = module.forward
    while getattr(forward, "__module__", None) == "continual.convert":
        forward = inspect.getclosurevars(forward).nonlocals["orig_forward"]
    return forward == types.MethodType(type(module).forward, module)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """All that a ``state_dict`` would hold, collected without calling any ``state_dict``."""
    return {
        f"{prefix}.{name}".removeprefix("."): tensor
        for prefix, part in module.named_modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None and name not in part._non_persistent_buffers_set
    }


def param_dtype(tensor: Tensor) -> dict[str, Any]:
    """The argument ``param_dtype`` for a layer with such parameters, if it is not the default."""
    dtype = jax.dtypes.canonicalize_dtype(str(tensor.dtype).removeprefix("torch."))
    return {} if dtype == "float32" else {"param_dtype": dtype}


def like(kind: Kind, names: str) -> Callable[[nn.Module], co.CoModule]:
    """A builder for a class whose arguments of these names are attributes of the module."""
    return lambda module: kind(**{name: getattr(module, name) for name in names.split()})


def conv(kind: Kind, module: Any, **own: Any) -> co.CoModule:
    """A convolution with the arguments of torch's, and the others given."""
    windows = module.kernel_size, module.stride, module.padding, module.dilation
    time, *_ = _pads(module)
    if module.padding_mode != "zeros" and any(time):
        raise ValueError(
            f"pads time with padding_mode={module.padding_mode!r}: only zeros are known before a "
            "stream begins. Pad space alone, e.g. padding=(0, 1, 1)"
        )
    return kind(
        module.in_channels,
        module.out_channels,
        *windows,
        module.groups,
        module.bias is not None,
        module.padding_mode,
        **own,
        **param_dtype(module.weight),
    )


def _max_pool(kind: Kind, module: Any) -> co.CoModule:
    if module.return_indices:
        raise ValueError("returns indices too, of frames that a step does not have")
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return kind(**{name: getattr(module, name) for name in names})


def _adaptive_pool(kind: Kind, module: Any, *, kernel_size: int | None = None) -> co.CoModule:
    if getattr(module, "return_indices", False):
        raise ValueError("returns indices too, of frames that a step does not have")
    if kernel_size is None:
        raise ValueError(
            "pools a clip as a whole, and a stream has no end: say over how many steps it pools "
            "there, with co.continual(module, kernel_size=...) (a dict of paths for several pools)"
        )
    return kind(module.output_size, kernel_size)


def linear(module: Any, *, channel_dim: int = -1) -> co.CoModule:
    """A linear map along the axis that torch's runs along, or along another."""
    bias = module.bias is not None
    dtype = param_dtype(module.weight)
    return co.Linear(module.in_features, module.out_features, bias, channel_dim, **dtype)


def _running_norm(kind: Kind, module: Any, **own: Any) -> co.CoModule:
    tracks = module.running_mean is not None
    if tracks and not module.track_running_stats:
        raise ValueError(
            "has running statistics and track_running_stats=False, and then neither updates nor "
            "always uses them: set it to True, or make the norm with False, which has none"
        )
    learnt = module.weight if module.weight is not None else module.running_mean
    return kind(
        module.num_features,
        module.eps,
        module.momentum,
        module.weight is not None,
        tracks,
        module.weight is None or module.bias is not None,
        **own,
        **({} if learnt is None else param_dtype(learnt)),
    )


def _instance_norm(kind: Kind, module: Any, *, per_step: bool = False) -> co.CoModule:
    return _running_norm(kind, module, per_step=per_step)


def _group_norm(module: Any, *, per_step: bool = False) -> co.CoModule:
    return co.GroupNorm(
        module.num_groups, module.num_channels, module.eps, per_step=per_step, **_affine(module)
    )


def _layer_norm(module: Any, *, channel_dim: int = -1, per_step: bool = False) -> co.CoModule:
    if len(module.normalized_shape) > 1:
        channel_dim = -1
    arguments = _affine(module)
    return co.LayerNorm(
        module.normalized_shape,
        module.eps,
        arguments.pop("affine"),
        channel_dim=channel_dim,
        per_step=per_step and channel_dim == -1,
        **arguments,
    )


def _affine(module: Any) -> dict[str, Any]:
    """The arguments that concern a norm's parameters."""
    if module.weight is None:
        return {"affine": False}
    return {"affine": True, "bias": module.bias is not None, **param_dtype(module.weight)}


def _prelu(module: Any) -> co.CoModule:
    return co.PReLU(module.num_parameters, module.init, **param_dtype(module.weight))


def _along(kind: Kind, module: Any) -> co.CoModule:
    if module.dim is None:
        raise ValueError("does not say along which axis: give it dim=1 for the channels")
    return kind(dim=module.dim)


@dataclasses.dataclass(frozen=True)
class _AlongStep:
    """A function of clips that runs along an axis counted in each step, such as the last one."""

    kind: Kind
    dim: int

    def __call__(self, x: Array) -> Array:
        axes = [axis for axis in range(x.ndim) if axis != TIME]
        if not -len(axes) <= self.dim < len(axes):
            raise ValueError(f"dim={self.dim} is no axis of a step with {len(axes)} axes")
        layer: Any = self.kind(dim=axes[self.dim], parent=None)
        return layer.apply({}, x)


def _along_step(kind: Kind, module: Any) -> co.CoModule:
    if module.dim is None or module.dim >= 0:
        layer: Any = _along(kind, module)
        return layer.clone(dim=layer.dim + (layer.dim >= TIME))
    return co.Lambda(_AlongStep(kind, module.dim), takes_time=True)


def _batch_norm_of_steps(module: Any) -> co.CoModule:
    if module.running_mean is None:
        raise ValueError(
            "is given single steps and normalises by their statistics; in a clip, only running "
            "ones are known"
        )
    return _running_norm(co.BatchNorm, module)


def _norm_of_steps(norm: Kind, module: Any, *, per_step: bool = True) -> co.CoModule:
    """A norm whose statistics are those of each step, also where it is not told so."""
    return norm(module, per_step=True)


def recurrent(kind: Kind, own: str, module: Any) -> co.CoModule:
    """A recurrent layer, with the arguments common to all kinds and those of its own kind."""
    if module.bidirectional:
        raise ValueError(
            "is bidirectional: half of it begins with the last step, which a stream does not have"
        )
    names = f"input_size hidden_size num_layers bias dropout {own}".split()
    arguments = {name: getattr(module, name) for name in names}
    return kind(**arguments, **param_dtype(module.weight_ih_l0))


RECURRENT = {"RNN": "nonlinearity", "LSTM": "proj_size", "GRU": ""}


def _require_parts(module: nn.Module, **kinds: type[nn.Module]) -> None:
    """Raises a ValueError unless parts that no builder inspects are as torch makes them."""
    for name, kind in kinds.items():
        part = getattr(module, name)
        if type(part) is not kind:
            raise ValueError(
                f"has a {name} that is not torch's own {kind.__name__}, but a {type(part).__name__}"
            )
        try:
            require_plain(part)
        except ValueError as error:
            raise ValueError(f"has a {name} that {error}") from None


def _require_same(what: str, **values: Any) -> None:
    """Raises a ValueError unless values that are a single argument in cojax agree."""
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in values.items())
        raise ValueError(f"has {what} that differ, but cojax has only one: {listed}")


def _attention(module: Any, *, sequence_len: int) -> co.CoModule:
    """Torch's in ``forward``; in a stream, the newest token's over the last ``sequence_len``."""
    _require_parts(module, out_proj=NonDynamicallyQuantizableLinear)
    return co.SingleOutputMultiheadAttention(
        module.embed_dim,
        module.num_heads,
        module.dropout,
        module.in_proj_bias is not None,
        module.bias_k is not None,
        module.add_zero_attn,
        module.kdim,
        module.vdim,
        **param_dtype(module.out_proj.weight),
        sequence_len=sequence_len,
        single_output_forward=False,
    )


def _encoder_layer(module: Any, *, sequence_len: int) -> co.CoModule:
    return _encoder_layers(module, sequence_len)("single_output")


def _encoder(module: Any, *, sequence_len: int) -> co.CoModule:
    names = [f"{i}" for i in range(len(module.layers))]
    _require_parts(module.layers, **dict.fromkeys(names, nn.TransformerEncoderLayer))
    first, *others = (_encoder_layers(layer, sequence_len) for layer in module.layers)
    if any(other != first for other in others):
        raise ValueError("has layers that differ in more than their weights")
    norm = None
    if module.norm is not None:
        _require_parts(module, norm=nn.LayerNorm)
        norm = _layer_norm(module.norm, channel_dim=1)
    return co.TransformerEncoder(first, len(module.layers), norm)


def _encoder_layers(module: Any, sequence_len: int) -> co.TransformerEncoderLayerFactory:
    attention, norms = module.self_attn, (module.norm1, module.norm2)
    _require_parts(
        module,
        self_attn=nn.MultiheadAttention,
        **dict.fromkeys(("linear1", "linear2"), nn.Linear),
        **dict.fromkeys(("norm1", "norm2"), nn.LayerNorm),
        **dict.fromkeys(("dropout", "dropout1", "dropout2"), nn.Dropout),
    )
    _require_parts(attention, out_proj=NonDynamicallyQuantizableLinear)
    if attention.add_zero_attn or attention.bias_k is not None:
        raise ValueError("attends to more than its tokens: add_zero_attn, or add_bias_kv")
    _require_same("norms", **{f"norm{i}.eps": norm.eps for i, norm in enumerate(norms, 1)})
    _require_same(
        "probabilities of dropout",
        dropout=module.dropout.p,
        dropout1=module.dropout1.p,
        dropout2=module.dropout2.p,
        self_attn=attention.dropout,
    )
    return co.TransformerEncoderLayerFactory(
        attention.embed_dim,
        attention.num_heads,
        module.linear1.out_features,
        module.dropout.p,
        _activation(module),
        module.norm1.eps,
        module.norm_first,
        module.linear1.bias is not None,
        sequence_len,
        attention.in_proj_bias is not None,
        **param_dtype(module.linear1.weight),
    )


def _activation(layer: Any) -> Any:
    """The activation of an encoder layer, which may be a function or a module in torch.

    Torch gives it tokens whose last axis is the channels.
    """
    activation = layer.activation
    for name, function in (("relu", functional.relu), ("gelu", functional.gelu)):
        if activation is function:
            return name
    kind: Any = type(activation)
    if isinstance(activation, nn.Module):
        _require_parts(layer, activation=kind)
    if kind in _ALONG_AXIS and activation.dim in (-1, 2):
        return _ALONG_AXIS[kind](dim=1)
    if kind in _ELEMENTWISE or (kind is nn.PReLU and activation.num_parameters == 1):
        return _BUILDERS[kind](activation)
    raise ValueError(
        f"has an activation that is not known, {activation!r}; give it a module that computes each "
        "entry by itself, or along the last axis (dim=-1)"
    )


def _flatten(module: Any) -> co.CoModule:
    raise ValueError(
        "makes channels of time and space. Behind a pool over all of them nothing but channels is "
        "left: leave it out, e.g. co.register(torch.nn.Flatten, lambda flatten: co.Identity()), "
        "and convert with channel_dim=1"
    )


def _pad(module: Any) -> co.CoModule:
    if not any(module.padding):
        return co.Identity()
    raise ValueError(
        "pads by itself, and time can only be padded by a convolution or a pool: zeros directly "
        "before a convolution of as many axes, in one Sequential, become its padding; else pad "
        "there, e.g. co.Conv1d(..., padding=((2, 0),))"
    )


def sequential(module: Any, *, convert: Kind) -> co.CoModule:
    """A sequence of the converted modules, by their names.

    Zeros that are padded before a convolution become its own padding.
    """
    parts: dict[str, Any] = dict(module._modules)
    for before, after in itertools.pairwise(parts):
        if _can_pad(parts[after], parts[before]):
            parts[before], parts[after] = _padded_within(parts[before], parts[after])
    return co.Sequential({name: convert(part, name) for name, part in parts.items()})


def _can_pad(conv: Any, pad: Any) -> bool:
    """Whether a convolution could pad what is padded before it."""
    zeros = _PADS.get(type(pad)) is type(conv) and pad.value == 0 and min(pad.padding) >= 0
    return zeros and (conv.padding_mode == "zeros" or not any(map(any, _pads(conv))))


def _padded_within(pad: Any, conv: Any) -> tuple[Any, Any]:
    """Copies of the two that do the same, of which the convolution does the padding."""
    before, after = copy.copy(pad), copy.copy(conv)
    before.padding = (0,) * len(pad.padding)
    # Torch lists the pads from the last axis on.
    more = reversed(list(zip(pad.padding[::2], pad.padding[1::2], strict=True)))
    after.padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(_pads(conv), more, strict=True))
    after.padding_mode = "zeros"
    return before, after


def _pads(conv: Any) -> list[tuple[int, int]]:
    """The padding before and after each axis."""
    windows = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return [axis.pads for axis in padded_windows(len(conv.kernel_size), *windows)]


_DIMENSIONS = ("1d", "2d", "3d")
_POOL = "kernel_size stride padding ceil_mode count_include_pad"

# The convolution that each pads for.
_PADS: dict[Any, type[nn.Module]] = {
    getattr(nn, f"{family}{d}"): getattr(nn, f"Conv{d}")
    for family in ("ConstantPad", "ZeroPad")
    for d in _DIMENSIONS
}

# What computes every entry by itself, whatever the axes mean.
_ELEMENTWISE: dict[Hashable, Callable[..., Any]] = {
    getattr(nn, name): like(getattr(co, name), arguments)
    for name, arguments in {
        "Identity": "",
        "Threshold": "threshold value",
        "ReLU": "",
        "RReLU": "lower upper",
        "Hardtanh": "min_val max_val",
        "ReLU6": "",
        "Sigmoid": "",
        "Hardsigmoid": "",
        "Tanh": "",
        "SiLU": "",
        "Hardswish": "",
        "ELU": "alpha",
        "CELU": "alpha",
        "SELU": "",
        "GELU": "approximate",
        "Hardshrink": "lambd",
        "LeakyReLU": "negative_slope",
        "LogSigmoid": "",
        "Softplus": "beta threshold",
        "Softshrink": "lambd",
        "Softsign": "",
        "Tanhshrink": "",
        "Dropout": "p",
        "AlphaDropout": "p",
    }.items()
}

_ALONG_AXIS: dict[Hashable, Kind] = {
    getattr(nn, name): getattr(co, name) for name in ("Softmin", "Softmax", "LogSoftmax", "GLU")
}

_BUILDERS: dict[Hashable, Callable[..., Any]] = {
    nn.Sequential: sequential,
    nn.Linear: linear,
    nn.AvgPool1d: like(co.AvgPool1d, _POOL),
    nn.AvgPool2d: like(co.AvgPool2d, f"{_POOL} divisor_override"),
    nn.AvgPool3d: like(co.AvgPool3d, f"{_POOL} divisor_override"),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Flatten: _flatten,
    **dict.fromkeys(_PADS, _pad),
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoder: _encoder,
    nn.TransformerEncoderLayer: _encoder_layer,
    **{
        getattr(nn, f"{family}{d}"): partial(build, getattr(co, f"{family}{d}"))
        for family, build in {
            "Conv": conv,
            "MaxPool": _max_pool,
            "BatchNorm": _running_norm,
            "InstanceNorm": _instance_norm,
        }.items()
        for d in _DIMENSIONS
    },
    **{
        getattr(nn, f"{family}{d}"): partial(_adaptive_pool, getattr(co, f"{family}{d}"))
        for family in ("AdaptiveAvgPool", "AdaptiveMaxPool")
        for d in _DIMENSIONS
    },
    **{
        getattr(nn, name): partial(recurrent, getattr(co, name), own)
        for name, own in RECURRENT.items()
    },
    **{module: partial(_along, kind) for module, kind in _ALONG_AXIS.items()},
    nn.Softmax2d: like(co.Softmax2d, ""),
    **_ELEMENTWISE,
    **{
        getattr(nn, name): like(getattr(co, name), "p")
        for name in ("Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout")
    },
}

# The same for modules that are given each step: an axis of space is one further on in the clip.
_OF_EACH_STEP: dict[Hashable, Callable[..., Any]] = {
    nn.Sequential: sequential,
    nn.Linear: linear,
    nn.GroupNorm: partial(_norm_of_steps, _group_norm),
    nn.LayerNorm: partial(_norm_of_steps, _layer_norm),
    nn.InstanceNorm1d: partial(_norm_of_steps, partial(_instance_norm, co.InstanceNorm2d)),
    nn.InstanceNorm2d: partial(_norm_of_steps, partial(_instance_norm, co.InstanceNorm3d)),
    **{getattr(nn, f"BatchNorm{d}"): _batch_norm_of_steps for d in _DIMENSIONS},
    nn.PReLU: _prelu,
    nn.Softmax2d: lambda module: co.Lambda(_AlongStep(co.Softmax, -3), takes_time=True),
    **{module: partial(_along_step, kind) for module, kind in _ALONG_AXIS.items()},
    **_ELEMENTWISE,
    nn.Dropout1d: like(co.Dropout2d, "p"),
    nn.Dropout2d: like(co.Dropout3d, "p"),
    nn.FeatureAlphaDropout: like(co.FeatureAlphaDropout, "p"),
}
