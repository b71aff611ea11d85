"""ReLU linear attention.

    [q, k, v]_0 = W x,   [q, k, v]_s = G_s (D_s * [q, k, v]_0)      for each scale s
    α_ij = relu(q_i)ᵀ relu(k_j) / (Σ_j relu(q_i)ᵀ relu(k_j) + ε)       for each head of each scale
    y_i = BN(W_O [Σ_j α_ij v_j]_heads)

where i and j are the positions of a map, D_s is a depthwise convolution with a window of s×s and G_s a linear map of
each head's queries, of its keys and of its values to as many features. A scale's tokens are made of small
neighbourhoods, which gives the global sums a sense of what is near ("LiteMLA"). Since the similarity is a product of
features, Σ_j relu(k_j) v_jᵀ is summed once for all queries, in float32 whatever the type of the layers: the sums over a
map overflow in float16 and lose their last terms in bfloat16.

Differs from the paper: nothing. ε, which its equation does not have, is 1e-5 as in timm's code; the authors' has
1e-15.

Source: Cai, Li, Hu, Gan and Han, "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction"
(2023), arXiv:2205.14756. Confirmed with the authors' code and timm's.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv
from attn_flax.mechanisms.layout import check_map, flatten_positions, join_heads, promote


def relu_linear_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b m k d"], *, epsilon: float = 1e-5
) -> Float[Array, "*b k n m"]:
    """α of every head, none below zero; a row sums to d/(d+ε), where d is its sum of similarities.

    Args:
        q: the queries of each head.
        k: the keys.
        epsilon: ε.
    """
    scores = ops.dot_product_scores(*(jnp.swapaxes(jax.nn.relu(u), -2, -3) for u in (q, k)))
    return (scores / (scores.sum(-1, keepdims=True) + epsilon)).astype(q.dtype)


def relu_linear_attention(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b m k d"], v: Float[Array, "*b m k e"], *, epsilon: float = 1e-5
) -> Float[Array, "*b n k e"]:
    """Σ_j α_ij v_j for each head, with the α of `relu_linear_weights`, none of which is computed.

    >>> q, v = jnp.full((1, 1, 1), 1e-3), jnp.full((1, 1, 1), 11.0)
    >>> relu_linear_attention(q, q, v).round(4)  # 11·1e-6/(1e-6 + ε)
    Array([[[1.]]], dtype=float32)
    """
    wide = ops.at_least_float32(v.dtype)
    q, k = (jax.nn.relu(u.astype(wide)) for u in (q, k))
    sums = jnp.einsum("...mkd,...mke->...kde", k, v.astype(wide))
    denominator = jnp.einsum("...nkd,...kd->...nk", q, k.sum(-3)) + epsilon
    return (jnp.einsum("...nkd,...kde->...nke", q, sums) / denominator[..., None]).astype(v.dtype)


class ReluLinearAttention(nnx.Module):
    """ReLU linear attention at several scales, on maps of any size.

    Parameters: with t = heads·d, 3c·t + (1 + number of scales)·t·c + 2c, and 3t·(s² + d) for each scale s; 5c² + 101c
    by default, where d divides c. Multiply-adds: at each position the products among these, and
    (1 + number of scales)·t·(2d + 1).

    Args:
        channels: c.
        dim: d, the features of a head.
        num_heads: of each scale, by default ⌊c/d⌋.
        scales: the odd sizes of the windows.
        epsilon: ε.
        dtype: the type of the layers; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window, or fewer channels than features of a head, at construction; at the
            call, an input that is no map of these channels, or for `attention_map` a map of more than 1 GiB for an
            example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int = 8,
        num_heads: int | None = None,
        scales: Sequence[int] = (5,),
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(dim >= 1, f"dim must be at least 1, got {dim}.")
        num_heads = channels // dim if num_heads is None else num_heads
        check(num_heads >= 1, f"num_heads must be at least 1, got {num_heads} of {channels} channels, {dim} each.")
        check(all(s >= 1 and s % 2 for s in scales), f"scales must be odd sizes, got {tuple(scales)}.")
        layer = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = num_heads * dim
        pointwise = {"feature_group_count": 3 * num_heads, "conv_general_dilated": ops.grouped_conv, **layer}
        self.qkv = nnx.Linear(channels, 3 * width, **layer)
        self.aggreg = nnx.List(
            [
                nnx.Sequential(
                    DepthwiseConv(3 * width, (s, s), **layer), nnx.Conv(3 * width, 3 * width, (1, 1), **pointwise)
                )
                for s in scales
            ]
        )
        self.proj = nnx.Linear((1 + len(scales)) * width, channels, **layer)
        self.norm = BatchNorm(channels, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dim = dim
        self.epsilon = epsilon

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n n"]:
        """α of the heads without a window, then of those of each scale; positions in row-major order."""
        q, k, _ = self._split(x)
        return relu_linear_weights(q, k, epsilon=self.epsilon)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        o = join_heads(relu_linear_attention(*self._split(x), epsilon=self.epsilon))
        return self.norm(self.proj(o)).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, heads_features = h * w, self.proj.in_features
        windows = [aggregate.layers[0].cost(n) for aggregate in self.aggreg]
        matrices = self.qkv.out_features * (c + self.dim * len(windows)) + heads_features * c
        return Cost(
            matrices + 2 * c + sum(window.parameters for window in windows),
            n * (matrices + heads_features * (2 * self.dim + 1)) + sum(window.multiply_adds for window in windows),
        )

    def _split(self, x):
        """q, k and v of the heads of all scales."""
        check_map(x, self.qkv.in_features)
        qkv = self.qkv(promote(x, self.qkv))
        features = jnp.concatenate([qkv, *(aggregate(qkv) for aggregate in self.aggreg)], axis=-1)
        tokens = flatten_positions(features, 2)
        return jnp.split(tokens.reshape(*tokens.shape[:-1], -1, 3 * self.dim), 3, axis=-1)
