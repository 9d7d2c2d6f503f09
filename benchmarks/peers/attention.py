"""Attention, encoders and positional encodings."""

from typing import Any

import continual
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in torch
from continual.transformer import RetroactiveUnity
from torch import Tensor, nn

import cojax as co
from benchmarks.peers.building import NoPeer, Options, in_continual, in_torch, only
from cojax.layers.multihead import MultiheadAttention

_ON_STREAMS = (co.SingleOutputMultiheadAttention, co.RetroactiveMultiheadAttention)


class _OfTokens:
    """Turns a module of tokens ``(B, N, E)`` into a module of clips.

    Attributes:
      steps: the number of tokens in a window; a clip ``(B, E, T)`` has a window for each output.
        None if a clip is one window; 0 if it has its windows as a further axis, ``(B, E, T, N)``.
      answered: the index of the token of a window that has an output; None for all tokens.
    """

    steps: int | None = None
    answered: int | None = None

    def answer(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)  # type: ignore[misc]  # of the module it is mixed into

    def forward(self, x: Tensor) -> Tensor:
        if self.steps is None:
            return self.answer(x.swapaxes(1, 2)).swapaxes(1, 2)
        windows = x.unfold(2, self.steps, 1) if self.steps else x
        outputs = [self.answer(window.swapaxes(1, 2)) for window in windows.unbind(2)]
        y = torch.stack([tokens.swapaxes(1, 2) for tokens in outputs], 2)
        return y if self.answered is None else y[..., self.answered]


class _Attention(_OfTokens, nn.MultiheadAttention):
    def answer(self, tokens: Tensor) -> Tensor:
        return nn.MultiheadAttention.forward(self, tokens, tokens, tokens, need_weights=False)[0]


class _EncoderLayer(_OfTokens, nn.TransformerEncoderLayer):
    pass


class _Encoder(_OfTokens, nn.TransformerEncoder):
    pass


def _said(module: Any, attention: Any, options: Options) -> Any:
    """The module, with the windows that it sees and the tokens that have an output."""
    if isinstance(attention, co.WindowMultiheadAttention):
        module.steps, module.answered = 0, attention.query_index
    elif isinstance(attention, co.RetroactiveMultiheadAttention):
        module.steps = attention.sequence_len
    elif attention.single_output_forward or options.as_stream:
        module.steps, module.answered = attention.sequence_len, attention.query_place
    return module


def _attention_arguments(net: Any) -> dict[str, Any]:
    if {net.kdim, net.vdim} - {None, net.embed_dim}:
        raise NoPeer(f"{type(net).__name__} of several streams has no peer of one")
    names = ("embed_dim", "num_heads", "dropout", "bias", "add_bias_kv", "add_zero_attn")
    return {name: getattr(net, name) for name in names} | {"batch_first": True}


@only(in_torch, MultiheadAttention)
def _(net: Any, options: Options) -> nn.Module:
    return _said(_Attention(**_attention_arguments(net)), net, options)


@only(in_continual, *_ON_STREAMS)
def _(net: Any, options: Options) -> nn.Module:
    if net.add_bias_kv or net.add_zero_attn:
        raise NoPeer(f"continual's {type(net).__name__} cannot step with added tokens")
    own = {
        name: getattr(net, name)
        for name in ("query_index", "single_output_forward")
        if hasattr(net, name)
    }
    return getattr(continual, type(net).__name__)(
        **_attention_arguments(net),
        **own,
        sequence_len=net.sequence_len,
        forward_returns_attn_mask=False,
        embed_dim_second=True,
    )


def _own_biases(net: co.TransformerEncoderLayer) -> bool:
    return net.layers["self_attn"].bias != net.layers["linear1"].bias


