"""The article's attention between feature vectors.

For N vectors x_1 … x_N of dimension C (of an image: its h·w positions)

    a_i  = W_a x_i + b_a                              attention weights, by a fully connected layer or 1×1 convolution
    e_ij = a_iᵀ x_j                                   attention scores
    α_ij = softmax_j(e_ij)   or   e_ij / Σ_j e_ij     attention values
    o_i  = x_i + Σ_j α_ij x_j   or   Σ_j α_ij x_j     output features

The article contradicts itself twice: its equations divide by the plain sum and leave x_i out, its step-by-step text
takes the softmax and adds x_i. Both readings are here; the Module's defaults are those of the text, since with the
plain sum about half of the denominators are negative on random input and the weights are unbounded.

Source: the article's sections 3.1 to 3.3; the README lists what it leaves open and what is done here.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, flatten_positions, promote

Normalizer = Literal["softmax", "sum"]


def article_weights(
    x: Float[Array, "*b n c"], weigh: Callable, *, normalize: Callable = ops.softmax
) -> Float[Array, "*b n n"]:
    """α = normalize(a xᵀ), a = weigh(x): the article's map, one row for each position.

    Args:
        x: the feature vectors.
        weigh: x -> W_a x + b_a, any callable on (*b, n, c).
        normalize: scores -> weights along the last axis; `ops.softmax`, or `ops.sum_normalize` for the article's
            e_ij / Σ_j e_ij, guarded as said there.

    Raises:
        InputError: one example's n×n map would take more than 1 GiB.
    """
    scores = ops.dot_product_scores(weigh(x), x)
    return normalize(scores).astype(x.dtype)


def article_attention(x: Float[Array, "*b n c"], weigh: Callable, *, residual: bool = False) -> Float[Array, "*b n c"]:
    """o_i = Σ_j α_ij x_j, with `residual` x_i + Σ_j α_ij x_j; α are the `article_weights` of the same arguments.

    `ops.dot_product_attention` chooses how, on a CPU without an n×n map.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> article_attention(x, lambda x: 0 * x)  # no score stands out: the mean of all vectors
    Array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    a, x_of_one_head = weigh(x)[..., None, :], x[..., None, :]
    out = ops.dot_product_attention(a, x_of_one_head, x_of_one_head, scale=1.0)[..., 0, :].astype(x.dtype)
    return x + out if residual else out


def article_sum_attention(
    x: Float[Array, "*b n c"], weigh: Callable, *, epsilon: float = 1e-6, residual: bool = False
) -> Float[Array, "*b n c"]:
    """The reading α_ij = e_ij / Σ_j e_ij in its cheaper association, exact either way.

        o_i = (Σ_j x_j x_jᵀ) a_i / (a_iᵀ Σ_j x_j)

    costs O(n·c²) and needs no n×n map; it is taken where c < n. `ops.sum_attention` states the float32 error bound.
    """
    out = ops.sum_attention(weigh(x), x, x, epsilon=epsilon)
    return x + out if residual else out


class Article(nnx.Module):
    """The article's attention over the positions of a map, with W_a and b_a learned.

    Parameters: c² + c. Multiply-adds: n·c² for the weights, then 2n²·c with the softmax, 2·min(n²·c, n·c²) with the
    plain sum.

    Args:
        channels: c, the dimension of the feature vectors.
        normalizer: "softmax" (the article's text) or "sum" (its equations).
        residual: add the input back (the article's text); False is its equations.
        epsilon: ε of the guarded division of "sum", see `ops.sum_normalize`.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes
            and video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: an unknown normaliser or a size below 1 at construction; at the call, channels or axes that do not
            fit, or for `attention_map` a map of more than 1 GiB per example, before anything is allocated.
    """

    def __init__(
        self,
        channels: int,
        *,
        normalizer: Normalizer = "softmax",
        residual: bool = True,
        epsilon: float = 1e-6,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(normalizer in get_args(Normalizer), f"normalizer must be 'softmax' or 'sum', got {normalizer!r}.")
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        self.weigh = nnx.Linear(channels, channels, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.normalizer = normalizer
        self.residual = residual
        self.epsilon = epsilon
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b n n"]:
        """α, a row for each position and a column for each position it attends to, both in row-major order."""
        normalize = ops.softmax if self.normalizer == "softmax" else partial(ops.sum_normalize, epsilon=self.epsilon)
        return article_weights(self._positions(x), self.weigh, normalize=normalize)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """o, in the layout of x: any batch axes, `num_spatial_dims` axes of positions, channels."""
        if self.normalizer == "sum":
            out = article_sum_attention(self._positions(x), self.weigh, epsilon=self.epsilon, residual=self.residual)
        else:
            out = article_attention(self._positions(x), self.weigh, residual=self.residual)
        return out.reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n = math.prod(positions)
        products = n * n * c if self.normalizer == "softmax" else min(n * n * c, n * c * c)
        return Cost(c * c + c, n * c * c + 2 * products)

    def _positions(self, x):
        check_channels(x, self.weigh.in_features)
        return flatten_positions(promote(x, self.weigh), self.num_spatial_dims)
