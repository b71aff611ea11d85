"""The two products of attention in its quadratic form, with an n×m map between them."""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check, check_same_size
from attn_flax.ops.precision import at_least_float32

MAX_MAP_BYTES = 2**30


def dot_product_scores(q: Float[Array, "*b n d"], k: Float[Array, "*b m d"]) -> Float[Array, "*b n m"]:
    """e_ij = q_iᵀ k_j, accumulated and returned in float32 or wider.

    Raises:
        InputError: q and k differ in d; or one example's n×m map would take more than `MAX_MAP_BYTES` (1 GiB);
            nothing has been allocated by then.
    """
    check_same_size(q=q.shape, k=k.shape, axes=(-1, -1))
    dtype = at_least_float32(jnp.result_type(q, k))
    check_map_fits(q.shape[-2], k.shape[-2], dtype)
    return jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=dtype)


def attend(weights: Float[Array, "*b n m"], v: Float[Array, "*b m e"]) -> Float[Array, "*b n e"]:
    """o_i = Σ_j α_ij v_j, in the type of the values.

    Raises:
        InputError: the weights are not for as many keys as there are values.
    """
    check_same_size(weights=weights.shape, v=v.shape, axes=(-1, -2))
    return jnp.einsum("...nm,...me->...ne", weights, v).astype(v.dtype)


def check_map_fits(n: int, m: int, dtype: DTypeLike) -> None:
    """Raises InputError if an n×m map, computed in float32 or wider, would take more than `MAX_MAP_BYTES`."""
    dtype = at_least_float32(dtype)
    bytes_needed = n * m * dtype.itemsize
    check(
        bytes_needed <= MAX_MAP_BYTES,
        f"the attention map of {n} queries and {m} keys would need {bytes_needed / 2**30:.1f} GiB per example in "
        f"{dtype.name}, the limit is {MAX_MAP_BYTES / 2**30:.0f} GiB ({math.isqrt(MAX_MAP_BYTES // dtype.itemsize)} "
        "tokens each): attend at a lower resolution, or use a mechanism of linear cost.",
    )
