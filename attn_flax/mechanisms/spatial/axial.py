"""Axial attention.

    y = W_h MHSA_h(x) + W_w MHSA_w(x)   or   y = W_w MHSA_w(W_h MHSA_h(x))
    MHSA(x)_i = Σ_j α_ij v_j,   α_ij = softmax_j(q_iᵀ k_j / √d)

where MHSA_h attends along the columns of a map, each for itself, and MHSA_w along its rows, with layers q, k, v and W
of their own and heads of d features. In a sum every position sees its row and its column; one after the other, the
second axis carries on what the first has gathered, and every position sees the whole map.

Differs from the paper: there each axis has a layer of the network for itself, with a norm, a residual and a perceptron,
and position embeddings are added to the network's input; here is the attention alone. Axial-DeepLab's relative
positions inside the attention are not here.

Errors elsewhere: External-Attention-pytorch ties it to reversible layers. Its attention knows no positions, like this
one, and does not say so: whatever the order of the rows and of the columns, they get the same.

Source: Ho, Kalchbrenner, Weissenborn and Salimans, "Axial Attention in Multidimensional Transformers" (2019),
arXiv:1912.12180. Compared with lucidrains/axial-attention, not with the authors' code.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_heads, check_map, promote

HEIGHT, WIDTH = -3, -2


def axial_attention_weights(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, *, axis: int, num_heads: int = 1
) -> Float[Array, "*b lines k n m"]:
    """α along an axis, for each line of the map in that direction and each head.

    Args:
        x: maps.
        query: x -> q, any callable on (*b, h, w, c).
        key: x -> k, likewise.
        axis: -3 for the height, along which the lines are columns, or -2 for the width, where they are rows.
        num_heads: into which the features are divided.

    Raises:
        InputError: another axis; heads that do not divide the features.
    """
    q, k = (_lines(project(x), axis, num_heads) for project in (query, key))
    return ops.dot_product_attention_weights(q, k)


def axial_attention(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, value: Callable, *, axis: int, num_heads: int = 1
) -> Float[Array, "*b h w e"]:
    """MHSA along an axis, with the α of `axial_attention_weights`.

    >>> x = jnp.array([[[1.0], [3.0]], [[6.0], [8.0]]])
    >>> axial_attention(x, lambda x: 0 * x, lambda x: x, lambda x: x, axis=-2).squeeze()  # the means of the rows
    Array([[2., 2.],
           [7., 7.]], dtype=float32)
    """
    q, k, v = (_lines(project(x), axis, num_heads) for project in (query, key, value))
    o = ops.dot_product_attention(q, k, v)
    return jnp.moveaxis(o.reshape(*o.shape[:-2], -1), -2, axis)


class AxisAttention(nnx.Module):
    """W MHSA(x) along one axis of a map.

    Parameters: 4c² + c. Multiply-adds: 4n·c² + 2n·l·c for lines of l positions.

    Args:
        channels: c.
        num_heads: which must divide them.
        axis: -3 or -2, as in `axial_attention_weights`.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        axis: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.key = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.value = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.project = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads
        self.axis = axis

    def weights(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b lines k n m"]:
        """α, for each line and head."""
        return axial_attention_weights(x, self.query, self.key, axis=self.axis, num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """W MHSA(x), in the layout of x."""
        o = axial_attention(x, self.query, self.key, self.value, axis=self.axis, num_heads=self.num_heads)
        return self.project(o)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *positions, c = shape
        n = math.prod(positions)
        return Cost(4 * c * c + c, 4 * n * c * c + 2 * n * shape[self.axis] * c)


class AxialAttention(nnx.Module):
    """Axial attention on maps of any size.

    Parameters: 8c² + 2c. Multiply-adds: 8n·c² + 2n·(h + w)·c.

    Args:
        channels: c.
        num_heads: of either axis.
        sequential: whether the width attends to what the height gives; otherwise both attend to x and are summed.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: heads that do not divide the channels, or a size below 1, at construction; an input that is no map
            of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        sequential: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.height = AxisAttention(channels, num_heads, axis=HEIGHT, **layer)
        self.width = AxisAttention(channels, num_heads, axis=WIDTH, **layer)
        self.sequential = sequential

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """α of "height", (*b, w, heads, h, h), and of "width", (*b, h, heads, w, w)."""
        x = self._map(x)
        seen_by_width = self.height(x) if self.sequential else x
        return {"height": self.height.weights(x), "width": self.width.weights(seen_by_width)}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return self.width(self.height(x)) if self.sequential else self.height(x) + self.width(x)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        costs = [axis.cost(shape) for axis in (self.height, self.width)]
        return Cost(sum(cost.parameters for cost in costs), sum(cost.multiply_adds for cost in costs))

    def _map(self, x):
        check_map(x, self.height.query.in_features)
        return promote(x, self.height.query)


def _lines(x, axis, num_heads):
    """The map as (*b, lines, n, heads, features), with the positions along an axis as tokens."""
    check(axis in (HEIGHT, WIDTH), f"axis must be -3 (the height) or -2 (the width), got {axis}.")
    check(
        num_heads >= 1 and x.shape[-1] % num_heads == 0,
        f"num_heads must be at least 1 and divide the {x.shape[-1]} features, got {num_heads}.",
    )
    lines = jnp.moveaxis(x, axis, -2)
    return lines.reshape(*lines.shape[:-1], num_heads, -1)
