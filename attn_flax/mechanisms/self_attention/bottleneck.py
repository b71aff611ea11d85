"""Bottleneck attention.

    q, k, v = W x                                                in heads
    α_ij = softmax_j(q_iᵀ (k_j + r^h_{y_j - y_i} + r^w_{x_j - x_i}) / √d)
    z_i = [Σ_j α_ij v_j]_heads

where i and j are the positions (y, x) of a map, and r^h and r^w learned vectors for the offsets from query to key along
each axis, shared by the heads. It takes the place of the 3×3 convolution in the bottleneck blocks at the end of a
residual network: few positions are left there, and all of them are asked.

Differs from the paper: in its figure nothing is divided by √d; the authors' code scales the queries first, and with
them both products, as here. `scale_positions=False` leaves q_iᵀ r as it is, which timm's networks need. There are no
biases and no output layer; what follows, such as the pooling of strided blocks, is the caller's.

Errors elsewhere: timm's layer scales the products with the keys alone, unless its `scale_pos_embed` is set.

Source: Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani, "Bottleneck Transformers for Visual Recognition" (2021),
arXiv:2101.11605. Confirmed with timm's code, and compared with copies of the authors'.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_heads, check_map, join_heads, promote
from attn_flax.mechanisms.spatial.aa_conv import aa_conv_attention, aa_conv_attention_weights


def bottleneck_weights(
    q: Float[Array, "*b h w k d"],
    k: Float[Array, "*b h w k d"],
    rows: Float[Array, "offsets_h d"],
    columns: Float[Array, "offsets_w d"],
    *,
    scale_positions: bool = True,
) -> Float[Array, "*b k n n"]:
    """α of every head, positions in row-major order.

    Args:
        q: the queries.
        k: the keys.
        rows: r^h, 2h - 1 vectors for the offsets 1 - h to h - 1 from query to key.
        columns: r^w, 2w - 1 vectors likewise.
        scale_positions: whether q_iᵀ r is divided by √d, as q_iᵀ k_j is.
    """
    return aa_conv_attention_weights(q, k, *_tables(rows, columns, scale_positions))


def bottleneck(
    q: Float[Array, "*b h w k d"],
    k: Float[Array, "*b h w k d"],
    v: Float[Array, "*b h w k e"],
    rows: Float[Array, "offsets_h d"],
    columns: Float[Array, "offsets_w d"],
    *,
    scale_positions: bool = True,
) -> Float[Array, "*b h w k e"]:
    """Σ_j α_ij v_j, with the α of `bottleneck_weights`: the attention of an attention-augmented convolution.

    >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> bottleneck(0 * v, v, v, jnp.ones((1, 1)), jnp.ones((3, 1))).squeeze()  # no position stands out: the mean
    Array([2., 2.], dtype=float32)
    """
    return aa_conv_attention(q, k, v, *_tables(rows, columns, scale_positions))


def _tables(rows, columns, scale_positions):
    """The vectors, longer by what their products with queries are divided by if those are not to be scaled."""
    return (rows, columns) if scale_positions else (table * table.shape[-1] ** 0.5 for table in (rows, columns))


class BottleneckAttention(nnx.Module):
    """Bottleneck attention over maps of one size.

    Parameters: c·(2k·d + c) + (2h + 2w - 2)·d, with k heads; 3c² + (2h + 2w - 2)·c/k by default. Multiply-adds, of
    n = h·w positions: n·c·(2k·d + c) + n·(h + w)·k·d + n²·(k·d + c).

    Args:
        channels: c.
        size: the height h and the width w of the maps.
        num_heads: k, which must divide c.
        key_features: d, of a head's queries and keys; by default c/k, as its values have.
        scale_positions: whether the products of queries and offsets are divided by √d, as those with keys are.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; an input that is no map of
            these channels, or of another size, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, int],
        num_heads: int = 4,
        key_features: int | None = None,
        scale_positions: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(len(size) == 2 and min(size) >= 1, f"size must be a height and a width of at least 1, got {size}.")
        d = channels // num_heads if key_features is None else key_features
        check(d >= 1, f"key_features must be at least 1, got {d}.")
        layer = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 2 * num_heads * d + channels, **layer)
        initialize = nnx.initializers.truncated_normal(d**-0.5)
        self.rows, self.columns = (nnx.Param(initialize(rngs.params(), (2 * n - 1, d), param_dtype)) for n in size)
        self.size = tuple(size)
        self.num_heads = num_heads
        self.scale_positions = scale_positions

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        q, k, _, *tables = self._split(x)
        return bottleneck_weights(q, k, *tables, scale_positions=self.scale_positions)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """z, in the layout of x."""
        return join_heads(bottleneck(*self._split(x), scale_positions=self.scale_positions))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, d = h * w, self.rows.shape[-1]
        features, layer = self.num_heads * d, c * self.qkv.out_features
        tables = (2 * sum(self.size) - 2) * d
        return Cost(layer + tables, n * layer + n * (h + w) * features + n * n * (features + c))

    def _split(self, x):
        """q, k and v of each head, r^h and r^w."""
        check_map(x, self.qkv.in_features)
        check(x.shape[-3:-1] == self.size, f"x must be a map of {self.size[0]}×{self.size[1]}, got shape {x.shape}.")
        x = promote(x, self.qkv)
        features = self.num_heads * self.rows.shape[-1]
        parts = jnp.split(self.qkv(x), (features, 2 * features), -1)
        heads = (part.reshape(*part.shape[:-1], self.num_heads, -1) for part in parts)
        return *heads, *(table[...].astype(x.dtype) for table in (self.rows, self.columns))
