"""The self-attention of SAGAN, which is DANet's attention over positions.

    α_ij = softmax_j(q_iᵀ k_j)
    y_i  = x_i + γ Σ_j α_ij v_j

with 1×1 convolutions of x to c/8 features for q and k and c for v, and a learned number γ, zero at first. Every
position adds to itself what resembles it anywhere in the map, and how much of that is learned from none at all.

Differs from the paper: nothing. It is the first version's form; the later one narrows the values, too, to c/8 features,
and widens their sum to c by another convolution, which `value_features` does. The authors' code has c/2 there, no
biases, keys and values max-pooled 2×2 and kernels that are normalised spectrally; of these the last two are not here.

Source: Zhang, Goodfellow, Metaxas and Odena, "Self-Attention Generative Adversarial Networks" (2018),
arXiv:1805.08318. Confirmed with the authors' code, and with that of DANet for c values.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote, reduced
from attn_flax.mechanisms.spatial.self_attention_2d import self_attention_2d, self_attention_2d_weights


def sagan_weights(x: Float[Array, "*b h w c"], query: Callable, key: Callable) -> Float[Array, "*b n m"]:
    """α, a row for each position and a column for each one it attends to, both in row-major order.

    Args:
        x: maps.
        query: x -> q, any callable on (*b, h, w, c).
        key: x -> k, likewise.

    Raises:
        InputError: one example's map α would take more than 1 GiB.
    """
    return self_attention_2d_weights(x, query, key, scale=1.0)[..., 0, :, :]


def sagan(
    x: Float[Array, "*b h w c"],
    query: Callable,
    key: Callable,
    value: Callable,
    project: Callable | None = None,
    *,
    gamma: Float[Array, ""] | float,
) -> Float[Array, "*b h w c"]:
    """y_i = x_i + γ Σ_j α_ij v_j, with the α of `sagan_weights`.

    Args:
        x: maps.
        query: x -> q.
        key: x -> k.
        value: x -> v.
        project: the convolution of the sum back to c features, if the values have fewer.
        gamma: γ.

    >>> x = jnp.array([[[1.0], [3.0]]])
    >>> sagan(x, lambda x: 0 * x, lambda x: x, lambda x: x, gamma=10.0)
    Array([[[21.],
            [23.]]], dtype=float32)
    """
    o = self_attention_2d(x, query, key, value, scale=1.0)
    return x + gamma * (o if project is None else project(o))


class SaganAttention(nnx.Module):
    """SAGAN's self-attention on maps of any size, the identity at first.

    Parameters: 2(c·d + d) + c² + c + 1 with d = ⌊c/r⌋; with e `value_features` 2(c·d + d) + 2c·e + e + c + 1; without
    biases 2c·d + c² + 1 and 2c·d + 2c·e + 1. Multiply-adds: n·c·(2d + c) + n²·(d + c), or n·c·(2d + 2e) + n²·(d + e).

    Args:
        channels: c.
        reduction: r, of the queries and keys.
        value_features: e, if the values have fewer than c features and a convolution follows their sum.
        use_bias: whether the convolutions have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; at the call, an input that is no map of these channels, or for
            `attention_map` a map of more than 1 GiB per example.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        value_features: int | None = None,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d = reduced(channels, reduction)
        check(
            value_features is None or value_features >= 1, f"value_features must be at least 1, got {value_features}."
        )
        layer = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(channels, d, **layer)
        self.key = nnx.Linear(channels, d, **layer)
        self.value = nnx.Linear(channels, channels if value_features is None else value_features, **layer)
        self.project = nnx.data(None if value_features is None else nnx.Linear(value_features, channels, **layer))
        self.gamma = nnx.Param(jnp.zeros((), param_dtype))

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n m"]:
        """α, a row for each position and a column for each one it attends to."""
        return sagan_weights(self._map(x), self.query, self.key)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return sagan(x, self.query, self.key, self.value, self.project, gamma=self.gamma[...].astype(x.dtype))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *positions, _ = shape
        n, d, e = math.prod(positions), self.query.out_features, self.value.out_features
        layers = [layer for layer in (self.query, self.key, self.value, self.project) if layer is not None]
        weights = sum(layer.in_features * layer.out_features for layer in layers)
        biases = sum(layer.out_features for layer in layers if layer.use_bias)
        return Cost(weights + biases + 1, n * weights + n * n * (d + e))

    def _map(self, x):
        check_map(x, self.query.in_features)
        return promote(x, self.query)