def _layer_arguments(
    net: co.TransformerEncoderLayer, options: Options, own_biases: bool = False
) -> dict[str, Any]:
    attention, linear, norm = (net.layers[name] for name in ("self_attn", "linear1", "norm1"))
    if _own_biases(net) and not own_biases:
        raise NoPeer("a TransformerEncoderLayer with attention_bias has no peer")
    activation = net.layers["activation"]
    if isinstance(activation, co.ReLU | co.GELU):
        function: Any = F.relu if isinstance(activation, co.ReLU) else nn.GELU()
    elif isinstance(activation, co.Lambda):
        function = options.translated(activation.fn, net)
    else:
        function = in_torch(activation, options)
    return {
        "d_model": attention.embed_dim,
        "nhead": attention.num_heads,
        "dim_feedforward": linear.out_features,
        "dropout": net.layers["dropout"].p,
        "activation": function,
        "layer_norm_eps": norm.eps,
    }


def _torch_layer(kind: Any, net: co.TransformerEncoderLayer, options: Options) -> Any:
    bias = net.layers["linear1"].bias
    return kind(
        **_layer_arguments(net, options), norm_first=net.norm_first, bias=bias, batch_first=True
    )


@only(in_torch, co.TransformerEncoderLayer)
def _(net: co.TransformerEncoderLayer, options: Options) -> nn.Module:
    return _said(_torch_layer(_EncoderLayer, net, options), net.layers["self_attn"], options)


@only(in_continual, co.TransformerEncoderLayer)
def _(net: co.TransformerEncoderLayer, options: Options) -> nn.Module:
    attention, arguments = net.layers["self_attn"], _layer_arguments(net, options)
    if net.norm_first or not attention.bias:
        raise NoPeer("continual's encoder layers have their norms behind, and biases")
    if isinstance(attention, co.RetroactiveMultiheadAttention):
        return continual.RetroactiveTransformerEncoderLayer(
            **arguments, sequence_len=attention.sequence_len
        )
    if isinstance(attention, co.SingleOutputMultiheadAttention):
        return continual.SingleOutputTransformerEncoderLayer(
            **arguments,
            sequence_len=attention.sequence_len,
            query_index=attention.query_index,
            single_output_forward=attention.single_output_forward,
        )
    raise NoPeer("continual has no encoder layer of windows")


class _Layer(nn.Module):
    """An encoder layer with norms after its parts, whose attention alone may lack biases."""

    def __init__(self, attention: Any, arguments: dict[str, Any]):
        super().__init__()
        width, inner = arguments["d_model"], arguments["dim_feedforward"]
        self.self_attn = nn.MultiheadAttention(**_attention_arguments(attention))
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, arguments["layer_norm_eps"]) for _ in "12")
        self.dropout = nn.Dropout(arguments["dropout"])
        self.activation = arguments["activation"]

    def forward(self, tokens: Tensor, asking: Tensor) -> Tensor:
        """The outputs for the tokens that query."""
        y = self.self_attn(asking, tokens, tokens, need_weights=False)[0]
        y = self.norm1(asking + self.dropout(y))
        inner = self.linear2(self.dropout(self.activation(self.linear1(y))))
        return self.norm2(y + self.dropout(inner))


