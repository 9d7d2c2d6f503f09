"""Multi-head attention over the last tokens of a stream, and over the tokens of a window.

Each token of a stream is projected once, when it arrives, and its key and value (and query) are
kept in rings; or the tokens themselves are kept, and only the few queries are projected. Every step
computes its attention weights anew. No sum is corrected from step to step, so errors do not
accumulate, and no logit is too large to exponentiate.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from cojax.buffers import Counter, following, read, rolled, unrolled, write
from cojax.chunks import join, met
from cojax.errors import InputError
from cojax.frames import Spec, State, flat_streams, map_streams
from cojax.layers.arguments import require_positive
from cojax.layers.multihead import MultiheadAttention, heads_first, three_streams
from cojax.module import TimeLocal
from cojax.ops.windows import gathered
from cojax.timing import Axis, Timing, windowed


class _StreamAttention(MultiheadAttention):
    """Base class of attention over the last ``sequence_len`` tokens of a stream."""

    sequence_len: int | None = None

    def __post_init__(self) -> None:
        require_positive(sequence_len=self.sequence_len)
        super().__post_init__()

    @property
    def _length(self) -> int:
        return self.sequence_len or 0

    @property
    def _window(self) -> Axis:
        return Axis(self._length, 1, 0)

    @property
    def _remembers_queries(self) -> bool:
        """Whether tokens older than the newest attend, so that queries are kept."""
        raise NotImplementedError

    @nn.nowrap
    def _asking(self, tokens: Array) -> Array:
        """Returns the tokens of a clip ``(B, T, ...)`` that attend."""
        return tokens

    def _over_windows(self, query: Array, key: Array, value: Array, train: bool) -> Array:
        """Returns the attention of queries ``(B, T', H, D)`` over every window; time comes third.

        Keys and values are ``(B, T, H, D)``, or the tokens ``(B, T, C)`` that they are projected
        from.
        """
        raise NotImplementedError

    @property
    def timing(self) -> Timing:
        return windowed(self._window)

    @property
    def _counter(self) -> Counter:
        return Counter.for_timing(self.timing, slots=max(self._length - 1, 1))

    def clip(self, x: Any, train: bool = False) -> Array:
        self.require_length(flat_streams(x)[0].shape[2])
        query, key, value = three_streams(map_streams(lambda stream: jnp.moveaxis(stream, 2, 1), x))
        return self._over_windows(self._queries(self._asking(query)), key, value, train)

    @nn.nowrap
    def _remembers(self, x: Any) -> tuple[str, ...]:
        """Returns the names of the rings in the state."""
        if self._length == 1:
            return ()
        queries = ("query",) if self._remembers_queries else ()
        return (*queries, "key", "value")

    def fresh_state(self, x: Any) -> State:
        tokens = flat_streams(x)[0]
        steps, head = self._length - 1, self.embed_dim // self.num_heads
        sizes = {"token": (steps, self.embed_dim)}
        rings = {
            name: jnp.zeros(
                (tokens.shape[0], *sizes.get(name, (self.num_heads, steps, head))), tokens.dtype
            )
            for name in self._remembers(x)
        }
        return {**rings, **self._counter.fresh()}

    def _new(self, state: State, tokens: Any) -> dict[str, Array]:
        """Returns the query of the newest token, or those of a chunk, and what is kept in rings."""
        query, key, value = three_streams(tokens)
        new = {"query": self._queries(query)}
        if "token" in state:
            return {**new, "token": key}
        keys, values = self._keys_and_values(key, value)
        return {**new, "key": keys, "value": values}

    def step(self, state: State, signal: Any, train: bool = False) -> tuple[Any, State]:
        tokens = map_streams(lambda each: each.clean(), signal)
        arrived, count = met(flat_streams(signal), flat_streams(tokens)[0]), self._counter.of(state)
        after, emitted = self._counter.advance(state, arrived), arrived.emitted(count, self.timing)
        new = self._new(state, tokens)
        key, value = _keys_and_values_in(new)
        among = [(key[..., None, :], value[..., None, :])]
        if self._length > 1:
            among.append(_keys_and_values_in(state))
        query = self._asks(state.get("query"), new["query"], count)
        found = self._attention(query, *among, train=train)
        # The rings are written only after the attention, when all of them have been read.
        count = following(count, found)
        for name, ring in state.items():
            if name in new:
                after[name] = write(ring, new[name], count, arrived.valid, axis=ring.ndim - 2)
        y = self._answer(found)
        return arrived.leaves(y, emitted, self.timing), after

    def _asks(self, memory: Array | None, query: Array, count: Array | int) -> Array:
        """Returns a step's queries ``(B, H, Q, D)``, given a ring of old ones and the newest."""
        raise NotImplementedError

    def _answer(self, found: Array) -> Array:
        """Returns the output of a step, given the result of attention ``(B, Q, E)``."""
        raise NotImplementedError

    def chunk(self, state: State, chunk: Any) -> tuple[Any, State]:
        tokens = map_streams(lambda each: jnp.moveaxis(each.clean(), 2, 1), chunk)
        arrived = met(flat_streams(chunk), flat_streams(chunk)[0].value)
        count = self._counter.of(state)
        after = self._counter.advance(state, arrived)
        every = self._new(state, tokens)
        for name, ring in state.items():
            if name in every:
                memory = unrolled(_time_second(ring), count)
                every[name] = join(memory, every[name], arrived.blank)
                newest = rolled(every[name], self._length - 1, self._counter.of(after))
                after[name] = _time_second(newest)
        query = self._asking(every["query"]) if "query" in state else every["query"]
        y = self._over_windows(query, *_keys_and_values_in(every), train=False)
        return arrived.leaves(y, arrived.emitted(count, self.timing), self.timing), after


def _keys_and_values_in(named: Mapping[str, Array]) -> tuple[Array, Array]:
    """Returns keys and values, or, for each, the tokens that they are projected from."""
    if "token" in named:
        return named["token"], named["token"]
    return named["key"], named["value"]


def _time_second(ring: Array) -> Array:
    """Transposes ``(B, H, N, D)`` to ``(B, N, H, D)`` or back; returns ``(B, N, C)`` unchanged."""
    return jnp.swapaxes(ring, 1, 2) if ring.ndim == 4 else ring


class SingleOutputMultiheadAttention(_StreamAttention):
    """Attention of one token, by default the newest, over the last ``sequence_len`` tokens.

    The keys and values of the last tokens are kept, so that a step projects only one token. If
    there are no more than twice as many tokens as a head has channels, the tokens themselves are
    kept instead, which takes half the memory. They are then not projected at all: the query is
    projected into their space, and the result of attention out of it.

    Source: ``continual.SingleOutputMultiheadAttention``, with the weights of
    ``torch.nn.MultiheadAttention``; Hedegaard et al., "Continual Transformers: Redundancy-Free
    Attention for Online Inference", ICLR 2023, https://arxiv.org/abs/2201.06268.

    Example::

        mha = co.SingleOutputMultiheadAttention(embed_dim=32, num_heads=4, sequence_len=8)
        variables = mha.init(jax.random.key(0), method="declare")
        y = mha.apply(variables, jnp.ones((1, 32, 10)))
        assert y.shape == (1, 32, 3)  # one for each window of 8

    Attributes:
      embed_dim: the number of channels of queries and of the output.
      num_heads: the number of heads that these are split into.
      dropout: the probability of dropping an attention weight in training.
      bias: whether the projections have biases.
      add_bias_kv: whether to append a learnt token to keys and values.
      add_zero_attn: whether to append a token of zeros to keys and values.
      kdim, vdim: the number of channels of keys and of values, if other than ``embed_dim``.
      param_dtype: the dtype of the parameters. Computation is in the dtype of the input, except for
        the softmax, which is in float32 at least.
      sequence_len: the number of tokens that are attended over.
      query_index: the index of the attending token among them; -1 is the newest.
      single_output_forward: whether ``forward`` has the outputs of a stream, one for every window
        of ``sequence_len`` tokens. Otherwise ``forward`` equals ``torch.nn.MultiheadAttention``: in
        a clip of any length, every token attends to all, and a stream has different outputs.

    Shapes:
      clip ``(B, embed_dim, T)`` to ``(B, embed_dim, T - sequence_len + 1)`` (``T`` without
      ``single_output_forward``); step ``(B, embed_dim)`` to the same; or three streams: queries,
      keys ``(B, kdim, T)`` and values ``(B, vdim, T)``. State ``token`` ``(B, sequence_len - 1,
      embed_dim)``, if ``sequence_len <= 2 embed_dim / num_heads`` and there is one stream, without
      ``add_bias_kv`` and ``add_zero_attn``; otherwise ``key`` and ``value`` ``(B, num_heads,
      sequence_len - 1, embed_dim / num_heads)``; and ``query``, of the same shape, unless the
      newest token attends; ``count`` ``()``.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    query_index: int = -1
    single_output_forward: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -self._length <= self.query_index < self._length:
            raise ValueError(f"{self.query_index=} is out of range for {self.sequence_len} tokens")

    @property
    def query_place(self) -> int:
        """The index of the query among the tokens, counted from the oldest."""
        return self.query_index % self._length

    @property
    def _remembers_queries(self) -> bool:
        return self.query_place < self._length - 1

    @nn.nowrap
    def _remembers(self, x: Any) -> tuple[str, ...]:
        """Keeps the tokens alone, for half the memory, unless attention to them costs too much.

        Every head multiplies all of their channels, twice. With twice as many tokens as a head has
        channels, that costs as much as the four kernels.
        """
        names = super()._remembers(x)
        few = self._length <= 2 * (self.embed_dim // self.num_heads)
        if names and few and self._tokens_alone and not isinstance(x, tuple):
            return (*names[:-2], "token")
        return names

    def output_spec(self, x: Any) -> Spec:
        return self._require_tokens(x, space=0)

    def clip(self, x: Any, train: bool = False) -> Array:
        if self.single_output_forward:
            return super().clip(x, train)
        tokens = map_streams(lambda stream: jnp.moveaxis(stream, 2, 1), x)
        query, *pair = three_streams(tokens)
        key, value = map(heads_first, self._keys_and_values(*pair))
        found = self._attention(heads_first(self._queries(query)), (key, value), train=train)
        return jnp.moveaxis(found, 1, 2)

    @nn.nowrap
    def _asking(self, tokens: Array) -> Array:
        outputs = tokens.shape[1] - self._length + 1
        return tokens[:, self.query_place : self.query_place + outputs]

    def _over_windows(self, query: Array, key: Array, value: Array, train: bool) -> Array:
        if key.ndim < query.ndim and not self._spares_projections(
            queries=query.shape[1], among=self._length, tokens=key.shape[1]
        ):
            key, value = self._keys_and_values(key, value)
        in_heads = key.ndim == query.ndim
        key, value = (gathered(each, self._window) for each in (key, value))
        if in_heads:
            key, value = heads_first(key), heads_first(value)
        found = self._attention(query[:, :, :, None], (key, value), train=train)
        return jnp.moveaxis(found[:, :, 0], 1, 2)

    def _asks(self, memory: Array | None, query: Array, count: Array | int) -> Array:
        if memory is not None:
            held = self._length - 1 - self.query_place
            query = read(memory, (count - held) % memory.shape[2], axis=2)
        return query[:, :, None]

    def _answer(self, found: Array) -> Array:
        return found[:, 0]


class RetroactiveMultiheadAttention(_StreamAttention):
    """Attention of the last ``sequence_len`` tokens to each other, for all of them at every step.

    The queries, keys and values of the last tokens are kept, so that a step projects only one
    token. The outputs of the earlier tokens are recomputed from them, which costs little compared
    with the layers after it, which process all tokens. (``continual`` corrects the sums of the
    previous step by the token that was added and the one that was removed. That loses precision,
    and more so the larger the logits are.)

    Source: ``continual.RetroactiveMultiheadAttention``, with the weights of
    ``torch.nn.MultiheadAttention``; Hedegaard et al., "Continual Transformers: Redundancy-Free
    Attention for Online Inference", ICLR 2023, https://arxiv.org/abs/2201.06268.

    Example::

        mha = co.RetroactiveMultiheadAttention(embed_dim=32, num_heads=4, sequence_len=8)
        variables = mha.init(jax.random.key(0), method="declare")
        y = mha.apply(variables, jnp.ones((1, 32, 10)))
        assert y.shape == (1, 32, 3, 8)  # the 8 tokens of each of 3 windows

    Attributes:
      embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, param_dtype,
        sequence_len: as for :class:`SingleOutputMultiheadAttention`.

    Shapes:
      clip ``(B, embed_dim, T)`` to ``(B, embed_dim, T - sequence_len + 1, sequence_len)``; step
      ``(B, embed_dim)`` to ``(B, embed_dim, sequence_len)``, oldest first; or three streams:
      queries, keys ``(B, kdim, T)`` and values ``(B, vdim, T)``. State ``query``, ``key``,
      ``value`` ``(B, num_heads, sequence_len - 1, embed_dim / num_heads)``, ``count`` ``()``.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    _remembers_queries = True

    def output_spec(self, x: Any) -> Spec:
        query = self._require_tokens(x, space=0)
        return Spec((*query.shape, self._length), query.dtype)

    def _over_windows(self, query: Array, key: Array, value: Array, train: bool) -> Array:
        if key.ndim < query.ndim:
            key, value = self._keys_and_values(key, value)
        query, key, value = (
            heads_first(gathered(tokens, self._window)) for tokens in (query, key, value)
        )
        return jnp.moveaxis(self._attention(query, (key, value), train=train), -1, 1)

    def _asks(self, memory: Array | None, query: Array, count: Array | int) -> Array:
        newest = query[:, :, None]
        if memory is None:
            return newest
        return jnp.concatenate([unrolled(memory, count, axis=2), newest], axis=2)

    def _answer(self, found: Array) -> Array:
        return jnp.swapaxes(found, 1, 2)


class WindowMultiheadAttention(MultiheadAttention, TimeLocal):
    """Attention among the tokens of a window, all given at once as the last axis of every step.

    It is used after :class:`RetroactiveMultiheadAttention`, or over any spatial axis.

    Source: ``torch.nn.MultiheadAttention``.

    Example::

        mha = co.WindowMultiheadAttention(embed_dim=32, num_heads=4)
        variables = mha.init(jax.random.key(0), method="declare")
        assert mha.apply(variables, jnp.ones((1, 32, 5, 8))).shape == (1, 32, 5, 8)

    Attributes:
      embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, param_dtype: as
        for :class:`SingleOutputMultiheadAttention`.
      query_index: the index of the one token that attends; None for all tokens.

    Shapes:
      clip ``(B, embed_dim, T, N)`` and step ``(B, embed_dim, N)``, kept, without ``N`` if one token
      attends; or three streams: queries, keys ``(B, kdim, T, N)`` and values ``(B, vdim, T, N)``.

    Raises:
      ValueError: at construction, for incompatible arguments.
      InputError: for an input of the wrong rank or channel count, or a dtype that is not floating.
    """

    query_index: int | None = None

    def output_spec(self, x: Any) -> Spec:
        query = self._require_tokens(x, space=1)
        if self.query_index is None:
            return query
        tokens = query.shape[2]
        if not -tokens <= self.query_index < tokens:
            raise InputError(f"query_index={self.query_index} is out of range for {tokens} tokens")
        return Spec(query.shape[:2], query.dtype)

    def clip(self, x: Any, train: bool = False) -> Array:
        query, key, value = three_streams(
            map_streams(lambda stream: jnp.moveaxis(stream, 1, -1), x)
        )
        if self.query_index is not None:
            query = query[:, :, self.query_index, None]
        tokens = key.shape[2]
        if not self._spares_projections(queries=query.shape[2], among=tokens, tokens=tokens):
            key, value = map(heads_first, self._keys_and_values(key, value))
        query = heads_first(self._queries(query))
        y = jnp.moveaxis(self._attention(query, (key, value), train=train), -1, 1)
        return y if self.query_index is None else jnp.squeeze(y, -1)
