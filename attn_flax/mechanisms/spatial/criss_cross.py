"""Criss-cross attention.

    α_ij = softmax_j(q_iᵀ k_j)   over the h + w - 1 positions j in the row and the column of i
    x_i <- x_i + γ Σ_j α_ij v_j,   R times with the same layers

with 1×1 convolutions of x to c/8 features for q and k and c for v, and a learned number γ, zero at first. A position
looks along its row and its column only; after R = 2 passes it has heard from the whole map, over the two corners
between it and any other.

Differs from the paper: nothing. The 3×3 convolutions before and after belong to the paper's segmentation network.

Errors elsewhere: External-Attention-pytorch makes a single pass (as the authors' code does unless told otherwise; their
training tells it R = 2), and builds the matrix of -∞ that keeps a position from being counted twice anew for every
column of every example.

Source: Huang, Wang, Wei, Huang, Shi, Liu and Huang, "CCNet: Criss-Cross Attention for Semantic Segmentation" (2019),
arXiv:1811.11721. Confirmed with the authors' code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote, reduced


def criss_cross_weights(x: Float[Array, "*b h w c"], query: Callable, key: Callable) -> Float[Array, "*b h w m"]:
    """α of one pass, h + w weights for each position: of its column from the top, then of its row from the left.

    They sum to one. The position itself is weighed in its row; its weight in its column is zero.

    Args:
        x: maps.
        query: x -> q, any callable on (*b, h, w, c).
        key: x -> k, likewise.
    """
    q, k = query(x), key(x)
    wide = ops.at_least_float32(q.dtype)
    column = jnp.einsum("...hwd,...gwd->...hwg", q, k, preferred_element_type=wide)
    row = jnp.einsum("...hwd,...hvd->...hwv", q, k, preferred_element_type=wide)
    row_of_query, row_of_key = (jax.lax.broadcasted_iota(jnp.int32, column.shape, column.ndim - i) for i in (3, 1))
    column = jnp.where(row_of_query == row_of_key, -jnp.inf, column)
    return ops.softmax(jnp.concatenate([column, row], axis=-1)).astype(q.dtype)


def criss_cross(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, value: Callable, *, gamma: Float[Array, ""] | float
) -> Float[Array, "*b h w c"]:
    """x_i + γ Σ_j α_ij v_j, one pass, with the α of `criss_cross_weights`.

    Args:
        x: maps.
        query: x -> q.
        key: x -> k.
        value: x -> v, to c features.
        gamma: γ.

    >>> x = jnp.array([[[1.0], [2.0]], [[6.0], [9.0]]])
    >>> criss_cross(x, lambda x: 0 * x, lambda x: x, lambda x: x, gamma=10.0)[0, 0]  # of 1, 2 and 6 the mean is 3
    Array([31.], dtype=float32)
    """
    h = x.shape[-3]
    weights, v = criss_cross_weights(x, query, key), value(x)
    of_column = jnp.einsum("...hwg,...gwc->...hwc", weights[..., :h], v)
    of_row = jnp.einsum("...hwu,...huc->...hwc", weights[..., h:], v)
    return x + gamma * (of_column + of_row)


class CrissCrossAttention(nnx.Module):
    """Criss-cross attention on maps of any size, the identity at first.

    Parameters: 2(c·d + d) + c² + c + 1 with d = ⌊c/r⌋. Multiply-adds: R times n·c·(2d + c) + n·(h + w)·(d + c).

    Args:
        channels: c.
        reduction: r, of the queries and keys.
        recurrence: R.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        recurrence: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d = reduced(channels, reduction)
        check(recurrence >= 1, f"recurrence must be at least 1, got {recurrence}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(channels, d, **layer)
        self.key = nnx.Linear(channels, d, **layer)
        self.value = nnx.Linear(channels, channels, **layer)
        self.gamma = nnx.Param(jnp.zeros((), param_dtype))
        self.recurrence = recurrence

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b r h w m"]:
        """α of each of the R passes, as `criss_cross_weights` lays them out."""
        *before_each, _ = self._passes(x)
        return jnp.stack([criss_cross_weights(x, self.query, self.key) for x in before_each], axis=-4)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """x after R passes."""
        return self._passes(x)[-1]

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, d = h * w, self.query.out_features
        one_pass = n * c * (2 * d + c) + n * (h + w) * (d + c)
        return Cost(2 * (c * d + d) + c * c + c + 1, self.recurrence * one_pass)

    def _passes(self, x):
        """x, and what it is after each pass."""
        check_map(x, self.query.in_features)
        passes = [promote(x, self.query)]
        gamma = self.gamma[...].astype(passes[0].dtype)
        for _ in range(self.recurrence):
            passes.append(criss_cross(passes[-1], self.query, self.key, self.value, gamma=gamma))
        return passes
