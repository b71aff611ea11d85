"""Class-attention image transformers: first the patches attend to one another, then one token gathers what they found.

    z = E x + p
    block          z = z + γ₁ ⊙ attention(norm(z))                     among the patches, with talking heads
                   z = z + γ₂ ⊙ (W_2 gelu(W_1 norm(z) + b_1) + b_2)
    class block    u = u + γ₁ ⊙ attention(norm([u, z_1 … z_n]))        class attention, of the class token u alone
                   u = u + γ₂ ⊙ (W_2 gelu(W_1 norm(u) + b_1) + b_2)

    images -> patches of 16×16 embedded, + p -> blocks -> z
    [u, z_1 … z_n] -> two class blocks -> norm
    logits = W u + b

where γ scale channels, so little at first that each of many blocks begins near the identity. The class token has no
part in the blocks, and no position; the class blocks leave the patches as they are. The names of the layers are timm's.

Differs from the paper: the positions p are those of the network's own image size; for other images they are resampled
as in VisionTransformer. Stochastic depth leaves branches out at the same rate in every block, and none in the class
blocks, as in the authors' code.

Source: Touvron, Cord, Sablayrolles, Synnaeve and Jégou, "Going deeper with Image Transformers" (2021),
arXiv:2103.17239. Confirmed with timm's code.
"""

from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.interop import Layout
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, flatten_positions
from attn_flax.mechanisms.self_attention.class_attention import ClassAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import (
    Classifier,
    LayerScale,
    after_each,
    count_patches,
    drop_path,
    height_and_width,
    in_order,
)
from attn_flax.nn import TalkingHeadsAttention

CLASS_BLOCKS = 2


class CaitBlock(nnx.Module):
    """z + γ₁ ⊙ attention(norm(z)), then z + γ₂ ⊙ perceptron(norm(z)).

    Args:
        channels: of z.
        mlp_ratio: the width of the perceptron, in channels.
        layer_scale: γ₁ and γ₂ at first.
        attention: a factory of the mechanism on the map, or None for none.
        drop_path_rate: of stochastic depth.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int,
        layer_scale: float,
        attention: AttentionFactory | None,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = nnx.data(LayerNorm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.ls1 = nnx.data(LayerScale(channels, layer_scale, **types) if attention else None)
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.ls2 = LayerScale(channels, layer_scale, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)

    def __call__(self, z: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map after the block."""
        if self.attn is not None:
            z = z + self.drop_path(self.ls1(self.attn(self.norm1(z))))
        return z + self.drop_path(self.ls2(self.mlp(self.norm2(z))))


