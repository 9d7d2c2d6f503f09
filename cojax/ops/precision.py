"""Half precision holds values; what becomes of them is computed in single."""

import jax.numpy as jnp
from jax import Array


def accumulated(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to sum in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Array) -> Array:
    """The same values in the dtype to sum in."""
    return x.astype(accumulated(x.dtype))
