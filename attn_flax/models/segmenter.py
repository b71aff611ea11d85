"""Segmenter: a vision transformer whose patches are told their classes.

    z = W_d z_L + b_d,   u = learned vectors, one for each class
    [z, u] = norm(blocks([z, u]))                                patches and classes attend to each other
    logits = norm_K(ẑ ûᵀ),   ẑ = W_z z / ‖W_z z‖,   û = W_u u / ‖W_u u‖

for the normalised tokens z_L of the patches, where norm_K is a layer normalisation over the K classes; or, without all
that, the linear head logits = W z_L + b. The logits of the patches are interpolated linearly to the size of the image.

Differs from the paper: nothing. The matrices W_d, W_z and W_u and norm_K, which its equations leave out, are those of
the authors' code. Images that the patches do not divide are padded with zeros below and on the right, and the logits
cropped.

Source: Strudel, Garcia, Laptev and Schmid, "Segmenter: Transformer for Semantic Segmentation" (2021), arXiv:2105.05633.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import height_and_width
from attn_flax.models.vit import TransformerBlock, VisionTransformer
from attn_flax.nn import MultiHeadSelfAttention

Head = Literal["mask", "linear"]


class MaskHead(nnx.Module):
    """The mask transformer: logits of tokens by their likeness to tokens of the classes.

    Args:
        channels: of the tokens.
        num_classes: K.
        depth: how many blocks there are.
        num_heads: of the attention in each block.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        depth: int = 2,
        num_heads: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        attention = partial(MultiHeadSelfAttention, num_heads=num_heads, qkv_bias=True, num_spatial_dims=1, **types)
        small = nnx.initializers.truncated_normal(0.02)
        self.enter = nnx.Linear(channels, channels, **types, rngs=rngs)
        self.classes = nnx.Param(small(rngs.params(), (num_classes, channels), param_dtype))
        self.blocks = nnx.List(
            [TransformerBlock(channels, mlp_ratio=4, attention=attention, **types, rngs=rngs) for _ in range(depth)]
        )
        self.norm = LayerNorm(channels, **types, rngs=rngs)
        self.of_patches, self.of_classes = (
            nnx.Linear(channels, channels, use_bias=False, **types, rngs=rngs) for _ in range(2)
        )
        self.mask_norm = LayerNorm(num_classes, **types, rngs=rngs)

    def __call__(self, z: Float[Array, "*b n c"]) -> Float[Array, "*b n classes"]:
        """The logits of each token."""
        n = z.shape[-2]
        z = self.enter(z)
        u = jnp.broadcast_to(self.classes[...].astype(z.dtype), (*z.shape[:-2], *self.classes.shape))
        tokens = jnp.concatenate([z, u], -2)
        for block in self.blocks:
            tokens = block(tokens)
        z, u = jnp.split(self.norm(tokens), [n], -2)
        z, u = _unit(self.of_patches(z)), _unit(self.of_classes(u))
        return self.mask_norm(jnp.einsum("...nc,...kc->...nk", z, u))


class Segmenter(nnx.Module):
    """A vision transformer with a mask transformer or a linear head.

    Args:
        num_classes: K, the number of logits of each pixel.
        embed_dim: the features of a token.
        depth: how many blocks the vision transformer has.
        num_heads: of the multi-head self-attention in every block, of the head too.
        image_size: the height and width for which there are positions, rounded up to patches; a number is both.
        patch_size: the height and width of a patch.
        in_channels: of the images.
        head: "mask", the mask transformer, or "linear".
        attention: as the vision transformer takes it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: what the vision transformer refuses, or an unknown head.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        head: Head = "mask",
        attention: AttentionFactory | None = MultiHeadSelfAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        check(patch_size >= 1, f"patch_size must be at least 1, got {patch_size}.")
        check(head in get_args(Head), f"head must be 'mask' or 'linear', got {head!r}.")
        height, width = height_and_width(image_size)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = VisionTransformer(
            1,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            image_size=(height + -height % patch_size, width + -width % patch_size),
            patch_size=patch_size,
            in_channels=in_channels,
            attention=attention,
            **types,
        )
        if head == "mask":
            self.head = MaskHead(embed_dim, num_classes, num_heads=num_heads, **types)
        else:
            self.head = nnx.Linear(embed_dim, num_classes, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w classes"]:
        """The logits of each pixel of images of any size."""
        patch = self.backbone.patch_size
        h, w = x.shape[-3:-1]
        x = ops.pad_to_multiple(x, patch)
        p, q = (size // patch for size in x.shape[-3:-1])
        z = self.backbone.forward_features(x)[..., 1:, :]
        logits = self.head(z)
        logits = logits.reshape(*logits.shape[:-2], p, q, -1)
        return ops.resize_bilinear(logits, x.shape[-3:-1])[..., :h, :w, :]


def _unit(x):
    """Vectors of length one; computed in float32 or wider, and zero stays zero."""
    wide = x.astype(ops.at_least_float32(x.dtype))
    squared = jnp.maximum((wide**2).sum(-1, keepdims=True), 1e-24)
    return (wide * jax.lax.rsqrt(squared)).astype(x.dtype)


MODELS = MappingProxyType(
    {
        "segmenter_tiny_patch16": (Segmenter, {"embed_dim": 192, "depth": 12, "num_heads": 3}),
        "segmenter_small_patch16": (Segmenter, {"embed_dim": 384, "depth": 12, "num_heads": 6}),
        "segmenter_base_patch16": (Segmenter, {"embed_dim": 768, "depth": 12, "num_heads": 12}),
    }
)
