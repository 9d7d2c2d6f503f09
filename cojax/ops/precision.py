"""Precision: values may be stored in half precision, but are summed in single precision."""

import jax.numpy as jnp
from jax import Array


def accumulated(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype to sum in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Array) -> Array:
    """Returns the same values in the dtype to sum in."""
    return x.astype(accumulated(x.dtype))
