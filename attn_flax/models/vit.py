"""The vision transformer.

    z = [u, E x_1 … E x_n] + p           the class token and the patches, each with its position
    z = z + attention(norm(z))           in every block,
    z = z + W_2 gelu(W_1 norm(z) + b_1) + b_2      and this
    logits = W pool(z) + b

where pool is the norm of the class token (`"token"`), the norm of the patches' mean (`"avg"`), or attention pooling of
the normalised patches (`"map"`). Later networks, such as those in deit.py, scale what a block adds by learned γ, and
give the class token no position. The names of the layers are timm's.

Differs from the paper: as in timm, the head is one layer whatever the training. The positions p are those of the
network's own image size; for other images they are resampled, the class token's apart, by cubic convolution that leaves
nothing out, where the authors interpolate linearly when they tune a network for larger images.

Source: Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit
and Houlsby, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (2021), arXiv:2010.11929;
"avg" and "map", giant and gigantic: Zhai, Kolesnikov, Houlsby and Beyer, "Scaling Vision Transformers" (2021),
arXiv:2106.04560. The tiny and small ones are of deit.py's first source.
"""

import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import InputError, check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, flatten_positions
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import (
    Classifier,
    LayerScale,
    after_each,
    count_patches,
    drop_path,
    drop_path_rates,
    height_and_width,
)
from attn_flax.nn import AttentionPool, MultiHeadSelfAttention

Pool = Literal["token", "avg", "map"]


class TransformerBlock(nnx.Module):
    """z + γ_1 ⊙ attention(norm(z)), then z + γ_2 ⊙ perceptron(norm(z)).

    Args:
        channels: c.
        mlp_ratio: the width of the perceptron, in c.
        attention: a factory of the mechanism among the tokens, or None for none.
        layer_scale: γ_1 and γ_2 at first; None for branches that are not scaled.
        drop_path_rate: of stochastic depth.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int | float,
        attention: AttentionFactory | None,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        is_scaled = layer_scale is not None
        self.norm1 = nnx.data(LayerNorm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.ls1 = LayerScale(channels, layer_scale, **types) if attention and is_scaled else jax.nn.identity
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, round(mlp_ratio * channels), activation=gelu, **types)
        self.ls2 = LayerScale(channels, layer_scale, **types) if is_scaled else jax.nn.identity
        self.drop_path = drop_path(drop_path_rate, axes=2, rngs=rngs) if drop_path_rate else jax.nn.identity

    def __call__(self, z: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """The tokens after the block."""
        if self.attn is not None:
            z = z + self.drop_path(self.ls1(self.attn(self.norm1(z))))
        return z + self.drop_path(self.ls2(self.mlp(self.norm2(z))))


class VisionTransformer(Classifier):
    """A vision transformer; for 1000 classes of colour images of 6 million (tiny) to 1.8 billion parameters (gigantic).

    Args:
        num_classes: the number of logits.
        embed_dim: the features of a token.
        depth: how many blocks there are.
        num_heads: of the multi-head self-attention in every block, and of the pooling by attention.
        mlp_ratio: the width of the blocks' perceptrons, in `embed_dim`.
        image_size: the height and width for which there are positions; a number is both.
        patch_size: the height and width of a patch.
        in_channels: of the images.
        class_position: whether what stands before the patches has positions too.
        global_pool: what of the tokens is classified: "token", "avg" or "map".
        layer_scale: of what the blocks add, at first; None for none.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        attention: a factory of the mechanism among the tokens (*b, n, embed_dim) of every block, or None for none. The
            default, the class MultiHeadSelfAttention itself, is given `num_heads`, all biases, and the types.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, heads that do not divide `embed_dim`, patches that do not divide `image_size`, an
            unknown pooling, a rate out of range, or an attention that is not one of tokens, at construction; images of
            other channels, or that the patches do not divide, at the call.
    """

    timm_names: ClassVar = ((r"^patch_embed\.(kernel|bias)", r"patch_embed.proj.\1"),)
    num_prefix_tokens: ClassVar[int] = 1
    pools: ClassVar[tuple[str, ...]] = get_args(Pool)

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int | float = 4,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        class_position: bool = True,
        global_pool: Pool = "token",
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        attention: AttentionFactory | None = MultiHeadSelfAttention,
        remat: bool = False,
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
        check(
            global_pool in self.pools, f"global_pool must be one of {', '.join(self.pools)} here, got {global_pool!r}."
        )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        heads = {"num_heads": num_heads, "num_spatial_dims": 1, **types}
        self.grid = count_patches(height_and_width(image_size), patch_size)
        positions = math.prod(self.grid) + (self.num_prefix_tokens if class_position else 0)
        if attention is MultiHeadSelfAttention:
            attention = partial(attention, qkv_bias=True, **heads)
        elif attention:
            _check_takes_tokens(attention, (self.num_prefix_tokens + math.prod(self.grid), embed_dim))
        block = partial(
            TransformerBlock, embed_dim, mlp_ratio=mlp_ratio, attention=attention, layer_scale=layer_scale, **layer
        )
        pool = partial(AttentionPool, embed_dim, mlp_ratio=mlp_ratio, **heads, rngs=rngs)
        norm = partial(LayerNorm, embed_dim, **layer)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        patch, small = (patch_size, patch_size), nnx.initializers.truncated_normal(0.02)
        self.patch_embed = nnx.Conv(in_channels, embed_dim, patch, patch, padding="VALID", **layer)
        self.pos_embed = nnx.Param(small(rngs.params(), (positions, embed_dim), param_dtype))
        self.blocks = nnx.List([block(drop_path_rate=rate) for rate in rates])
        self.norm = jax.nn.identity if global_pool == "avg" else norm()
        self.attn_pool = nnx.data(pool() if global_pool == "map" else None)
        self.fc_norm = norm() if global_pool == "avg" else jax.nn.identity
        self.cls_token = nnx.Param(jnp.zeros(embed_dim, param_dtype))
        self.head = nnx.Linear(embed_dim, num_classes, **layer)
        self._add_own(embed_dim, num_classes, **layer)
        self.patch_size = patch_size
        self.class_position = class_position
        self.global_pool = global_pool
        self.remat = remat
        self.feature_channels = (embed_dim,) * depth

    def tokens(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b n d"]]:
        """z after each block: the class token, then the tokens of the patches in row-major order."""
        return after_each(self.blocks, self.embed(x), remat=self.remat)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps of the patches' tokens after each block."""
        tokens = self.tokens(x)
        grid = count_patches(x.shape[-3:-1], self.patch_size)
        return [z[..., self.num_prefix_tokens :, :].reshape(*z.shape[:-2], *grid, -1) for z in tokens]

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """z after the last block, normalised; but not yet where it is the patches' mean that is."""
        return self.norm(self.tokens(x)[-1])

    def pool(self, z: Float[Array, "*b n d"]) -> Float[Array, "*b d"]:
        """What of the tokens is classified."""
        if self.global_pool == "token":
            return z[..., 0, :]
        patches = z[..., self.num_prefix_tokens :, :]
        if self.global_pool == "map":
            return self.attn_pool(patches)
        return self.fc_norm(patches.mean(-2, dtype=ops.at_least_float32(z.dtype)).astype(z.dtype))

    def embed(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """z before the first block, of images of any size that the patches divide."""
        check_map(x, self.patch_embed.in_features)
        grid = count_patches(x.shape[-3:-1], self.patch_size)
        patches = flatten_positions(self.patch_embed(x), 2)
        n = math.prod(self.grid)
        of_prefix, of_patches = self.pos_embed[:-n], self.pos_embed[-n:]
        resized = ops.resize_bicubic(of_patches.reshape(*self.grid, -1), grid)
        patches = patches + flatten_positions(resized, 2).astype(patches.dtype)
        prefix = self._prefix() + of_prefix if self.class_position else self._prefix()
        prefix = jnp.broadcast_to(prefix.astype(patches.dtype), (*patches.shape[:-2], *prefix.shape))
        return jnp.concatenate([prefix, patches], -2)

    def _add_own(self, embed_dim, num_classes, **types):
        """For kinds of vision transformers that have more parameters."""

    def _prefix(self):
        """The tokens before those of the patches, (k, d)."""
        return self.cls_token[...][None]


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


TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
GIANT = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}
GIGANTIC = {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13}

