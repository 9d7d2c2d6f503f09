"""The base class of attention layers: projections into heads, and attention within them."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import glorot_uniform, normal, zeros
from jax.typing import DTypeLike

from cojax.checks import require_floating
from cojax.errors import InputError
from cojax.frames import Spec
from cojax.layers.arguments import require_positive, require_probability
from cojax.layers.dropout import Dropout
from cojax.layers.initializers import fan_in_uniform
from cojax.module import CoModule
from cojax.ops.attention import attended, attention_weights
from cojax.ops.product import from_heads, product, product_transposed, to_heads


class MultiheadAttention(CoModule):
    """Base class of attention layers: torch's projections, and the attention between their outputs.

    Source: ``torch.nn.MultiheadAttention``.
    """

    embed_dim: int
    num_heads: int
    dropout: float = 0.0
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    kdim: int | None = None
    vdim: int | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        require_positive(embed_dim=self.embed_dim, num_heads=self.num_heads)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"{self.embed_dim=} must be a multiple of {self.num_heads=}")
        require_probability(dropout=self.dropout)
        super().__post_init__()

    @property
    def _dims(self) -> tuple[int, int, int]:
        """The numbers of channels of queries, keys and values before projection."""
        return self.embed_dim, self.kdim or self.embed_dim, self.vdim or self.embed_dim

    @property
    def packed(self) -> bool:
        """Whether torch packs the projections of queries, keys and values into one tensor."""
        return self._dims == (self.embed_dim,) * 3

    def setup(self) -> None:
        embed, dtype = self.embed_dim, self.param_dtype
        # Separate kernels, though torch packs them: slicing a packed one would copy it at every
        # step. Those of keys and values keep the entries of a head together, the order in which
        # _found_among_tokens multiplies them.
        initial = _glorot_uniform_packed if self.packed else glorot_uniform()
        query, key, value = self._dims
        self.kernels = (
            self.param("q_proj_kernel", initial, (query, embed), dtype),
            self.param("k_proj_weight", initial, (embed, key), dtype),
            self.param("v_proj_weight", initial, (embed, value), dtype),
        )
        self.offsets: tuple[Array | None, ...] = (None,) * 3
        self.out_offset: Array | None = None
        if self.bias:
            offsets = self.param("in_proj_bias", zeros, (3 * embed,), dtype)
            self.offsets = tuple(jnp.split(offsets, 3))
            self.out_offset = self.param("out_proj_bias", zeros, (embed,), dtype)
        self.extra: tuple[Array, ...] = ()
        if self.add_bias_kv:
            self.extra = tuple(
                self.param(name, normal(embed**-0.5), (embed,), dtype)
                for name in ("bias_k", "bias_v")
            )
        self.drop = Dropout(self.dropout)
        self.out_kernel = self.param("out_proj_kernel", fan_in_uniform(embed), (embed,) * 2, dtype)

    @nn.nowrap
    def _require_tokens(self, x: Any, space: int) -> Spec:
        """Checks the shapes of queries, keys and values, and returns the spec of the queries."""
        streams = three_streams(x)
        axes = ("batch", "channel", "token")[: 2 + space]
        if len(streams) != 3 or any(isinstance(stream, tuple) for stream in streams):
            raise InputError(
                f"{type(self).__name__} takes one stream, or three: queries, keys and values; got "
                f"{len(streams)}"
            )
        for name, stream, channels in zip(
            ("query", "key", "value"), streams, self._dims, strict=True
        ):
            require_floating(stream, self)
            if len(stream.shape) != 2 + space or stream.shape[1] != channels:
                raise InputError(
                    f"{type(self).__name__} expects steps ({', '.join(axes)}) with {channels} "
                    f"channels for its {name}, got a step of shape {stream.shape}"
                )
        return streams[0]

    def _queries(self, tokens: Array) -> Array:
        """Projects tokens ``(..., C)`` to queries ``(..., H, D)``."""
        return self._in_heads(product(tokens, self.kernels[0].astype(tokens.dtype)), 0)

    def _keys_and_values(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Projects tokens ``(..., C)`` to keys and values ``(..., H, D)``."""
        keys, values = (
            self._in_heads(product_transposed(tokens, self.kernels[i].astype(tokens.dtype)), i)
            for i, tokens in enumerate((key, value), 1)
        )
        return keys, values

    def _in_heads(self, projected: Array, which: int) -> Array:
        """Adds the bias of queries, keys or values, and splits ``(..., E)`` to ``(..., H, D)``."""
        offset = self.offsets[which]
        if offset is not None:
            projected = projected + offset.astype(projected.dtype)
        head = projected.shape[-1] // self.num_heads
        return projected.reshape(*projected.shape[:-1], self.num_heads, head)

    @property
    def _tokens_alone(self) -> bool:
        """Whether all keys and values are projections of tokens."""
        return not (self.add_bias_kv or self.add_zero_attn)

    @nn.nowrap
    def _spares_projections(self, queries: int, among: int, tokens: int) -> bool:
        """Whether it takes fewer multiplications not to project tokens to keys and values.

        Args:
          queries: the number of tokens that attend.
          among: the number of tokens that each attends to.
          tokens: the number of tokens in total.
        """
        _, *channels = self._dims
        embed, both = self.embed_dim, sum(channels)
        projected = tokens * both * embed + queries * among * 2 * embed
        as_they_are = queries * both * (embed + self.num_heads * among)
        return self._tokens_alone and as_they_are < projected

    def _attention(self, query: Array, *parts: tuple[Array, Array], train: bool) -> Array:
        """Attends with queries ``(..., H, Q, D)`` to keys ``(..., H, N, D)``: ``(..., Q, E)``.

        Keys and values are given in parts, either projected or as the tokens ``(..., N, C)`` that
        they are projections of.
        """
        query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        if parts[0][0].ndim < query.ndim:
            y = self._found_among_tokens(heads_first(query), parts, train)
        else:
            y = heads_first(self._found(query, parts, train))
        y = product(lax.collapse(y, y.ndim - 2), self.out_kernel.astype(y.dtype))
        return y if self.out_offset is None else y + self.out_offset.astype(y.dtype)

    def _found(self, query: Array, parts: Sequence[tuple[Array, Array]], train: bool) -> Array:
        """Returns the weighted sums ``(..., H, Q, D)`` of values."""
        pairs = [*parts]
        if self.extra:
            bias_k, bias_v = self.extra
            pairs.append((self._as_token(bias_k, query), self._as_token(bias_v, query)))
        if self.add_zero_attn:
            pairs.append((self._as_token(jnp.zeros((self.embed_dim,)), query),) * 2)
        keys, values = zip(*pairs, strict=True)
        return attended(self.drop.clip(attention_weights(query, keys), train=train), values)

    def _found_among_tokens(
        self, query: Array, parts: Sequence[tuple[Array, Array]], train: bool
    ) -> Array:
        """Returns the weighted sums ``(..., Q, H, D)`` for queries ``(..., Q, H, D)`` and tokens.

        ``q . (W_k x) = (W_k^T q) . x``, and the sum of ``a (W_v x)`` is ``W_v`` times the sum of
        ``a x``. So the queries and the sums are projected, twice for each query, instead of each
        token. The bias of keys adds the same to all logits of a query, which the softmax ignores.
        """
        *batch, asking, heads, _ = query.shape
        of_keys, of_values = (
            kernel.astype(query.dtype).reshape(heads, -1, kernel.shape[-1])
            for kernel in self.kernels[1:]
        )
        query = lax.collapse(from_heads(query, of_keys), len(batch), len(batch) + 2)
        keys, values = zip(*parts, strict=True)
        weights = self.drop.clip(attention_weights(query, keys), train=train)
        sums = attended(weights, values)
        sums = sums.reshape(*batch, asking, heads, sums.shape[-1])
        y = to_heads(sums, of_values)
        if (offset := self.offsets[2]) is not None:
            total = weights.sum(-1).reshape(*batch, asking, heads, 1).astype(y.dtype)
            y = y + total * offset.astype(y.dtype).reshape(heads, -1)
        return y

    @nn.nowrap
    def _as_token(self, token: Array, query: Array) -> Array:
        """Broadcasts a token ``(E,)`` to ``(..., H, 1, D)`` for queries ``(..., H, Q, D)``."""
        *batch, heads, _, channels = query.shape
        token = token.astype(query.dtype).reshape(heads, 1, channels)
        return jnp.broadcast_to(token, (*batch, *token.shape))


def _glorot_uniform_packed(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draws a kernel as torch does, which packs three into one with three times the outputs."""
    bound = math.sqrt(6 / (shape[0] + 3 * shape[1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def three_streams(streams: Any) -> Any:
    """Returns queries, keys and values: all of one stream, unless each has its own."""
    return streams if isinstance(streams, tuple) else (streams,) * 3


def heads_first(tokens: Array) -> Array:
    """Transposes ``(..., N, H, D)`` to ``(..., H, N, D)``, or back."""
    return jnp.swapaxes(tokens, -3, -2)
