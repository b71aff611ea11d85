"""The precision in which statistics, normalisers and sums are computed."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The type in which to accumulate numbers of type `dtype`: float32, or wider where they are wider.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float32)
    (dtype('float32'), dtype('float32'))
    """
    return jnp.promote_types(dtype, jnp.float32)
