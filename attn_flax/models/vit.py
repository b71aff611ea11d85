"""The vision transformer.

    z = [u, E x_1 … E x_n] + p           the class token and the patches, each with its position
    z = z + attention(norm(z))           in every block,
    z = z + W_2 gelu(W_1 norm(z) + b_1) + b_2      and this
    logits = W pool(z) + b

where pool is the norm of the class token (`"token"`), the norm of the patches' mean (`"avg"`), or attention pooling of
the normalised patches (`"map"`). The names of the layers are timm's.

Differs from the paper: as in timm, the head is one layer whatever the training. The positions p are those of the
network's own image size; for other images they are resampled, the class token's apart, by cubic convolution that leaves
nothing out, where the authors interpolate linearly when they tune a network for larger images.

Source: Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit
and Houlsby, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (2021), arXiv:2010.11929;
"avg" and "map": Zhai, Kolesnikov, Houlsby and Beyer, "Scaling Vision Transformers" (2021), arXiv:2106.04560.
"""

import math
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import InputError, check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, flatten_positions
from attn_flax.models.attention import AttentionFactory
from attn_flax.nn import AttentionPool, MultiHeadSelfAttention

Pool = Literal["token", "avg", "map"]


class TransformerBlock(nnx.Module):
    """z + attention(norm(z)), then z + perceptron(norm(z)).

    Args:
        channels: c.
        mlp_ratio: the width of the perceptron, in c.
        attention: a factory of the mechanism among the tokens, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int,
        attention: AttentionFactory | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = nnx.data(LayerNorm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)

    def __call__(self, z: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """The tokens after the block."""
        if self.attn is not None:
            z = z + self.attn(self.norm1(z))
        return z + self.mlp(self.norm2(z))


class VisionTransformer(nnx.Module):
    """A vision transformer; for 1000 classes of colour images of 5,717,416 parameters (tiny) to 304,326,632 (large).

    Args:
        num_classes: the number of logits.
        embed_dim: the features of a token.
        depth: how many blocks there are.
        num_heads: of the multi-head self-attention in every block, and of the pooling by attention.
        mlp_ratio: the width of the blocks' perceptrons, in `embed_dim`.
        image_size: the height and width for which there are positions; a number is both.
        patch_size: the height and width of a patch.
        in_channels: of the images.
        global_pool: what of the tokens is classified: "token", "avg" or "map".
        attention: a factory of the mechanism among the tokens (*b, n, embed_dim) of every block, or None for none. The
            default, the class MultiHeadSelfAttention itself, is given `num_heads`, all biases, and the types.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, heads that do not divide `embed_dim`, patches that do not divide `image_size`, an
            unknown pooling, or an attention that is not one of tokens, at construction; images of other channels, or
            that the patches do not divide, at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int = 4,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        global_pool: Pool = "token",
        attention: AttentionFactory | None = MultiHeadSelfAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {
            "num_classes": num_classes, "embed_dim": embed_dim, "depth": depth, "mlp_ratio": mlp_ratio,
            "patch_size": patch_size, "in_channels": in_channels,
        }  # fmt: skip
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(global_pool in get_args(Pool), f"global_pool must be 'token', 'avg' or 'map', got {global_pool!r}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        heads = {"num_heads": num_heads, "num_spatial_dims": 1, **types}
        self.patch_size = patch_size
        self.grid = self._grid(*((image_size, image_size) if isinstance(image_size, int) else image_size))
        self.global_pool = global_pool
        embedded = (1 + math.prod(self.grid), embed_dim)
        if attention is MultiHeadSelfAttention:
            attention = partial(attention, qkv_bias=True, **heads)
        elif attention:
            _check_takes_tokens(attention, embedded)
        block = partial(TransformerBlock, embed_dim, mlp_ratio=mlp_ratio, attention=attention, **types, rngs=rngs)
        pool = partial(AttentionPool, embed_dim, mlp_ratio=mlp_ratio, **heads, rngs=rngs)
        patch, positions = (patch_size, patch_size), nnx.initializers.truncated_normal(0.02)
        self.patch_embed = nnx.Conv(in_channels, embed_dim, patch, patch, padding="VALID", **types, rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros(embed_dim, param_dtype))
        self.pos_embed = nnx.Param(positions(rngs.params(), embedded, param_dtype))
        self.blocks = nnx.List([block() for _ in range(depth)])
        self.norm = LayerNorm(embed_dim, **types, rngs=rngs)
        self.attn_pool = nnx.data(pool() if global_pool == "map" else None)
        self.head = nnx.Linear(embed_dim, num_classes, **types, rngs=rngs)

    def tokens(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """z after the last block: the class token, then those of the patches in row-major order."""
        check_map(x, self.patch_embed.in_features)
        grid = self._grid(*x.shape[-3:-1])
        patches = flatten_positions(self.patch_embed(x), 2)
        class_token = jnp.broadcast_to(self.cls_token[...], (*patches.shape[:-2], 1, patches.shape[-1]))
        z = jnp.concatenate([class_token.astype(patches.dtype), patches], -2)
        z = z + self._positions(grid).astype(z.dtype)
        for block in self.blocks:
            z = block(z)
        return z

    def pool(self, z: Float[Array, "*b n d"]) -> Float[Array, "*b d"]:
        """What of the tokens is classified."""
        if self.global_pool == "map":
            return self.attn_pool(self.norm(z[..., 1:, :]))
        if self.global_pool == "token":
            return self.norm(z[..., 0, :])
        return self.norm(z[..., 1:, :].mean(-2, dtype=ops.at_least_float32(z.dtype)).astype(z.dtype))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b classes"]:
        """The logits of images of any size that the patches divide."""
        return self.head(self.pool(self.tokens(x)))

    def _positions(self, grid):
        """p of a grid of patches, (1 + n, d)."""
        of_class, of_patches = self.pos_embed[:1], self.pos_embed[1:]
        resized = ops.resize_bicubic(of_patches.reshape(*self.grid, -1), grid)
        return jnp.concatenate([of_class, flatten_positions(resized, 2)], -2)

    def _grid(self, height, width):
        """How many patches there are along both axes."""
        patch = self.patch_size
        check(
            min(height, width) >= patch and height % patch == width % patch == 0,
            f"images must be of patches of {patch}×{patch}, got {height}×{width}.",
        )
        return height // patch, width // patch


def _check_takes_tokens(attention, shape):
    """Tries one image's tokens, without batch axes: what attends to maps would take those of a batch for a map."""
    n, c = shape
    try:
        y = nnx.eval_shape(lambda: attention(c, rngs=nnx.Rngs(0))(jnp.zeros(shape)))
    except InputError as error:
        raise InputError(
            f"attention must be one of tokens (*b, {n}, {c}), as some are with num_spatial_dims=1: {error}"
        ) from error
    check(y.shape == shape, f"attention must keep the tokens' shape {shape}, got {y.shape}.")


MODELS = MappingProxyType(
    {
        "vit_tiny_patch16_224": (VisionTransformer, {"embed_dim": 192, "depth": 12, "num_heads": 3}),
        "vit_small_patch16_224": (VisionTransformer, {"embed_dim": 384, "depth": 12, "num_heads": 6}),
        "vit_base_patch16_224": (VisionTransformer, {"embed_dim": 768, "depth": 12, "num_heads": 12}),
        "vit_large_patch16_224": (VisionTransformer, {"embed_dim": 1024, "depth": 24, "num_heads": 16}),
    }
)
