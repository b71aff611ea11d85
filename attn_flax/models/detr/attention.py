"""The attentions of a detection transformer: with positions, and with windows around boxes.

    y = W_O [o¹ … oᵏ] + b_O,   oʲ = softmax(qʲ kʲᵀ / √d + bʲ) vʲ
    q = W_Q (x + p_x) + b_Q,   k = W_K (z + p_z) + b_K,   v = W_V z + b_V

of tokens x to tokens z, whose positions p reach queries and keys, never values. Where a query has a reference box
(c_x, c_y, w, h), it may look at z through a Gaussian window of that size, one for each head:

    b = -½ ((u - o_x) / s_x)² - ½ ((v - o_y) / s_y)²,   u = (x_z - c_x) / w,   v = (y_z - c_y) / h

with (x_z, y_z) where z lies, and the centre o and the size s of the window learned functions of x: at first the box's
middle and half its size.

Differs from the papers: there is no dropout. In SMCA the first layer of the decoder predicts the centre of a window,
and its size is absolute; here both are relative to the reference box, so that the window follows the box as layers
refine it.

Source: Carion et al., "End-to-End Object Detection with Transformers" (2020), arXiv:2005.12872; the window: Gao, Zheng,
Wang, Dai and Li, "Fast Convergence of DETR with Spatially Modulated Co-Attention" (2021), arXiv:2101.07448.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from attn_flax import ops
from attn_flax.mechanisms.layout import check_heads, join_heads


class Cells(NamedTuple):
    """Where the tokens of one or more maps lie.

    Attributes:
        sizes: h and w of each map.
        centres: (n, 2), the x and y of each token, in shares of the image.
        extents: (n, 2), how wide and high its cell is.
    """

    sizes: tuple[tuple[int, int], ...]
    centres: Float[Array, "n 2"]
    extents: Float[Array, "n 2"]

    @classmethod
    def of(cls, *sizes: tuple[int, int]) -> "Cells":
        """The cells of maps of these sizes, map after map, each in row-major order.

        >>> Cells.of((1, 2)).centres
        Array([[0.25, 0.5 ],
               [0.75, 0.5 ]], dtype=float32)
        """
        centres = [ops.cell_centres(h, w).reshape(h * w, 2) for h, w in sizes]
        extents = [np.broadcast_to([1 / w, 1 / h], (h * w, 2)) for h, w in sizes]
        return cls(sizes, jnp.concatenate(centres), jnp.asarray(np.concatenate(extents)))

    @property
    def levels(self) -> Int[Array, " n"]:
        """The number of each token's map."""
        return jnp.repeat(jnp.arange(len(self.sizes)), np.array([h * w for h, w in self.sizes]))

    def maps(self, tokens: Float[Array, "*b n c"]) -> list[Float[Array, "..."]]:
        """The tokens as maps (*b, h, w, c)."""
        ends = np.cumsum([h * w for h, w in self.sizes])
        parts = jnp.split(tokens, ends[:-1], -2)
        return [part.reshape(*part.shape[:-2], *size, -1) for part, size in zip(parts, self.sizes, strict=True)]


class Attention(nnx.Module):
    """Attention of tokens to tokens, both with positions.

    Parameters: 4c² + 4c.

    Args:
        width: c.
        num_heads: k, which must divide c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(width, num_heads)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query, self.key, self.value, self.project = (nnx.Linear(width, width, **types) for _ in range(4))
        self.num_heads = num_heads

    def attention_map(
        self,
        x: Float[Array, "*b n c"],
        z: Float[Array, "*b m c"],
        x_position: Float[Array, "..."],
        z_position: Float[Array, "..."],
        *,
        bias: Float[Array, "..."] | None = None,
        mask: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "*b k n m"]:
        """The weights; rows sum to one."""
        q, k, _ = self._split(x, z, x_position, z_position)
        return ops.dot_product_attention_weights(q, k, bias=bias, mask=mask)

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        z: Float[Array, "*b m c"],
        x_position: Float[Array, "..."],
        z_position: Float[Array, "..."],
        *,
        bias: Float[Array, "..."] | None = None,
        mask: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "*b n c"]:
        """y.

        Args:
            x: the tokens that attend.
            z: the tokens attended to.
            x_position: added to x for the queries.
            z_position: added to z for the keys.
            bias: added to the scores; broadcasts to (*b, k, n, m).
            mask: True where x may see z; broadcasts likewise.
        """
        q, k, v = self._split(x, z, x_position, z_position)
        return self.project(join_heads(ops.dot_product_attention(q, k, v, bias=bias, mask=mask)))

    def _split(self, x, z, x_position, z_position):
        q, k, v = self.query(x + x_position), self.key(z + z_position), self.value(z)
        return tuple(t.reshape(*t.shape[:-1], self.num_heads, -1) for t in (q, k, v))


def gaussian_window(
    boxes: Float[Array, "*b n 4"],
    centres: Float[Array, "m 2"],
    offset: Float[Array, "*b n k 2"],
    size: Float[Array, "*b n k 2"],
) -> Float[Array, "*b k n m"]:
    """b, the logarithm of each query's window at each token, for each head.

    Args:
        boxes: the reference boxes (c_x, c_y, w, h).
        centres: (x_z, y_z).
        offset: o, from the box's middle, in boxes.
        size: s, in boxes.

    >>> box, centres = jnp.array([[0.5, 0.5, 0.2, 0.4]]), jnp.array([[0.5, 0.5], [0.6, 0.5], [0.6, 0.9]])
    >>> jnp.exp(gaussian_window(box, centres, jnp.zeros((1, 1, 2)), jnp.full((1, 1, 2), 0.5))).round(2)
    Array([[[1.  , 0.61, 0.08]]], dtype=float32)
    """
    middle, extent = boxes[..., None, :2], boxes[..., None, 2:]
    inside = (centres - middle) / extent
    away = (inside[..., None, :, :] - offset[..., None, :]) / size[..., None, :]
    return -0.5 * jnp.moveaxis(jnp.square(away).sum(-1), -2, -3)


class WindowAttention(Attention):
    """Attention of queries with reference boxes, each through a Gaussian window around its box.

    Parameters: 4c² + 4c, and 4k(c + 1) of the windows.

    Args:
        width: c.
        num_heads: k, which must divide c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(width, num_heads, **types)
        self.window = nnx.Linear(width, num_heads * 4, kernel_init=nnx.initializers.zeros, **types)

    def attention_map(self, x, z, x_position, z_position, boxes, centres) -> Float[Array, "*b k n m"]:
        """The weights; rows sum to one."""
        return super().attention_map(x, z, x_position, z_position, bias=self._bias(x, boxes, centres))

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        z: Float[Array, "*b m c"],
        x_position: Float[Array, "..."],
        z_position: Float[Array, "..."],
        boxes: Float[Array, "*b n 4"],
        centres: Float[Array, "m 2"],
    ) -> Float[Array, "*b n c"]:
        """y, with the arguments of `Attention` and of `gaussian_window`."""
        return super().__call__(x, z, x_position, z_position, bias=self._bias(x, boxes, centres))

    def _bias(self, x, boxes, centres):
        offset, size = jnp.split(self.window(x).reshape(*x.shape[:-1], -1, 4), 2, -1)
        return gaussian_window(boxes, centres, offset, 0.5 * jnp.exp(size))
