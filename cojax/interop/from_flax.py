"""Builders for layers of ``flax.linen``, and for the functions among them.

Clips in Flax are ``(B, T, *S, C)``: the last axis is the channels, and the first axis of a window
is time.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import cojax as co

Kind = Callable[..., co.CoModule]
Variables = dict[str, Any]
Converted = tuple[co.CoModule, Variables]


def _require_defaults(module: nn.Module, *names: str) -> None:
    """Raises a ValueError if arguments that have no counterpart in cojax are given."""
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    for name in names:
        given = getattr(module, name)
        plain = isinstance(given, int | str | tuple)
        if given is not defaults[name] and not (plain and given == defaults[name]):
            raise ValueError(f"has {name}={given!r}, which has no counterpart in cojax")


def _param_dtype(module: Any) -> dict[str, Any]:
    """The argument ``param_dtype`` for a layer, if it is not the default.

    Raises:
      ValueError: if the module computes in a dtype other than that of its parameters.
    """
    if module.dtype is not None and jnp.dtype(module.dtype) != jnp.dtype(module.param_dtype):
        raise ValueError(
            f"computes in {jnp.dtype(module.dtype)} whatever it is given, where cojax computes in "
            "the dtype of the clip: leave dtype=None, and cast the clips"
        )
    dtype = jax.dtypes.canonicalize_dtype(module.param_dtype)
    return {} if dtype == "float32" else {"param_dtype": dtype}


def _variable(variables: Variables, name: str, collection: str = "params") -> Array:
    """A variable of the layer itself. Raises a ValueError if there is none."""
    found = variables.get(collection, {}).get(name)
    if found is None or isinstance(found, dict):
        raise ValueError(
            f"its variables have no {name!r} among {collection!r}: give those of the module that "
            "is converted, co.continual(module, variables)"
        )
    return found


# Windows.


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return (1,) * axes if value is None else tuple(np.broadcast_to(value, axes).tolist())


def _pads(padding: Any, extents: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The padding before and after each axis, for windows of these extents.

    Raises:
      ValueError: if the padding depends on the length of the input, or has no counterpart in cojax.
    """
    if not isinstance(padding, str):
        each = [padding] * len(extents) if isinstance(padding, int) else padding
        return [(p, p) if isinstance(p, int) else tuple(p) for p in each]
    around = [extent - 1 for extent in extents]
    if padding == "VALID":
        return [(0, 0)] * len(around)
    if padding == "CAUSAL":
        return [(total, 0) for total in around]
    if padding not in ("SAME", "CIRCULAR", "REFLECT"):
        raise ValueError(f"has {padding=}, which has no counterpart in cojax")
    if padding == "SAME" and any(
        total and stride > 1 for total, stride in zip(around, strides, strict=True)
    ):
        raise ValueError(
            "with strides, padding='SAME' pads by the length of what comes, which a stream has "
            "not: give numbers, which need no other weights, e.g. padding=1 for windows of 3"
        )
    return [(total // 2, total - total // 2) for total in around]


def _conv(module: nn.Conv, *, variables: Variables) -> co.CoModule:
    _require_defaults(module, "mask", "conv_general_dilated", "conv_general_dilated_cls")
    kernel = _variable(variables, "kernel")
    size = kernel.shape[:-2]
    if len(size) > 3:
        raise ValueError(f"has {len(size)} axes of time and space, of which there are at most 3")
    strides, dilation, input_dilation = (
        _per_axis(given, len(size))
        for given in (module.strides, module.kernel_dilation, module.input_dilation)
    )
    if set(input_dilation) != {1}:
        raise ValueError(f"has {input_dilation=}, a transposed convolution: not supported")
    extents = [d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True)]
    pads = _pads(module.padding, extents, strides)
    mode = str(module.padding).lower() if module.padding in ("CIRCULAR", "REFLECT") else "zeros"
    if mode != "zeros" and any(pads[0]):
        raise ValueError(
            f"pads time with padding={module.padding!r}: only zeros are known before a stream "
            "begins. Take a kernel of 1 in time, or pad with zeros"
        )
    kind = (co.Conv1d, co.Conv2d, co.Conv3d)[len(size) - 1]
    return kind(
        kernel.shape[-2] * module.feature_group_count,
        module.features,
        size,
        strides,
        [front if front == back else (front, back) for front, back in pads],
        dilation,
        module.feature_group_count,
        module.use_bias,
        mode if len(size) > 1 else "zeros",
        **_param_dtype(module),
    )


def _pool(kinds: Sequence[Kind], pool: Any) -> co.CoModule:
    given = _keywords(pool)
    size = given.pop("window_shape", None)
    if size is None:
        raise ValueError(
            "needs its window: functools.partial(nn.avg_pool, window_shape=..., strides=...)"
        )
    strides = tuple(given.pop("strides", None) or (1,) * len(size))
    pads = _pads(given.pop("padding", "VALID"), size, strides)
    if any(front != back for front, back in pads):
        raise ValueError(f"pads unevenly, by {pads}, which pools of cojax do not")
    if len(size) > 3:
        raise ValueError(f"has {len(size)} axes of time and space, of which there are at most 3")
    return kinds[len(size) - 1](tuple(size), strides, [front for front, _ in pads], **given)


# Norms.


def _batch_norm(module: nn.BatchNorm, *, variables: Variables) -> Converted:
    _require_defaults(module, "axis", "axis_name", "axis_index_groups")
    mean = _variable(variables, "mean", "batch_stats")
    net = co.BatchNorm(
        len(mean),
        module.epsilon,
        1 - module.momentum,
        module.use_scale,
        bias=_bias(module),
        **_param_dtype(module),
    )
    counted = {**variables["batch_stats"], "num_batches_tracked": jnp.zeros((), jnp.int32)}
    return net, {**variables, "batch_stats": counted}


def _layer_norm(module: nn.LayerNorm, *, variables: Variables) -> co.CoModule:
    _require_defaults(module, "reduction_axes", "feature_axes", "axis_name", "axis_index_groups")
    return co.LayerNorm(
        _channels(module, variables),
        module.epsilon,
        module.use_scale,
        _bias(module),
        channel_dim=1,
        **_param_dtype(module),
    )


def _group_norm(module: Any, *, variables: Variables, per_step: bool = False) -> co.CoModule:
    _require_defaults(module, "reduction_axes", "axis_name", "axis_index_groups")
    channels = _channels(module, variables)
    groups = module.num_groups if module.group_size is None else channels // module.group_size
    return _grouped(module, groups, channels, per_step)


def _instance_norm(
    module: nn.InstanceNorm, *, variables: Variables, per_step: bool = False
) -> co.CoModule:
    _require_defaults(module, "feature_axes", "axis_name", "axis_index_groups")
    channels = _channels(module, variables)
    return _grouped(module, channels, channels, per_step)


def _grouped(module: Any, groups: int, channels: int, per_step: bool) -> co.CoModule:
    return co.GroupNorm(
        groups,
        channels,
        module.epsilon,
        module.use_scale,
        _bias(module),
        per_step,
        **_param_dtype(module),
    )


def _bias(module: Any) -> bool:
    """Whether a norm has a bias beside its scale."""
    if module.use_bias and not module.use_scale:
        raise ValueError("has a bias but no scale, which norms of cojax do not: use_scale=True")
    return module.use_bias


def _channels(module: Any, variables: Variables) -> int:
    if not (module.use_scale or module.use_bias):
        raise ValueError("does not say how many channels it normalises, having no variables")
    return len(_variable(variables, "scale" if module.use_scale else "bias"))


# Recurrent layers.


def _rnn(module: nn.RNN, *, variables: Variables) -> Converted:
    _require_defaults(module, "time_major", "return_carry")
    if module.reverse:
        raise ValueError(
            "runs in reverse, beginning with the last step, which a stream does not have"
        )
    cell: Any = module.cell
    if type(cell) not in _CELLS:
        names = ", ".join(kind.__name__ for kind in _CELLS)
        raise ValueError(f"repeats a {type(cell).__name__}; there are layers for {names}")
    kind, gates = _CELLS[type(cell)]
    functions = {"gate_fn", "residual"} & {field.name for field in dataclasses.fields(cell)}
    _require_defaults(cell, "carry_init", *functions)
    if kind is co.RNN and cell.activation_fn is nn.relu:
        kind = partial(co.RNN, nonlinearity="relu")
    else:
        _require_defaults(cell, "activation_fn")
    params = variables.get("params", {}).get("cell", {})

    def joined(side: str, name: str) -> Array:
        """The variables of this name in all gates, concatenated; a missing bias is zero."""
        parts = [{"params": params.get(side + gate, {})} for gate in gates]
        kernels = [_variable(part, "kernel") for part in parts]
        blank = {"bias": jnp.zeros(cell.features, kernels[0].dtype)}
        return jnp.concatenate([(blank | part["params"])[name] for part in parts], axis=-1)

    own = {
        f"{name}_{ours}_l0": joined(theirs, name)
        for ours, theirs in (("ih", "i"), ("hh", "h"))
        for name in ("kernel", "bias")
    }
    net = kind(len(own["kernel_ih_l0"]), cell.features, **_param_dtype(cell))
    return net, {"params": own}


def _bidirectional(module: nn.Bidirectional) -> co.CoModule:
    raise ValueError(
        "is bidirectional: half of it begins with the last step, which a stream does not have"
    )


# The layer for each cell, and the names of the cell's gates in the order of the layer's.
_CELLS: dict[type[nn.Module], tuple[Kind, Sequence[str]]] = {
    nn.SimpleCell: (co.RNN, [""]),
    nn.LSTMCell: (co.LSTM, "ifgo"),
    nn.OptimizedLSTMCell: (co.LSTM, "ifgo"),
    nn.GRUCell: (co.GRU, "rzn"),
}


# Everything else.


def _sequential(module: nn.Sequential, *, convert: Kind) -> co.CoModule:
    # A module that is used again has the name of its first use.
    names: dict[int, str] = {}
    converted = {}
    for i, layer in enumerate(module.layers):
        own = f"layers_{i}"
        name = names.setdefault(id(layer), own) if isinstance(layer, nn.Module) else own
        converted[str(i)] = convert(layer, name)
    return co.Sequential(converted)


def _dense(module: nn.Dense, *, variables: Variables) -> co.CoModule:
    _require_defaults(module, "dot_general", "dot_general_cls")
    features = len(_variable(variables, "kernel"))
    return co.Linear(
        features, module.features, module.use_bias, channel_dim=1, **_param_dtype(module)
    )


def _dropout(module: nn.Dropout) -> co.CoModule:
    _require_defaults(module, "broadcast_dims", "rng_collection")
    return co.Dropout(module.rate)


def _prelu(module: nn.PReLU, *, variables: Variables) -> Converted:
    slope = _variable(variables, "negative_slope")
    net = co.PReLU(1, module.negative_slope_init)
    return net, {"params": {"negative_slope": slope.reshape(1)}}


def _keywords(function: Any) -> dict[str, Any]:
    """The keyword arguments that a function of clips is called with."""
    if isinstance(function, partial) and function.args:
        raise ValueError(f"is given {function.args} for its input: name these arguments")
    return dict(function.keywords) if isinstance(function, partial) else {}


def _activation(kind: Kind, function: Any) -> co.CoModule:
    return kind(**_keywords(function))


def _gelu(function: Any) -> co.CoModule:
    approximate = _keywords(function).get("approximate", True)
    return co.GELU("tanh" if approximate else "none")


def _along_channels(kind: Kind, function: Any) -> co.CoModule:
    given = _keywords(function)
    if given.pop("axis", -1) != -1 or given:
        raise ValueError("runs along channels alone here, the last axis: leave axis=-1")
    return kind(dim=1)


BUILDERS: dict[Hashable, Callable[..., Any]] = {
    nn.Sequential: _sequential,
    nn.Conv: _conv,
    nn.Dense: _dense,
    nn.BatchNorm: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm: _instance_norm,
    nn.Dropout: _dropout,
    nn.PReLU: _prelu,
    nn.RNN: _rnn,
    nn.Bidirectional: _bidirectional,
    nn.avg_pool: partial(_pool, (co.AvgPool1d, co.AvgPool2d, co.AvgPool3d)),
    nn.max_pool: partial(_pool, (co.MaxPool1d, co.MaxPool2d, co.MaxPool3d)),
    nn.gelu: _gelu,
    nn.softmax: partial(_along_channels, co.Softmax),
    nn.log_softmax: partial(_along_channels, co.LogSoftmax),
    nn.glu: partial(_along_channels, co.GLU),
    **{
        function: partial(_activation, kind)
        for function, kind in {
            jax.nn.identity: co.Identity,
            nn.celu: co.CELU,
            nn.elu: co.ELU,
            nn.hard_sigmoid: co.Hardsigmoid,
            nn.hard_swish: co.Hardswish,
            nn.hard_tanh: co.Hardtanh,
            nn.leaky_relu: co.LeakyReLU,
            nn.log_sigmoid: co.LogSigmoid,
            nn.relu: co.ReLU,
            nn.relu6: co.ReLU6,
            nn.selu: co.SELU,
            nn.sigmoid: co.Sigmoid,
            nn.silu: co.SiLU,
            nn.soft_sign: co.Softsign,
            nn.softplus: co.Softplus,
            nn.tanh: co.Tanh,
        }.items()
    },
}
