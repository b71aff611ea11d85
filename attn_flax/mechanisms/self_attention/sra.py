"""Spatial-reduction attention, and its linear form.

    q = W_Q x + b_Q,   k = W_K z + b_K,   v = W_V z + b_V
    α_ij = softmax_j(q_iᵀ k_j / √d)     for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

    z = LN(F_R x)                       one vector for each square of R×R positions; z = x if R = 1
    z = GELU(LN(F_1 pool_p(x)))         linear: one for each of p×p bins that cover the map, p = 7

where i is a position of the map, j a square or a bin, d = c/heads, F_R an R×R convolution of stride R with a bias and
pool_p the averages of the bins. Every position asks a smaller map, R² times smaller or of always the same size, so that
the cost is R² times less, or linear in the positions.

Differs from the paper: nothing. GELU in the linear form is the second paper's. What is left of a map that R does not
divide, below and on the right, gives no keys, as in the authors' code. Norm and residual around it are the caller's.

Source: Wang, Xie, Li, Fan, Song, Liang, Lu, Luo and Shao, "Pyramid Vision Transformer: A Versatile Backbone for Dense
Prediction without Convolutions" (2021), arXiv:2102.12122; the linear form: the same, "PVT v2: Improved Baselines with
Pyramid Vision Transformer" (2022), arXiv:2106.13797. Confirmed with the authors' and timm's code.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm, gelu
from attn_flax.mechanisms.layout import check_heads, check_map, flatten_positions, join_heads, promote, split_heads


def sra_weights(
    x: Float[Array, "*b h w c"], query: Callable, key_value: Callable, reduce: Callable, *, num_heads: int
) -> Float[Array, "*b k n m"]:
    """α of every head, a row for each position of the map and a column for each of the reduced one, in row-major order.

    Args:
        x: maps.
        query: x -> W_Q x + b_Q, head by head.
        key_value: z -> [k, v], side by side, each head by head.
        reduce: x -> z, any callable from maps to smaller ones.
        num_heads: k.
    """
    q, k, _ = _heads(x, query, key_value, reduce, num_heads)
    return ops.dot_product_attention_weights(q, k)


def sra(
    x: Float[Array, "*b h w c"],
    query: Callable,
    key_value: Callable,
    reduce: Callable,
    project: Callable,
    *,
    num_heads: int,
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `sra_weights`; `project` is o -> W_O o + b_O.

    >>> x = jnp.array([[[1.0], [3.0], [8.0]]])
    >>> twice, first_two = lambda z: jnp.concatenate([0 * z, z], -1), lambda x: x[:, :2]
    >>> sra(x, lambda x: x, twice, first_two, lambda o: o, num_heads=1).squeeze()  # the mean of what there is to ask
    Array([2., 2., 2.], dtype=float32)
    """
    o = join_heads(ops.dot_product_attention(*_heads(x, query, key_value, reduce, num_heads)))
    return project(o.reshape(*x.shape[:-1], -1))


def _heads(x, query, key_value, reduce, num_heads):
    """q, k and v of each head."""
    asking, asked = (flatten_positions(features, 2) for features in (query(x), key_value(reduce(x))))
    return *split_heads(asking, 1, num_heads), *split_heads(asked, 2, num_heads)


class SpatialReductionAttention(nnx.Module):
    """Multi-head attention of all positions of a map to a smaller one.

    Parameters: 4c² + c, and 3c with `qkv_bias`; of the reduction R²c² + 3c, and none if R = 1 in the plain form.
    Multiply-adds, of n positions and m squares or bins: 2(n + m)c² + 2nm·c + mR²c², and those of pooling.

    Args:
        channels: c.
        num_heads: which must divide c.
        sr_ratio: R, the side of the squares; 1 in the linear form.
        pool: p of the linear form; by default the plain one.
        qkv_bias: whether queries, keys and values have biases; the output has.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, or squares in the linear form, at
            construction; an input that is no map of these channels, or smaller than a square, at the call, or for
            `attention_map` one whose map takes more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        sr_ratio: int = 2,
        pool: int | None = None,
        qkv_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(sr_ratio >= 1, f"sr_ratio must be at least 1, got {sr_ratio}.")
        check(pool is None or pool >= 1, f"pool must be at least 1, got {pool}.")
        check(pool is None or sr_ratio == 1, f"sr_ratio must be 1 in the linear form, got {sr_ratio}, pool={pool}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q = nnx.Linear(channels, channels, use_bias=qkv_bias, **layer)
        self.kv = nnx.Linear(channels, 2 * channels, use_bias=qkv_bias, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        is_reduced, square = sr_ratio > 1 or pool is not None, (sr_ratio, sr_ratio)
        self.sr = nnx.data(
            nnx.Conv(channels, channels, square, square, padding="VALID", **layer) if is_reduced else None
        )
        self.norm = nnx.data(LayerNorm(channels, epsilon=1e-5, **layer) if is_reduced else None)
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.pool = pool

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n m"]:
        """α of every head, from all positions to all squares or bins, both in row-major order."""
        return sra_weights(self._map(x), self.q, self.kv, self._reduce, num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return sra(self._map(x), self.q, self.kv, self._reduce, self.proj, num_heads=self.num_heads)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        (h, w, c), r = shape, self.sr_ratio
        n, m = h * w, self.pool**2 if self.pool else (h // r) * (w // r)
        biases = 4 * c if self.q.use_bias else c
        attention = 2 * (n + m) * c * c + 2 * n * m * c
        if self.sr is None:
            return Cost(4 * c * c + biases, attention)
        reduction = m * r * r * c * c + self._pooling(h, w, c)
        return Cost((4 + r * r) * c * c + biases + 3 * c, attention + reduction)

    def _pooling(self, h, w, c):
        """The averages as products, in the cheapest order."""
        p = self.pool
        if p is None or (h, w) == (p, p):
            return 0
        return min(p * c * w * (h + p), p * c * h * (w + p), p * p * h * w * (c + 1))

    def _reduce(self, x):
        if self.pool is not None:
            return gelu(self.norm(self.sr(ops.adaptive_average_pool(x, (self.pool, self.pool)))))
        return x if self.sr is None else self.norm(self.sr(x))

    def _map(self, x):
        check_map(x, self.proj.in_features)
        r = self.sr_ratio
        check(min(x.shape[-3:-1]) >= r, f"x must be a map of at least {r}×{r}, got shape {x.shape}.")
        return promote(x, self.proj)
