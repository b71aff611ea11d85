"""Gated positional self-attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    α_ij = (1 - σ(λ)) softmax_j(q_iᵀ k_j / √d) + σ(λ) softmax_j(uᵀ r_ij)     for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are the positions of a map, d = c/heads, r_ij = (δ_x, δ_y, δ_x² + δ_y²) with the offset δ from i to j in
columns and rows, and a head has a learned vector u and a learned λ. With u = s(2Δ_x, 2Δ_y, -1) it looks at the position
Δ away, the more sharply the greater s, whatever is there; so the heads start as the taps of a convolution, each with
the gate open to positions at σ(1), and learn when to leave them.

A score uᵀ r_ij is the sum of one by columns and one by rows, so its softmax is a product of two, and what it gathers
is gathered within the rows and then across them: that part of the map is never made.

Differs from the paper: nothing. The paper divides α by its sums, which are one. In timm's code the layer of r_ij
has a bias, which cancels in the softmax; it is here for its numbers to fit, and nothing reads it.

Errors elsewhere: timm takes the map to be square, of ⌊√n⌋ rows.

Source: d'Ascoli, Touvron, Leavitt, Morcos, Biroli and Sagun, "ConViT: Improving Vision Transformers with Soft
Convolutional Inductive Biases" (2021), arXiv:2103.10697. Confirmed with timm's code.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_heads, check_map, join_heads, promote, split_heads


def gpsa_weights(
    q: Float[Array, "*b h w k d"], k: Float[Array, "*b h w k d"], u: Float[Array, "3 k"], gate: Float[Array, " k"]
) -> Float[Array, "*b k n n"]:
    """α of every head, a row for each position that asks and a column for each that is asked, in row-major order.

    Args:
        q: the queries of a map.
        k: its keys.
        u: a vector for each head.
        gate: λ of each head.
    """
    content = ops.dot_product_attention_weights(_in_a_row(q), _in_a_row(k))
    rows, columns = position_weights(u, q.shape[-4:-2])
    position = jnp.einsum("kyz,kxw->kyxzw", rows, columns).reshape(content.shape[-3:])
    return _gated(content, position.astype(content.dtype), gate[:, None, None])


def gpsa(
    q: Float[Array, "*b h w k d"],
    k: Float[Array, "*b h w k d"],
    v: Float[Array, "*b h w k e"],
    u: Float[Array, "3 k"],
    gate: Float[Array, " k"],
) -> Float[Array, "*b h w k e"]:
    """Σ_j α_ij v_j for each head, with the α of `gpsa_weights` of the same arguments.

    >>> x, v = jnp.zeros((1, 3, 1, 1)), jnp.array([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    >>> to_the_left = 20 * jnp.array([[-2.0], [0.0], [-1.0]])
    >>> gpsa(x, x, v, to_the_left, jnp.array([20.0])).ravel().round(2)
    Array([1., 1., 2.], dtype=float32)
    """
    content = ops.dot_product_attention(*map(_in_a_row, (q, k, v))).reshape(v.shape)
    rows, columns = (weights.astype(v.dtype) for weights in position_weights(u, v.shape[-4:-2]))
    along_rows = jnp.einsum("kxw,...ywke->...yxke", columns, v)
    position = jnp.einsum("kyz,...zxke->...yxke", rows, along_rows)
    return _gated(content, position, gate[:, None])


def position_weights(
    u: Float[Array, "3 k"], size: tuple[int, int]
) -> tuple[Float[Array, "k h h"], Float[Array, "k w w"]]:
    """softmax_j(uᵀ r_ij) for each head, as weights of the rows and of the columns whose product it is.

    In float32 or wider.

    Args:
        u: a vector for each head.
        size: (h, w).
    """
    u_x, u_y, u_square = u.astype(ops.at_least_float32(u.dtype))[..., None, None]
    offsets_y, offsets_x = (np.arange(n) - np.arange(n)[:, None] for n in size)
    return (
        ops.softmax(u_y * offsets_y + u_square * offsets_y**2),
        ops.softmax(u_x * offsets_x + u_square * offsets_x**2),
    )


def _gated(content, position, gate):
    share = jax.nn.sigmoid(gate.astype(ops.at_least_float32(gate.dtype))).astype(content.dtype)
    return (1 - share) * content + share * position


def _in_a_row(x):
    *batch, h, w, k, d = x.shape
    return x.reshape(*batch, h * w, k, d)


class GatedPositionalSelfAttention(nnx.Module):
    """Self-attention over the positions of maps that starts as a convolution.

    Of the heads the first ⌊√k⌋² look at the positions of a square window, its columns one after another; the others at
    nearly all alike. Values are the input at first.

    Parameters: 4c² + c + 5k for k heads, and 3c with `qkv_bias`. Multiply-adds for n = h·w: 4n·c² + 2n²·c + n(h + w)·c.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        qkv_bias: whether queries, keys and values have biases; the output has.
        locality_strength: s, of which the initial u are multiples.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, or a strength not above zero, at construction;
            at the call, anything but a map of these channels, or for `attention_map` a map of more than 1 GiB for an
            example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = False,
        locality_strength: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(locality_strength > 0, f"locality_strength must be positive, got {locality_strength}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qk = nnx.Linear(channels, 2 * channels, use_bias=qkv_bias, **layer)
        self.v = nnx.Linear(channels, channels, use_bias=qkv_bias, kernel_init=_identity, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.pos_proj = nnx.Linear(3, num_heads, kernel_init=_taps(locality_strength), **layer)
        self.gate = nnx.Param(jnp.ones(num_heads, param_dtype))
        self.num_heads = num_heads

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        q, k = split_heads(self.qk(self._promoted(x)), 2, self.num_heads)
        return gpsa_weights(q, k, self.pos_proj.kernel[...], self.gate[...])

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._promoted(x)
        q, k = split_heads(self.qk(x), 2, self.num_heads)
        (v,) = split_heads(self.v(x), 1, self.num_heads)
        return self.proj(join_heads(gpsa(q, k, v, self.pos_proj.kernel[...], self.gate[...])))

    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, biases = h * w, 4 * c if self.v.use_bias else c
        return Cost(4 * c * c + biases + 5 * self.num_heads, 4 * n * c * c + 2 * n * n * c + n * (h + w) * c)

    def _promoted(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.proj)


def _identity(key, shape, dtype):
    return jnp.eye(*shape, dtype=dtype)


def _taps(strength):
    """The initial u: (2Δ_x, 2Δ_y, -1) for the taps Δ of a square window, small random numbers for further heads."""

    def initialize(key, shape, dtype):
        _, heads = shape
        side = math.isqrt(heads)
        x, y = (i - (side - 1) / 2 for i in np.divmod(np.arange(side**2), side))
        taps = jnp.asarray(np.stack([2 * x, 2 * y, np.full_like(x, -1)]), dtype)
        return strength * nnx.initializers.truncated_normal(0.02)(key, shape, dtype).at[:, : side**2].set(taps)

    return initialize