class ClassBlock(nnx.Module):
    """u + γ₁ ⊙ attention(norm([u, z])), then u + γ₂ ⊙ perceptron(norm(u)).

    Args:
        channels: of the tokens.
        num_heads: of the class attention.
        mlp_ratio: the width of the perceptron, in channels.
        layer_scale: γ₁ and γ₂ at first.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        mlp_ratio: int,
        layer_scale: float,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = LayerNorm(channels, **types)
        self.attn = ClassAttention(channels, num_heads=num_heads, qkv_bias=True, **types)
        self.ls1 = LayerScale(channels, layer_scale, **types)
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.ls2 = LayerScale(channels, layer_scale, **types)

    def __call__(self, u: Float[Array, "*b c"], z: Float[Array, "*b n c"]) -> Float[Array, "*b c"]:
        """The class token after the block."""
        tokens = jnp.concatenate([u[..., None, :], z], -2)
        u = u + self.ls1(self.attn(self.norm1(tokens)))
        return u + self.ls2(self.mlp(self.norm2(u)))


class CaiT(Classifier):
    """A class-attention transformer; for 1000 classes of colour images of 11,956,264 to 356,460,520 parameters.

    Args:
        num_classes: the number of logits.
        embed_dim: the features of a token.
        depth: how many blocks there are before the two class blocks.
        num_heads: of the talking-heads attention and of the class attention.
        mlp_ratio: the width of the perceptrons, in `embed_dim`.
        layer_scale: γ₁ and γ₂ of all blocks at first; the deeper, the smaller.
        image_size: the height and width for which there are positions; a number is both.
        patch_size: the height and width of a patch.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in every block.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        attention: a factory of the mechanism on the map of patches in every block, or None for none. The default, the
            class TalkingHeadsAttention itself, is given `num_heads`, all biases, and the types.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, heads that do not divide `embed_dim`, patches that do not divide `image_size`, or a
            rate out of range, at construction; images of other channels, or that the patches do not divide, at the
            call.
    """

    timm_names: ClassVar = (
        (r"^patch_embed\.(kernel|bias)", r"patch_embed.proj.\1"),
        (r"\bls(\d)\.gamma\b", r"gamma_\1"),
    )
    timm_arrays: ClassVar = {r"^pos_embed$": Layout(ones=(0,), merged=True)}

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int = 4,
        layer_scale: float = 1e-5,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        attention: AttentionFactory | None = TalkingHeadsAttention,
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
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        if attention is TalkingHeadsAttention:
            attention = partial(attention, num_heads=num_heads, qkv_bias=True, **types)
        widths = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        block = partial(CaitBlock, embed_dim, attention=attention, drop_path_rate=drop_path_rate, **widths, **layer)
        class_block = partial(ClassBlock, embed_dim, num_heads=num_heads, **widths, **layer)
        self.patch_size = patch_size
        grid = count_patches(height_and_width(image_size), patch_size)
        patch, small = (patch_size, patch_size), nnx.initializers.truncated_normal(0.02)
        self.patch_embed = nnx.Conv(in_channels, embed_dim, patch, patch, padding="VALID", **layer)
        self.pos_embed = nnx.Param(small(rngs.params(), (*grid, embed_dim), param_dtype))
        self.cls_token = nnx.Param(small(rngs.params(), (embed_dim,), param_dtype))
        self.blocks = nnx.List([block() for _ in range(depth)])
        self.blocks_token_only = nnx.List([class_block() for _ in range(CLASS_BLOCKS)])
        self.norm = LayerNorm(embed_dim, **layer)
        self.head = nnx.Linear(embed_dim, num_classes, **layer)
        self.remat = remat
        self.feature_channels = (embed_dim,) * depth

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps of patches after each block, of `feature_channels` channels."""
        check_map(x, self.patch_embed.in_features)
        grid = count_patches(x.shape[-3:-1], self.patch_size)
        z = self.patch_embed(x)
        z = z + ops.resize_bicubic(self.pos_embed[...], grid).astype(z.dtype)
        return after_each(self.blocks, z, remat=self.remat)

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """The tokens after the last block, normalised: u, then z in row-major order."""
        z = flatten_positions(self.features(x)[-1], 2)
        u = jnp.broadcast_to(self.cls_token[...].astype(z.dtype), (*z.shape[:-2], z.shape[-1]))
        u = in_order(self.blocks_token_only, u, z, remat=self.remat)
        return self.norm(jnp.concatenate([u[..., None, :], z], -2))

    def pool(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b c"]:
        """u of the tokens."""
        return x[..., 0, :]


XXS24 = {"embed_dim": 192, "depth": 24, "num_heads": 4}
XXS36 = XXS24 | {"depth": 36}
XS24 = {"embed_dim": 288, "depth": 24, "num_heads": 6}
S24 = {"embed_dim": 384, "depth": 24, "num_heads": 8}
S36 = S24 | {"depth": 36, "layer_scale": 1e-6}
M36 = {"embed_dim": 768, "depth": 36, "num_heads": 16, "layer_scale": 1e-6}
M48 = M36 | {"depth": 48}

MODELS = MappingProxyType(
    {
        "cait_xxs24_224": (CaiT, XXS24),
        "cait_xxs24_384": (CaiT, XXS24 | {"image_size": 384}),
        "cait_xxs36_224": (CaiT, XXS36),
        "cait_xxs36_384": (CaiT, XXS36 | {"image_size": 384}),
        "cait_xs24_384": (CaiT, XS24 | {"image_size": 384}),
        "cait_s24_224": (CaiT, S24),
        "cait_s24_384": (CaiT, S24 | {"image_size": 384}),
        "cait_s36_384": (CaiT, S36 | {"image_size": 384}),
        "cait_m36_384": (CaiT, M36 | {"image_size": 384}),
        "cait_m48_448": (CaiT, M48 | {"image_size": 448}),
    }
)
