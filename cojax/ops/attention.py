"""Attention of queries over the tokens of a window.

Keys and values are ``(..., H, N, D)``: N tokens of D channels in each of H heads. They are thus
multiplied in the layout in which they are stored; with the axis of tokens before that of heads they
would be transposed first (a step takes 0.28 ms instead of 0.88: 8 streams, 8 heads of 128 channels,
64 tokens). They are given in parts, which are never concatenated: the remembered tokens, in the
order in which they are stored, since the order of keys does not matter, and the new ones.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cojax.ops.precision import accumulated
from cojax.ops.product import times, times_transposed


def attention_weights(query: Array, keys: Sequence[Array]) -> Array:
    """Returns the softmax of ``q k``, ``(..., Q, N)``, in float32 at least.

    The largest logit is subtracted before exponentiation, so that none is too large, and weights
    are never updated incrementally, so that no error accumulates. Of queries and keys, the more
    numerous are the left operand of the product: with 63 tokens of 1024 channels and 8 queries in
    each of 8 streams, it takes 0.17 ms with the tokens on the left and 0.55 ms with them on the
    right.
    """
    wide = accumulated(query.dtype)
    if all(query.shape[-2] >= key.shape[-2] for key in keys):
        logits = [times_transposed(query, key, wide) for key in keys]
        return jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
    logits = [times_transposed(key, query, wide) for key in keys]
    return jax.nn.softmax(jnp.concatenate(logits, axis=-2), axis=-2).mT


def attended(weights: Array, values: Sequence[Array]) -> Array:
    """Returns the weighted sums of the values, ``(..., Q, D)``."""
    sizes = [value.shape[-2] for value in values]
    parts = jnp.split(weights.astype(values[0].dtype), np.cumsum(sizes)[:-1], axis=-1)
    sums = [times(part, value) for part, value in zip(parts, values, strict=True)]
    return functools.reduce(jnp.add, sums)
