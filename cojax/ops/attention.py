"""How attention is computed: of queries over the tokens of a window.

Tokens are ``(..., H, N, D)``: in each of H heads N tokens of D channels. So they are multiplied as
they lie, where tokens in front of heads would be laid out anew first (a step of 8 streams, 8 heads
of 128 channels, among 64 tokens: 0.28 ms instead of 0.88). They come in parts, which are never put
together: what is remembered as it lies, since the order of keys does not matter, and what is new.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.ops.precision import accumulated


def attention_weights(query: Array, keys: Sequence[Array]) -> Array:
    """``softmax(q k / sqrt(D))`` in each head: ``(..., H, Q, N)``, in float32 at least.

    The largest logit is taken off before any is exponentiated, so that none is too large, and no
    weight is ever corrected, so that no error adds up.
    """
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    wide = accumulated(query.dtype)
    logits = [
        jnp.einsum("...qd,...nd->...qn", query, key, preferred_element_type=wide) for key in keys
    ]
    return jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)


def attended(weights: Array, values: Sequence[Array]) -> Array:
    """The weighted sums of values, heads side by side: ``(..., Q, H D)``."""
    sizes = [value.shape[-2] for value in values]
    parts = jnp.split(weights.astype(values[0].dtype), np.cumsum(sizes)[:-1], axis=-1)
    sums = [part @ value for part, value in zip(parts, values, strict=True)]
    out = jnp.swapaxes(functools.reduce(jnp.add, sums), -3, -2)
    return out.reshape(*out.shape[:-2], -1)
