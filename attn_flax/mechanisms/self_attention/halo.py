"""Halo attention.

    q = W_q x,   [k, v] = W_kv x                                 of each head
    α_ij = softmax_{j ∈ N(i)}(q_iᵀ (k_j + r^h_{y_j - y_i} + r^w_{x_j - x_i}) / √d)
    z_i = [Σ_{j ∈ N(i)} α_ij v_j]_heads

where N(i) is the block of b×b positions that i lies in together with its halo, what surrounds it h positions wide, cut
off at the border of the map; r^h and r^w are learned vectors for the offsets from query to key along each axis, shared
by the heads. All positions of a block share one window of b + 2h positions a side, so that local attention is a few
dense products.

A map that is no multiple of b is filled up below and on the right; what was added is cut off in the end, and nobody
sees it. With a stride s, which divides b, only every s-th row and column asks, from the first on: z is a map of ⌈h/s⌉
by ⌈w/s⌉ positions, each of which sees the window that it saw before.

Differs from the paper: it writes no 1/√d, and does not say whether the zeros around the map are seen. Here they are
masked; with `attend_padding` they are keys and values like all others, those that fill up the map, too, and with
`scale_positions=False` q_iᵀ r is not divided: timm's networks need both. The vector for an offset is the sum of those
for the axes, each of d features, as in BoTNet. Each table has 2·(b + 2h) - 1 of them, as timm's has, for the offsets
1 - b - 3h to b + h - 1; no pair of positions takes the first 2h.

Errors elsewhere: timm's layer lets the zeros around the map take weight, and scales the products with the keys alone by
default. Where it is strided, the offset of a key is counted from the query's place among those of its block that ask,
not from its position; `compact_offsets` does that. External-Attention-pytorch masks what lies inside the map, so that
blocks ask the zeros around it, or all keys alike where there are none, and queries and keys learn nothing.

Source: Vaswani, Ramachandran, Srinivas, Parmar, Hechtman and Shlens, "Scaling Local Self-Attention for Parameter
Efficient Visual Backbones" (2021), arXiv:2103.12731. Confirmed with timm's code.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_heads, check_map, join_heads, promote


def halo_weights(
    q: Float[Array, "*b p q k d"],
    k: Float[Array, "*b h w k d"],
    rows: Float[Array, "offsets d"],
    columns: Float[Array, "offsets d"],
    *,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    scale_positions: bool = True,
    attend_padding: bool = False,
    compact_offsets: bool = False,
) -> Float[Array, "*b blocks k n m"]:
    """α of every block and head: a row for each position of the block that asks, a column for each of its window.

    Blocks, and positions in them, are in row-major order; those that fill up the map have rows, too.

    Args:
        q: the queries, of ⌈h/s⌉×⌈w/s⌉ positions.
        k: the keys.
        rows: r^h, 2·(b + 2h) - 1 vectors for the offsets 1 - b - 3h to b + h - 1 from query to key.
        columns: r^w, likewise.
        block_size: b.
        halo_size: h.
        stride: s.
        scale_positions: whether q_iᵀ r is divided by √d, as q_iᵀ k_j is.
        attend_padding: whether the zeros around the map are keys.
        compact_offsets: whether offsets are counted from the query's place among those of its block that ask.

    Raises:
        InputError: a table of another length, a block below 1, a halo below 0, a stride that does not divide the block,
            or other queries than there are of these keys.
    """
    sizes = block_size, halo_size, stride
    q, k, tables = _compared(q, k, rows, columns, *sizes, scale_positions, attend_padding, compact_offsets)
    return ops.dot_product_attention_weights(q, k, **tables)


def halo(
    q: Float[Array, "*b p q k d"],
    k: Float[Array, "*b h w k d"],
    v: Float[Array, "*b h w k e"],
    rows: Float[Array, "offsets d"],
    columns: Float[Array, "offsets d"],
    *,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    scale_positions: bool = True,
    attend_padding: bool = False,
    compact_offsets: bool = False,
) -> Float[Array, "*b p q k e"]:
    """Σ_j α_ij v_j, with the α of `halo_weights`.

    >>> v, r = jnp.array([1.0, 3.0, 8.0, 8.0]).reshape(1, 4, 1, 1), jnp.zeros((7, 1))
    >>> halo(0 * v, v, v, r, r, block_size=2, halo_size=1).squeeze()  # nothing stands out: the means of three positions
    Array([4.       , 4.       , 6.3333335, 6.3333335], dtype=float32)
    """
    *batch, p, w, _, _ = q.shape
    sizes = block_size, halo_size, stride
    q, k, tables = _compared(q, k, rows, columns, *sizes, scale_positions, attend_padding, compact_offsets)
    blocks = ops.dot_product_attention(q, k, _windows(v, block_size, halo_size), **tables)
    asking = block_size // stride
    filled = (p + -p % asking, w + -w % asking)
    z = ops.window_merge(join_heads(blocks), (asking, asking), filled)
    return z[..., :p, :w, :].reshape(*batch, p, w, *v.shape[-2:])


def _compared(q, k, rows, columns, block, halo, stride, scale_positions, attend_padding, compact_offsets):
    """The queries of all blocks, the keys of their windows, and the tables of what is added to their products."""
    _check_stride(stride, block)
    size = k.shape[-4:-2]
    asking = tuple(-(-n // stride) for n in size)
    check(
        q.shape[-4:-2] == asking,
        f"q must be a map of {asking[0]}×{asking[1]} for keys of {size[0]}×{size[1]}, got shape {q.shape}.",
    )
    mask = None if attend_padding else _inside(size, block, halo)
    q, k = _windows(q, block // stride, 0), _windows(k, block, halo)
    places = range(block // stride) if compact_offsets else range(0, block, stride)
    scale = q.shape[-1] ** -0.5 if scale_positions else 1
    return q, k, {"bias": scale * _position_scores(q, rows, columns, places, block + 2 * halo), "mask": mask}


def _check_stride(stride, block):
    check(
        stride >= 1 and block % stride == 0,
        f"stride must be at least 1 and divide block_size, got stride={stride}, block_size={block}.",
    )


def _windows(x, block, halo):
    """(*b, h, w, k, d) -> (*b, blocks, tokens, k, d), zeros around the map."""
    filled = ops.pad_to_multiple(x.reshape(*x.shape[:-2], -1), block)
    windows = ops.halo_blocks(filled, (block,) * 2, (halo,) * 2)
    return windows.reshape(*windows.shape[:-1], *x.shape[-2:])


def _inside(size, block, halo):
    """Whether a key lies in the map: (blocks, 1, 1, m)."""
    windows = _windows(jnp.ones((*size, 1, 1), bool), block, halo)
    return windows.reshape(len(windows), 1, 1, -1)


def _position_scores(q, rows, columns, places, window):
    """q_iᵀ (r^h + r^w) of the places in a block and in its window, in float32 or wider: (*b, blocks, k, n, m)."""
    for name, table in (("rows", rows), ("columns", columns)):
        offsets = 2 * window - 1
        check(len(table) == offsets, f"{name} must be {offsets} vectors, of twice a window less one, got {len(table)}.")
    wide = ops.at_least_float32(q.dtype)
    offset = ops.relative_position_index((window,)).T[list(places)]
    r_h, r_w = (table.astype(wide)[offset].astype(q.dtype) for table in (rows, columns))
    q = q.reshape(*q.shape[:-3], len(places), len(places), *q.shape[-2:])
    e_h = jnp.einsum("...yxkd,yid->...kyxi", q, r_h, preferred_element_type=wide)
    e_w = jnp.einsum("...yxkd,xjd->...kyxj", q, r_w, preferred_element_type=wide)
    return (e_h[..., :, None] + e_w[..., None, :]).reshape(*e_h.shape[:-3], len(places) ** 2, -1)


class HaloAttention(nnx.Module):
    """Halo attention over maps of any size.

    Parameters: c·(2k·d + c) + (4·(b + 2h) - 2)·d, with k heads; 3c² + (4·(b + 2h) - 2)·c/k by default. Multiply-adds,
    of n positions, N with those that fill up the map, and t = b + 2h: n·c·(k·d/s² + k·d + c) + N/s²·(2t·k·d +
    t²·(k·d + c)).

    Args:
        channels: c.
        num_heads: k, which must divide c.
        block_size: b.
        halo_size: h.
        key_features: d, of a head's queries and keys; by default c/k, as its values have.
        stride: s, which must divide b.
        scale_positions: whether the products of queries and offsets are divided by √d, as those with keys are.
        attend_padding: whether the zeros around the map are keys and values, too.
        compact_offsets: whether offsets are counted from the query's place among those of its block that ask.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, a halo below 0, heads that do not divide the channels or a stride that does not
            divide the block, at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        key_features: int | None = None,
        stride: int = 1,
        scale_positions: bool = True,
        attend_padding: bool = False,
        compact_offsets: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(block_size >= 1, f"block_size must be at least 1, got {block_size}.")
        check(halo_size >= 0, f"halo_size must be at least 0, got {halo_size}.")
        _check_stride(stride, block_size)
        d = channels // num_heads if key_features is None else key_features
        check(d >= 1, f"key_features must be at least 1, got {d}.")
        layer = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q = nnx.Linear(channels, num_heads * d, **layer)
        self.kv = nnx.Linear(channels, num_heads * d + channels, **layer)
        initialize = nnx.initializers.truncated_normal(d**-0.5)
        offsets = 2 * (block_size + 2 * halo_size) - 1
        self.rows, self.columns = (nnx.Param(initialize(rngs.params(), (offsets, d), param_dtype)) for _ in range(2))
        self.num_heads = num_heads
        self.block_size = block_size
        self.halo_size = halo_size
        self.stride = stride
        self.scale_positions = scale_positions
        self.attend_padding = attend_padding
        self.compact_offsets = compact_offsets

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b blocks k n m"]:
        """α of every block and head, (b/s)² rows and (b + 2h)² columns, all in row-major order."""
        q, k, _, *tables = self._split(x)
        return halo_weights(q, k, *tables, **self._options())

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """z, in the layout of x."""
        return join_heads(halo(*self._split(x), **self._options()))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        block, window, stride = self.block_size, self.block_size + 2 * self.halo_size, self.stride
        queries, values = c * self.q.out_features, c * self.kv.out_features
        asking = -(-h // block) * -(-w // block) * (block // stride) ** 2
        pairs = asking * (2 * window * self.q.out_features + window**2 * self.kv.out_features)
        layers = -(-h // stride) * -(-w // stride) * queries + h * w * values
        return Cost(queries + values + self.rows.size + self.columns.size, layers + pairs)

    def _options(self):
        return {
            "block_size": self.block_size,
            "halo_size": self.halo_size,
            "stride": self.stride,
            "scale_positions": self.scale_positions,
            "attend_padding": self.attend_padding,
            "compact_offsets": self.compact_offsets,
        }

    def _split(self, x):
        """q, k and v of each head, r^h and r^w."""
        check_map(x, self.q.in_features)
        x = promote(x, self.q)
        asking = x[..., :: self.stride, :: self.stride, :]
        q, kv = (y.reshape(*y.shape[:-1], self.num_heads, -1) for y in (self.q(asking), self.kv(x)))
        d = q.shape[-1]
        tables = (table[...].astype(x.dtype) for table in (self.rows, self.columns))
        return q, kv[..., :d], kv[..., d:], *tables