class _Stack(nn.Module):
    """Encoder layers over tokens ``(B, N, E)``, of which only the newest has an output."""

    def __init__(self, layers: list[_Layer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        *others, last = self.layers
        for layer in others:
            tokens = layer(tokens, tokens)
        return last(tokens, tokens[:, -1:])


class _PublishedEncoder(_OfTokens, _Stack):
    pass


@only(in_torch, co.TransformerEncoder)
def _(net: co.TransformerEncoder, options: Options) -> nn.Module:
    first = net.layers["layers"].layers["0"]
    stack = net.layers["layers"].order
    if _own_biases(first) and not first.norm_first and "norm" not in net.layers:
        arguments = _layer_arguments(first, options, own_biases=True)
        published = _PublishedEncoder([_Layer(first.layers["self_attn"], arguments) for _ in stack])
        published.steps, published.answered = first.layers["self_attn"].sequence_len, -1
        return published
    norm = nn.LayerNorm(net.layers["norm"].normalized_shape) if "norm" in net.layers else None
    layer = _torch_layer(nn.TransformerEncoderLayer, first, options)
    module = _Encoder(layer, len(stack), norm, enable_nested_tensor=False)
    module.steps, module.answered = first.layers["self_attn"].sequence_len, -1
    return module


_BIASES = "continual's encoder layers have biases in attention; those that have none replace them"
_RING = "continual's RetroactiveUnity wraps a ring of delay + 1 slots at delay; the peer's does not"


def _without_bias(attention: Any) -> Any:
    """The same attention of ``continual``, without biases."""
    names = ["embed_dim", "num_heads", "dropout", "batch_first", "sequence_len"]
    names += ["forward_returns_attn_mask", "embed_dim_second"]
    if isinstance(attention, continual.SingleOutputMultiheadAttention):
        names += ["query_index", "single_output_forward"]
    return type(attention)(**{name: getattr(attention, name) for name in names}, bias=False)


class _Unity(RetroactiveUnity):
    """The last ``delay + 1`` frames, oldest first, from a ring that wraps at its end."""

    def _forward_step(self, input: Tensor, prev_state: Any) -> tuple[Tensor | None, Any]:
        buffer, index = self.init_state(input) if prev_state is None else prev_state
        slots = self.delay + 1
        buffer[index % slots] = input
        following = index + 1
        if following > 0:
            following = following % slots
        if index < 0:
            return None, (buffer, following)
        return buffer.roll(int(-index - 1), 0).movedim(0, self.time_dim), (buffer, following)


@only(in_continual, co.TransformerEncoder)
def _(net: co.TransformerEncoder, options: Options) -> nn.Module:
    first, stack = net.layers["layers"].layers["0"], net.layers["layers"].order
    attention = first.layers["self_attn"]
    without_bias = not attention.bias and first.layers["linear1"].bias and options.mends(_BIASES)
    arguments = _layer_arguments(first, options, own_biases=without_bias)
    if len(stack) > 2 or first.norm_first or not (attention.bias or without_bias):
        raise NoPeer("continual's encoders have one or two layers, norms behind, and biases")
    make = continual.TransformerEncoderLayerFactory(
        **arguments, sequence_len=attention.sequence_len
    )

    def factory(kind: Any) -> Any:
        layer = make(kind)
        branches = layer[0]
        if without_bias:
            branches.self_attn = _without_bias(branches.self_attn)
        unity = branches.residual
        if isinstance(unity, RetroactiveUnity) and options.mends(_RING):
            branches.residual = _Unity(unity.delay)
        return layer

    norm = nn.LayerNorm(net.layers["norm"].normalized_shape) if "norm" in net.layers else None
    return continual.TransformerEncoder(factory, len(stack), norm)


@only(in_continual, co.RecyclingPositionalEncoding)
def _(net: co.RecyclingPositionalEncoding, options: Options) -> nn.Module:
    return continual.RecyclingPositionalEncoding(
        net.embed_dim, net.num_embeds, net.learned, forward_update_index_steps=0
    )


class _Recycled(nn.Module):
    """Encodings in order, repeated from the first, with the parameter names of ``continual``."""

    def __init__(self, net: co.RecyclingPositionalEncoding):
        super().__init__()
        peer = continual.RecyclingPositionalEncoding(net.embed_dim, net.num_embeds, net.learned)
        self.pe, self.embeds = peer.pe, net.num_embeds

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe(torch.arange(x.shape[2], device=x.device) % self.embeds).T


@only(in_torch, co.RecyclingPositionalEncoding)
def _(net: co.RecyclingPositionalEncoding, options: Options) -> nn.Module:
    return _Recycled(net)


@only(in_torch, co.Window)
def _(net: co.Window, options: Options) -> nn.Module:
    return _Unfolded(net.steps)


class _Unfolded(nn.Module):
    """Windows of time as a further axis."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(2, self.steps, 1)
