"""Performer.

    q = W_Q x,   k = W_K x,   v = W_V x
    α_ij = φ(q_i)ᵀ φ(k_j) / Σ_j φ(q_i)ᵀ φ(k_j)      for each head
    y_i = W_O [Σ_j α_ij v_j]_heads
    φ(u)_r = exp(ω_rᵀ û - ‖û‖²/2) / √m,   û = u / d^(1/4)

where i and j are tokens, or the positions of a map, d = c/heads, and ω_1 to ω_m are random vectors, each from N(0, 1)
but orthogonal to the others of its block of d. The product φ(q_i)ᵀ φ(k_j) has the expectation exp(q_iᵀ k_j / √d), so
that with more and more features this becomes softmax attention, at a cost linear in the number of tokens ("FAVOR+").

Differs from the paper: the ω are drawn once and shared by the heads, not drawn anew now and then; to do so, set
`features` to other `orthogonal_features`. Nothing is added to φ, where the authors' code adds a small number. The
exponents are shifted by maxima that cancel, so that every denominator is at least one.

Source: Choromanski, Likhosherstov, Dohan, Song, Gane, Sarlos, Hawkins, Davis, Mohiuddin, Kaiser, Belanger, Colwell and
Weller, "Rethinking Attention with Performers" (2021), arXiv:2009.14794. Stated from the paper's equations, not compared
with the authors' code.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import (
    check_channels,
    check_heads,
    flatten_positions,
    join_heads,
    promote,
    split_heads,
)
from attn_flax.mechanisms.self_attention.linear_attention import similarity_weights


def orthogonal_features(key: Array, m: int, d: int) -> Float[Array, "m d"]:
    """ω: vectors from N(0, 1), blocks of d of them orthogonal, each block independent of the others."""
    directions_key, norms_key = jax.random.split(key)
    blocks = jax.random.orthogonal(directions_key, d, (math.ceil(m / d),), jnp.float32)
    norms = jnp.linalg.norm(jax.random.normal(norms_key, (m, d), jnp.float32), axis=-1, keepdims=True)
    return norms * blocks.reshape(-1, d)[:m]


def positive_features_log(u: Float[Array, "*b n k d"], features: Float[Array, "m d"]) -> Float[Array, "*b n k m"]:
    """log φ(u), in float32 or wider.

    Args:
        u: the queries or keys of each head.
        features: ω.
    """
    m, d = features.shape
    wide = ops.at_least_float32(u.dtype)
    u = u.astype(wide) / d**0.25
    return u @ features.astype(wide).T - jnp.square(u).sum(-1, keepdims=True) / 2 - math.log(m) / 2


def performer_features(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b n_k k d"], features: Float[Array, "m d"]
) -> tuple[Float[Array, "*b n k m"], Float[Array, "*b n_k k m"]]:
    """φ(q) and φ(k), each φ(k)_r divided by its largest of any token, which φ(q)_r is multiplied by, and φ(q_i) by its.

    No α changes by that, and nothing overflows: all features are at most one, and no Σ_j φ(q_i)ᵀ φ(k_j) is below one.
    """
    q, k = (positive_features_log(u, features) for u in (q, k))
    largest = jax.lax.stop_gradient(k.max(-3, keepdims=True))
    q = q + largest
    return jnp.exp(q - jax.lax.stop_gradient(q.max(-1, keepdims=True))), jnp.exp(k - largest)


def performer_weights(
    x: Float[Array, "*b n c"], qkv: Callable, features: Float[Array, "m d"], *, num_heads: int
) -> Float[Array, "*b k n n"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        x: tokens.
        qkv: x -> [q, k, v], any callable from (*b, n, c) to their features side by side, each head by head.
        features: ω.
        num_heads: k.
    """
    q, k, v = split_heads(qkv(x), 3, num_heads)
    return similarity_weights(*performer_features(q, k, features)).astype(v.dtype)


def performer(
    x: Float[Array, "*b n c"], qkv: Callable, project: Callable, features: Float[Array, "m d"], *, num_heads: int
) -> Float[Array, "*b n e"]:
    """y, with the α of `performer_weights`, none of which is computed; `project` is o -> W_O o.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> qkv = lambda x: jnp.concatenate([0 * x, 0 * x, x], -1)
    >>> performer(x, qkv, lambda o: o, jnp.array([[0.2], [-0.1]]), num_heads=1)  # no token stands out: the mean
    Array([[2.],
           [2.]], dtype=float32)
    """
    q, k, v = split_heads(qkv(x), 3, num_heads)
    q, k = performer_features(q, k, features)
    return project(join_heads(ops.linear_attention(q, k, v, feature_map=lambda phi: phi)))


class Performer(nnx.Module):
    """The Performer's attention over the positions of maps, or over tokens.

    Parameters: 4c², and m·c/heads numbers that are not learned, the variable `features`. Multiply-adds: 4n·c² + 4n·c·m
    + n·heads·m.

    Args:
        channels: c.
        num_heads: which must divide c.
        num_features: m; the error of α falls as 1/√m.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of ω.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; at the call, channels or
            axes that do not fit, or for `attention_map` a map of more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        num_features: int = 256,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(num_features >= 1, f"num_features must be at least 1, got {num_features}.")
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        layer = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.features = nnx.Variable(orthogonal_features(rngs.params(), num_features, channels // num_heads))
        self.num_heads = num_heads
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        return performer_weights(self._tokens(x), self.qkv, self.features[...], num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        y = performer(self._tokens(x), self.qkv, self.proj, self.features[...], num_heads=self.num_heads)
        return y.reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n, m = math.prod(positions), len(self.features)
        return Cost(4 * c * c, n * (4 * c * c + 4 * c * m + self.num_heads * m))

    def _tokens(self, x):
        check_channels(x, self.proj.in_features)
        return flatten_positions(promote(x, self.qkv), self.num_spatial_dims)
