"""How attention is computed: of queries over the tokens of a window.

Tokens are ``(..., N, H, D)``: N tokens in H heads of D channels. The order of keys does not matter,
so that a step attends over a ring as it lies.
"""

import jax
import jax.numpy as jnp
from jax import Array

from cojax.ops.precision import accumulated


def attention_weights(query: Array, key: Array) -> Array:
    """``softmax(q k / sqrt(D))`` in each head: ``(..., H, Q, N)``, in float32 at least.

    The largest logit is taken off before any is exponentiated, so that none is too large, and no
    weight is ever corrected, so that no error adds up.
    """
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    wide = accumulated(query.dtype)
    logits = jnp.einsum("...qhd,...nhd->...hqn", query, key, preferred_element_type=wide)
    return jax.nn.softmax(logits, axis=-1)


def attended(weights: Array, value: Array) -> Array:
    """The weighted sums of values, heads side by side: ``(..., Q, H D)``."""
    out = jnp.einsum("...hqn,...nhd->...qhd", weights.astype(value.dtype), value)
    return out.reshape(*out.shape[:-2], -1)