MODELS = MappingProxyType(
    {
        "vit_tiny_patch16_224": (VisionTransformer, TINY),
        "vit_tiny_patch16_384": (VisionTransformer, TINY | {"image_size": 384}),
        "vit_small_patch32_224": (VisionTransformer, SMALL | {"patch_size": 32}),
        "vit_small_patch32_384": (VisionTransformer, SMALL | {"patch_size": 32, "image_size": 384}),
        "vit_small_patch16_224": (VisionTransformer, SMALL),
        "vit_small_patch16_384": (VisionTransformer, SMALL | {"image_size": 384}),
        "vit_small_patch8_224": (VisionTransformer, SMALL | {"patch_size": 8}),
        "vit_base_patch32_224": (VisionTransformer, BASE | {"patch_size": 32}),
        "vit_base_patch32_384": (VisionTransformer, BASE | {"patch_size": 32, "image_size": 384}),
        "vit_base_patch16_224": (VisionTransformer, BASE),
        "vit_base_patch16_384": (VisionTransformer, BASE | {"image_size": 384}),
        "vit_base_patch8_224": (VisionTransformer, BASE | {"patch_size": 8}),
        "vit_large_patch32_224": (VisionTransformer, LARGE | {"patch_size": 32}),
        "vit_large_patch32_384": (VisionTransformer, LARGE | {"patch_size": 32, "image_size": 384}),
        "vit_large_patch16_224": (VisionTransformer, LARGE),
        "vit_large_patch16_384": (VisionTransformer, LARGE | {"image_size": 384}),
        "vit_large_patch14_224": (VisionTransformer, LARGE | {"patch_size": 14}),
        "vit_huge_patch14_224": (VisionTransformer, HUGE | {"patch_size": 14}),
        "vit_giant_patch14_224": (VisionTransformer, GIANT | {"patch_size": 14}),
        "vit_gigantic_patch14_224": (VisionTransformer, GIGANTIC | {"patch_size": 14}),
    }
)
