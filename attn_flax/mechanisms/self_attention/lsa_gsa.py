"""Locally-grouped and global sub-sampled attention.

    y = GSA(LSA(x))

    LSA(x)_i = W_O [Σ_j α_ij v_j]_heads + b_O,   α_ij = softmax_j(q_iᵀ k_j / √d),   q, k, v = W x + b

where j are the positions in the window of i, M×M, the features are in heads of d, and GSA is the spatial-reduction
attention `sra`: every position asks a map of one summary for each cell of s×s. LSA, in windows that do not move, sees
what is near, and GSA carries it over the whole map, as a depthwise convolution is followed by one of 1×1.

LSA fills a map that M does not divide up with zeros below and on the right, which nobody sees.

Differs from the paper: there the two are in blocks of their own, each with norm, residual and perceptron; here is the
attention alone, and either part by itself is `LocallyGroupedAttention` and `SpatialReductionAttention`. The paper does
not say what becomes of the padding; the authors' code can hide it or let it be seen, calls the first "more reasonable
and accurate" and does the second.

Errors elsewhere: in timm's LSA the padding is seen, with the biases as its keys and values.

Source: Chu, Tian, Wang, Zhang, Ren, Wei, Xia and Shen, "Twins: Revisiting the Design of Spatial Attention in Vision
Transformers" (2021), arXiv:2104.13840. Confirmed with timm's code.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, count_heads, join_heads, promote, split_heads
from attn_flax.mechanisms.self_attention.sra import SpatialReductionAttention
from attn_flax.mechanisms.windows import cut_windows, join_windows, padded_size


def lsa_weights(
    x: Float[Array, "*b h w c"], qkv: Callable, *, window: int, num_heads: int
) -> Float[Array, "*b windows k n n"]:
    """α of every window and head, a row for each token that asks and a column for each that is asked.

    Args:
        x: maps.
        qkv: x -> [q, k, v], any callable from (*b, n, c) to their features side by side, each head by head.
        window: M. Windows of the padded map, and the tokens in one, are counted in row-major order.
        num_heads: k.
    """
    q, k, _ = split_heads(qkv(cut_windows(x, window)), 3, num_heads)
    return ops.dot_product_attention_weights(q, k, mask=_inside(x, window))


def lsa(
    x: Float[Array, "*b h w c"], qkv: Callable, project: Callable, *, window: int, num_heads: int
) -> Float[Array, "*b h w e"]:
    """LSA(x), with the α of `lsa_weights`; `project` is o -> W_O o + b_O.

    >>> x = jnp.array([[1.0], [3.0], [5.0]])[None]
    >>> qkv = lambda x: jnp.concatenate([0 * x, x, x], -1)
    >>> lsa(x, qkv, lambda o: o, window=2, num_heads=1).squeeze()  # the means of what the windows hold of the map
    Array([2., 2., 5.], dtype=float32)
    """
    q, k, v = split_heads(qkv(cut_windows(x, window)), 3, num_heads)
    o = ops.dot_product_attention(q, k, v, mask=_inside(x, window))
    return project(join_windows(join_heads(o), x.shape[-3:-1], window))


def _inside(x, window) -> Bool[Array, "windows 1 1 n"] | None:
    """Which tokens of each window lie in the map; None if all do."""
    size = x.shape[-3:-1]
    if padded_size(size, window) == size:
        return None
    return cut_windows(jnp.ones((*size, 1), bool), window)[:, None, None, :, 0]


class LocallyGroupedAttention(nnx.Module):
    """LSA on a map of any size.

    Parameters: 4c² + 4c. Multiply-adds: (3n' + n)·c² + 2n'·M²·c, for n positions, n' of them with the padding.

    Args:
        channels: c.
        head_dim: d, which must divide c.
        window: M.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; an input that is no map of
            these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int = 32,
        window: int = 7,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads = count_heads(channels, head_dim)
        check(window >= 1, f"window must be at least 1, got {window}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.window = window

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b windows k n n"]:
        """α of every window and head, as `lsa_weights` has them."""
        return lsa_weights(self._map(x), self.qkv, window=self.window, num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """LSA(x), in the layout of x."""
        return lsa(self._map(x), self.qkv, self.proj, window=self.window, num_heads=self.num_heads)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *size, c = shape
        n, padded = math.prod(size), math.prod(padded_size(size, self.window))
        return Cost(4 * c * c + 4 * c, (3 * padded + n) * c * c + 2 * padded * self.window**2 * c)

    def _map(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.qkv)


class SpatiallySeparableAttention(nnx.Module):
    """LSA, then GSA, on a map of any size from s×s.

    Parameters: 8c² + 8c, and s²·c² + 3c where s > 1. Multiply-adds: those of the parts.

    Args:
        channels: c.
        head_dim: d, which must divide c.
        window: M.
        sr_ratio: s; 8, 4, 2 and 1 in the stages of the authors' networks.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; an input that is no map of
            these channels, or one smaller than a cell, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int = 32,
        window: int = 7,
        sr_ratio: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.lsa = LocallyGroupedAttention(channels, head_dim=head_dim, window=window, **layer)
        self.gsa = SpatialReductionAttention(channels, num_heads=self.lsa.num_heads, sr_ratio=sr_ratio, **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Float[Array, "..."]]:
        """α of every head, of "lsa" (*b, windows, k, n, n) and of "gsa" (*b, k, n, m), in row-major order."""
        return {"lsa": self.lsa.attention_map(x), "gsa": self.gsa.attention_map(self.lsa(x))}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return self.gsa(self.lsa(x))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        costs = [part.cost(shape) for part in (self.lsa, self.gsa)]
        return Cost(sum(cost.parameters for cost in costs), sum(cost.multiply_adds for cost in costs))
