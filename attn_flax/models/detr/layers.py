"""The layers of a detection transformer.

Differs from the papers: norms come before attentions and perceptrons, not after, and there is no dropout.

Source: Carion et al., "End-to-End Object Detection with Transformers" (2020), arXiv:2005.12872; norms first: Xiong et
al., "On Layer Normalization in the Transformer Architecture" (2020), arXiv:2002.04745.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from attn_flax.mechanisms.layers import LayerNorm, Perceptron
from attn_flax.mechanisms.spatial.deformable import MultiScaleDeformableAttention
from attn_flax.models.detr.attention import Attention, Cells, WindowAttention

EXPANSION = 4
"""How many times wider the hidden layer of a perceptron is."""


class EncoderLayer(nnx.Module):
    """x' = x + attention(norm(x)),   y = x' + perceptron(norm(x')): every token attends to every other.

    Args:
        width: c.
        num_heads: k, which must divide c.
        levels: from how many maps the tokens come.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        levels: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attention_norm = LayerNorm(width, **types)
        self._add_attention(width, num_heads, levels, **types)
        self.perceptron_norm = LayerNorm(width, **types)
        self.perceptron = Perceptron(width, EXPANSION * width, **types)

    def __call__(
        self, x: Float[Array, "*b n c"], position: Float[Array, "n c"], cells: Cells
    ) -> Float[Array, "*b n c"]:
        """y.

        Args:
            x: the tokens.
            position: theirs.
            cells: where they lie.
        """
        x = x + self._attend(self.attention_norm(x), position, cells)
        return x + self.perceptron(self.perceptron_norm(x))

    def _add_attention(self, width, num_heads, levels, **types):
        self.attention = Attention(width, num_heads, **types)

    def _attend(self, x, position, cells):
        return self.attention(x, x, position, position)


class DeformableEncoderLayer(EncoderLayer):
    """The same, but every token attends to a few samples of the maps around its own place."""

    def _add_attention(self, width, num_heads, levels, **types):
        self.attention = MultiScaleDeformableAttention(width, levels=levels, num_heads=num_heads, **types)

    def _attend(self, x, position, cells):
        reference = jnp.broadcast_to(cells.centres, (*x.shape[:-1], 2))
        return self.attention(x + position, reference, cells.maps(x))


class DecoderLayer(nnx.Module):
    """Attention among the queries, attention of the queries to the encoder's tokens, and a perceptron.

    Args:
        width: c.
        num_heads: k, which must divide c.
        modulate: whether queries look through windows around their reference boxes.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        modulate: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.self_norm = LayerNorm(width, **types)
        self.self_attention = Attention(width, num_heads, **types)
        self.cross_norm = LayerNorm(width, **types)
        self.cross_attention = (WindowAttention if modulate else Attention)(width, num_heads, **types)
        self.perceptron_norm = LayerNorm(width, **types)
        self.perceptron = Perceptron(width, EXPANSION * width, **types)
        self.modulate = modulate

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        x_position: Float[Array, "..."],
        boxes: Float[Array, "*b n 4"] | None,
        z: Float[Array, "*b m c"],
        z_position: Float[Array, "m c"],
        centres: Float[Array, "m 2"],
        mask: Bool[Array, "..."] | None,
    ) -> Float[Array, "*b n c"]:
        """The queries after the layer.

        Args:
            x: the queries.
            x_position: theirs.
            boxes: their reference boxes; needed to modulate.
            z: the encoder's tokens.
            z_position: theirs.
            centres: where they lie.
            mask: True where one query may see another; broadcasts to (*b, k, n, n).
        """
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, normed, x_position, x_position, mask=mask)
        windows = (boxes, centres) if self.modulate else ()
        x = x + self.cross_attention(self.cross_norm(x), z, x_position, z_position, *windows)
        return x + self.perceptron(self.perceptron_norm(x))
