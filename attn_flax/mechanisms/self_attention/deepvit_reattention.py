"""Re-attention of DeepViT.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    α_ij = softmax_j(q_iᵀ k_j / √d)     for each head
    β_ij = norm(Θ α_ij + b)             where α_ij and β_ij are vectors, a number for each head
    y_i = W_O [Σ_j β_ij v_j]_heads + b_O

where i and j are tokens, or the positions of a map, d = c/heads, and norm is a batch normalisation of each head's map
over examples and pairs of tokens. In deep networks the maps of successive layers grow alike; those of one layer's heads
do not, and are mixed to new ones. The weights have any sign. All rows of a head sum to the same number: in training, n
times what norm adds for that head, which is zero at first, and b cancels.

Differs from the paper: Θ is transposed there; the mixture's bias b, which its equation does not have, and the batch
normalisation, which it does not name, are those of the authors' code.

Errors elsewhere: vit-pytorch normalises over the heads of each pair of tokens, by a layer normalisation, mixes without
a bias, and starts Θ as standard normal numbers.

Source: Zhou, Kang, Jin, Yang, Lian, Jiang, Hou and Feng, "DeepViT: Towards Deeper Vision Transformer" (2021),
arXiv:2103.11886; compared with the authors' code, zhoudaquan/dvit_repo.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.mechanisms.self_attention.talking_heads import attend_by_heads, mix_heads


def deepvit_reattention_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b m k d"], mix: Callable, normalize: Callable
) -> Float[Array, "*b k n m"]:
    """β of every head, a row for each token that asks and a column for each that is asked.

    Args:
        q: the queries.
        k: the keys.
        mix: α -> Θ α + b, any callable from (*b, n, m, k), with the heads last.
        normalize: norm, likewise.
    """
    return mix_heads(ops.dot_product_attention_weights(q, k), lambda alpha: normalize(mix(alpha)))


def deepvit_reattention(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b m k d"],
    v: Float[Array, "*b m k e"],
    mix: Callable,
    normalize: Callable,
) -> Float[Array, "*b n k e"]:
    """Σ_j β_ij v_j for each head, with the β of `deepvit_reattention_weights`.

    >>> q, k, v = jnp.zeros((1, 1, 2)), jnp.ones((2, 1, 2)), jnp.array([[[1.0]], [[3.0]]])
    >>> deepvit_reattention(q, k, v, lambda alpha: 2 * alpha, lambda mixed: mixed - 1)  # α is 1/2, so β is 0
    Array([[[0.]]], dtype=float32)
    """
    return attend_by_heads(deepvit_reattention_weights(q, k, mix, normalize), v)


class ReAttention(MultiHeadSelfAttention):
    """Self-attention over the positions of maps, or over tokens, whose heads mix their weights, which are normalised.

    Parameters: 4c² + c + k² + 3k for k heads, and 3c with `qkv_bias`. Multiply-adds: 4n·c² + 2n²·c + n²·k². The maps of
    all heads are in memory at once.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        qkv_bias: whether queries, keys and values have biases; the output and the mixture have.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; at the call, channels or
            axes that do not fit, or a map of more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = False,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, num_heads=num_heads, qkv_bias=qkv_bias, num_spatial_dims=num_spatial_dims, **layer)
        self.mix = nnx.Linear(num_heads, num_heads, **layer)
        self.norm = BatchNorm(num_heads, **layer)

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n n"]:
        """β of every head, positions in row-major order."""
        q, k, _ = self.split(self._tokens(x))
        return deepvit_reattention_weights(q, k, self.mix, self.norm)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        q, k, v = self.split(self._tokens(x))
        return self.join(deepvit_reattention(q, k, v, self.mix, self.norm)).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        plain, k, n = super().cost(shape), self.num_heads, math.prod(shape[:-1])
        return Cost(plain.parameters + k * k + 3 * k, plain.multiply_adds + n * n * k * k)
