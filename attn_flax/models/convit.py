"""ConViT: a vision transformer whose first blocks attend with a gate between content and position.

    z = [E x_1 … E x_n] + p                        the patches, each with its position
    z = z + attention(norm(z))                     in every block,
    z = z + W_2 gelu(W_1 norm(z) + b_1) + b_2      and this
    z = [u, z_1 … z_n]                             behind the first L blocks
    logits = W norm(z)_u + b

The first L blocks see the patches as a map, by GatedPositionalSelfAttention, which starts as a convolution and learns
when to leave that; the others, by MultiHeadSelfAttention, tokens, among them u, that of the class, which has no
position. So the class joins as late as where positions no longer matter. The names of the layers are timm's.

Differs from the paper: the positions p are those of the network's own image size; for others they are resampled by
cubic convolution that leaves nothing out. Initial values are Flax's, but for those of the attention, p and u.

Errors elsewhere: timm takes the map to be square, of which GatedPositionalSelfAttention tells.

Source: d'Ascoli, Touvron, Leavitt, Morcos, Biroli and Sagun, "ConViT: Improving Vision Transformers with Soft
Convolutional Inductive Biases" (2021), arXiv:2103.10697. Confirmed with timm's code.
"""

import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, flatten_positions
from attn_flax.mechanisms.self_attention.gpsa import GatedPositionalSelfAttention
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, after_each, count_patches, drop_path_rates, height_and_width
from attn_flax.models.pvt_v2 import Block


class ConViT(Classifier):
    """A ConViT; for 1000 classes of colour images of 5,710,512 parameters (tiny) to 86,540,040 (base).

    Args:
        num_classes: the number of logits.
        embed_dim: the features of a token.
        num_heads: of all attention.
        depths: L, and how many blocks there are with the class token.
        mlp_ratio: the width of the blocks' perceptrons, in `embed_dim`.
        image_size: the height and width for which there are positions; a number is both.
        patch_size: the height and width of a patch.
        in_channels: of the images.
        attention: a factory of the mechanism of maps in each of the first L blocks, or None for none. The default, the
            class GatedPositionalSelfAttention itself, is given `num_heads` and the types.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, heads that do not divide `embed_dim`, patches that do not divide `image_size`, or a
            rate out of range, at construction; images of other channels, or that the patches do not divide, at the
            call.
    """

    timm_names: ClassVar = ((r"^patch_embed\.(kernel|bias)\b", r"patch_embed.proj.\1"),)

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        num_heads: int,
        depths: tuple[int, int] = (10, 2),
        mlp_ratio: int = 4,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        attention: AttentionFactory | None = GatedPositionalSelfAttention,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {
            "num_classes": num_classes, "embed_dim": embed_dim, "mlp_ratio": mlp_ratio, "patch_size": patch_size,
            "in_channels": in_channels,
        }  # fmt: skip
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(len(depths) == 2 and min(depths) >= 1, f"depths must be two numbers of at least 1, got {depths}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        if attention is GatedPositionalSelfAttention:
            attention = partial(attention, num_heads=num_heads, **types)
        among_tokens = partial(MultiHeadSelfAttention, num_heads=num_heads, num_spatial_dims=1, **types)
        perceptron = partial(Perceptron, activation=gelu)
        block = partial(Block, embed_dim, mlp_ratio=mlp_ratio, perceptron=perceptron, **layer)
        local = partial(block, attention=attention)
        of_all = partial(block, attention=among_tokens, num_spatial_dims=1)
        local_rates, rates = drop_path_rates(drop_path_rate, depths)
        patch, small = (patch_size, patch_size), nnx.initializers.truncated_normal(0.02)
        self.grid = count_patches(height_and_width(image_size), patch_size)
        self.patch_embed = nnx.Conv(in_channels, embed_dim, patch, patch, padding="VALID", **layer)
        self.pos_embed = nnx.Param(small(rngs.params(), (math.prod(self.grid), embed_dim), param_dtype))
        self.cls_token = nnx.Param(small(rngs.params(), (embed_dim,), param_dtype))
        self.blocks = nnx.List(
            [local(drop_path_rate=rate) for rate in local_rates] + [of_all(drop_path_rate=rate) for rate in rates]
        )
        self.norm = LayerNorm(embed_dim, **layer)
        self.head = nnx.Linear(embed_dim, num_classes, **layer)
        self.num_local = len(local_rates)
        self.patch_size = patch_size
        self.remat = remat
        self.feature_channels = (embed_dim,) * len(self.blocks)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps of the patches' tokens after each block."""
        maps = self.local_maps(x)
        return maps + [z[..., 1:, :].reshape(maps[-1].shape) for z in self.tokens(maps[-1])]

    def local_maps(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """z after each of the first L blocks."""
        check_map(x, self.patch_embed.in_features)
        grid = count_patches(x.shape[-3:-1], self.patch_size)
        z = self.patch_embed(x)
        positions = self.pos_embed[...].reshape(*self.grid, -1)
        z = z + ops.resize_bicubic(positions, grid).astype(z.dtype)
        return after_each(self.blocks[: self.num_local], z, remat=self.remat)

    def tokens(self, z: Float[Array, "*b p q d"]) -> list[Float[Array, "*b n d"]]:
        """Of the last of those, z after each further block: u, then the patches' tokens in row-major order."""
        z = flatten_positions(z, 2)
        u = jnp.broadcast_to(self.cls_token[...].astype(z.dtype), (*z.shape[:-2], 1, z.shape[-1]))
        return after_each(self.blocks[self.num_local :], jnp.concatenate([u, z], -2), remat=self.remat)

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """The tokens after the last block, normalised."""
        return self.norm(self.tokens(self.local_maps(x)[-1])[-1])

    def pool(self, z: Float[Array, "*b n d"]) -> Float[Array, "*b d"]:
        """u of the tokens."""
        return z[..., 0, :]


MODELS = MappingProxyType(
    {
        "convit_tiny": (ConViT, {"embed_dim": 192, "num_heads": 4}),
        "convit_small": (ConViT, {"embed_dim": 432, "num_heads": 9}),
        "convit_base": (ConViT, {"embed_dim": 768, "num_heads": 16}),
    }
)
