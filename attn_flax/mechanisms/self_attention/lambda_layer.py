"""Lambda layer.

    q = BN(W_q x),   κ = softmax_j(W_k x),   v = BN(W_v x)       q in heads, κ and v for all of them
    λ_i = Σ_j (κ_j + e_{j-i}) v_jᵀ
    z_i = [λ_iᵀ q_i]_heads

where i and j are the positions of a map and e learned vectors for the offsets from i to j. The softmax runs over the
positions, for each feature. Keys and values are summed to a linear function λ_i that is then applied to the queries: no
weight of one position for another is ever made, and the content, Σ_j κ_j v_jᵀ, is summed once for all positions.

With `kernel_size`, e is given to offsets of less than half of it on each axis and is zero beyond: Σ_j e_{j-i} v_jᵀ is
the convolution of each feature of v, alone, to d features. With `size`, maps are of one size and each offset has its e.

Differs from the paper: the convolution has a bias b, as timm's, so that b 1ᵀ is added to every λ_i. The intra-depth |u|
is one.

Source: Bello, "LambdaNetworks: Modeling Long-Range Interactions Without Attention" (2021), arXiv:2102.08602. Confirmed
with timm's code, in which the form with a table is marked as not fully verified.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_heads, check_map, flatten_positions, join_heads, promote


def lambda_layer_weights(
    q: Float[Array, "*b h w k d"], k: Float[Array, "*b h w d"], table: Float[Array, "p q d"]
) -> Float[Array, "*b k n n"]:
    """α_ij = q_iᵀ (κ_j + e_{j-i}), by which z_i = Σ_j α_ij v_j; of any sign. Positions are in row-major order.

    Args:
        q: the queries.
        k: the keys before their softmax.
        table: e, of odd sizes, its middle that of no offset; zero beyond.

    Raises:
        InputError: a table of even sizes, or a map of more than 1 GiB for an example's head.
    """
    *_, h, w, _, d = q.shape
    q = jnp.swapaxes(q.reshape(*q.shape[:-4], h * w, -1, d), -2, -3)
    keys = jnp.broadcast_to(jnp.swapaxes(_normalized(k), -1, -2)[..., None, :, :], q.shape)
    content = ops.dot_product_scores(q, keys)
    offsets = _all_offsets(table, (h, w)).reshape(-1, d)
    by_offset = jnp.einsum("...nd,od->...no", q, offsets, preferred_element_type=content.dtype)
    index = ops.relative_position_index((h, w)).T
    return content + jnp.take_along_axis(by_offset, index.reshape((1,) * (q.ndim - 2) + index.shape), -1)


def lambda_layer(
    q: Float[Array, "*b h w k d"], k: Float[Array, "*b h w d"], v: Float[Array, "*b h w e"], locate: Callable
) -> Float[Array, "*b h w k e"]:
    """z_i = λ_iᵀ q_i of each head, λ_i = Σ_j κ_j v_jᵀ + locate(v)_i.

    Args:
        q: the queries.
        k: the keys before their softmax.
        v: the values.
        locate: v -> Σ_j e_{j-i} v_jᵀ for each position i, (*b, h, w, d, e): `local_lambdas` or `relative_lambdas`.

    >>> q, v = jnp.ones((1, 2, 1, 1)), jnp.array([[[1.0], [3.0]]])
    >>> lambda_layer(q, 0 * v, v, lambda v: 10 * v[..., None]).squeeze()  # no position stands out: their mean, and 10v
    Array([12., 32.], dtype=float32)
    """
    content = ops.attend(_normalized(k), flatten_positions(v, 2))
    lambdas = content[..., None, None, :, :] + locate(v)
    return jnp.einsum("...kd,...de->...ke", q, lambdas).astype(v.dtype)


def local_lambdas(v: Float[Array, "*b h w e"], convolve: Callable) -> Float[Array, "*b h w d e"]:
    """Σ_j e_{j-i} v_jᵀ for each position i, where `convolve` takes maps of one feature to d, by the kernel e.

    >>> local_lambdas(jnp.array([[[1.0], [3.0]]]), lambda x: 10 * x).squeeze()
    Array([10., 30.], dtype=float32)
    """
    return jnp.moveaxis(convolve(jnp.moveaxis(v, -1, -3)[..., None]), -4, -1)


def relative_lambdas(v: Float[Array, "*b h w e"], table: Float[Array, "p q d"]) -> Float[Array, "*b h w d e"]:
    """Σ_j e_{j-i} v_jᵀ for each position i.

    Args:
        v: the values.
        table: e for the offsets 1 - h to h - 1 and 1 - w to w - 1, from i to j.

    Raises:
        InputError: a table for maps of another size.

    >>> relative_lambdas(jnp.array([[[1.0], [3.0]]]), jnp.array([[[5.0], [0.0], [7.0]]])).squeeze()
    Array([21.,  5.], dtype=float32)
    """
    *batch, h, w, e = v.shape
    *sizes, d = table.shape
    check(
        sizes == [2 * h - 1, 2 * w - 1],
        f"table must be ({2 * h - 1}, {2 * w - 1}, d) for a map of {h}×{w}, got shape {table.shape}.",
    )
    wide = ops.at_least_float32(table.dtype)
    vectors = table.astype(wide).reshape(-1, d)[ops.relative_position_index((h, w)).T].astype(v.dtype)
    return jnp.einsum("ijd,...je->...ide", vectors, flatten_positions(v, 2)).reshape(*batch, h, w, d, e)


def _normalized(k):
    """κ, as (*b, d, n)."""
    return ops.softmax(jnp.swapaxes(flatten_positions(k, 2), -1, -2))


def _all_offsets(table, size):
    """The table with zeros around it, or cut, for the offsets that a map of this size has."""
    check(all(n % 2 for n in table.shape[:-1]), f"table must be of odd sizes, got shape {table.shape}.")
    margins = [n - 1 - length // 2 for n, length in zip(size, table.shape[:-1], strict=True)]
    return lax.pad(table, jnp.zeros((), table.dtype), [*((margin, margin, 0) for margin in margins), (0, 0, 0)])


class LambdaLayer(nnx.Module):
    """A lambda layer over maps of any size, or with a table over those of one size.

    Parameters: c·(k·d + d + e) + 2·(k·d + e), with k heads and e = c/k, and r²·d + d for a convolution or
    (2h - 1)·(2w - 1)·d for a table. Multiply-adds, of n positions: n·c·(k·d + d + e) + n·d·e + n·c·d, and n·r²·d·e or
    n²·d·e.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        key_features: d, of a head's queries and of the keys.
        kernel_size: r, of the convolution; odd. None with `size`.
        size: the height h and the width w of the maps, which then have a table. None with `kernel_size`.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, an even kernel, both kernel and size or
            neither, at construction; at the call, an input that is no map of these channels or of another size, or for
            `attention_map` a map of more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        key_features: int = 16,
        kernel_size: int | None = 9,
        size: tuple[int, int] | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(key_features >= 1, f"key_features must be at least 1, got {key_features}.")
        check(
            (kernel_size is None) is not (size is None),
            f"one of kernel_size and size must be None, and not both, got kernel_size={kernel_size}, size={size}.",
        )
        check(
            kernel_size is None or (kernel_size >= 1 and kernel_size % 2 == 1),
            f"kernel_size must be odd and positive, got {kernel_size}.",
        )
        check(
            size is None or (len(size) == 2 and min(size) >= 1),
            f"size must be a height and a width of at least 1, got {size}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        values = channels // num_heads
        self.qkv = nnx.Linear(channels, (num_heads + 1) * key_features + values, use_bias=False, **layer)
        self.norm_q = BatchNorm(num_heads * key_features, **layer)
        self.norm_v = BatchNorm(values, **layer)
        initialize = nnx.initializers.truncated_normal(key_features**-0.5)
        if size is None:
            self.convolve = nnx.Conv(1, key_features, (kernel_size, kernel_size), kernel_init=initialize, **layer)
        else:
            offsets = [2 * n - 1 for n in size]
            self.table = nnx.Param(initialize(rngs.params(), (*offsets, key_features), param_dtype))
        self.num_heads = num_heads
        self.key_features = key_features
        self.size = size if size is None else tuple(size)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n n"]:
        """α of every head, without the bias of the convolution, which no weight stands for."""
        q, k, _ = self._split(x)
        table = self.convolve.kernel[..., 0, :] if self.size is None else self.table[...]
        return lambda_layer_weights(q, k, table.astype(q.dtype))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """z, in the layout of x."""
        return join_heads(lambda_layer(*self._split(x), self._locate))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, d, e = h * w, self.key_features, c // self.num_heads
        learned = self.convolve.kernel.size + d if self.size is None else self.table.size
        seen = self.convolve.kernel.size // d if self.size is None else n
        layer, norms = c * self.qkv.out_features, 2 * (self.num_heads * d + e)
        return Cost(layer + norms + learned, n * (layer + d * e + c * d + seen * d * e))

    def _locate(self, v):
        if self.size is None:
            return local_lambdas(v, self.convolve)
        return relative_lambdas(v, self.table[...].astype(v.dtype))

    def _split(self, x):
        """q of each head, k and v."""
        check_map(x, self.qkv.in_features)
        if self.size is not None:
            h, w = self.size
            check(x.shape[-3:-1] == self.size, f"x must be a map of {h}×{w}, got shape {x.shape}.")
        d, queries = self.key_features, self.num_heads * self.key_features
        q, k, v = jnp.split(self.qkv(promote(x, self.qkv)), (queries, queries + d), -1)
        return self.norm_q(q).reshape(*q.shape[:-1], self.num_heads, d), k, self.norm_v(v)
