"""Vision outlookers.

    block          x = x + attention(norm(x))           in outlookers outlook attention, in transformers self-attention
                   x = x + W_2 gelu(W_1 norm(x) + b_1) + b_2
    class block    u = u + attention(norm([u, z_1 … z_n]))         class attention, of the class token u alone
                   u = u + W_2 gelu(W_1 norm(u) + b_1) + b_2

    x -> stem (1/2 of the image) -> cells of 4×4 embedded (1/8) -> outlookers -> cells of 2×2 embedded (1/16), + p
      -> transformers, in stages -> z
    [u, z_1 … z_n] -> two class blocks -> norm
    logits = W u + b + ½ max_j(V z_j + d)

with three convolutions, each normalised by batch and rectified, in the stem, and a learned position p for each position
of its map. Outlook attention is of windows of 3×3 around every other position. Every token is classified, not only the
class token: what any of them finds counts half. Rows and columns that fill no cell are left out. The names of the
layers are timm's.

Differs from the paper: the positions p are those of the network's own image size; for other images they are resampled
as in VisionTransformer. In training the logits are those of evaluation, as in timm; token labelling, for which the
authors' code gives those of u and of all z_j apart, is not here. As in that code, stochastic depth leaves outlookers
and class blocks as they are.

Source: Yuan, Hou, Jiang, Feng and Yan, "VOLO: Vision Outlooker for Visual Recognition" (2021), arXiv:2106.13112.
Confirmed with timm's code; stochastic depth and logits read in the authors' code, sail-sg/volo.
"""

from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm, LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, flatten_positions
from attn_flax.mechanisms.self_attention.class_attention import ClassAttention
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.mechanisms.self_attention.outlook import OutlookAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, drop_path_rates, height_and_width, in_order
from attn_flax.models.swin import SwinBlock

Norm = partial(LayerNorm, epsilon=1e-5)
CLASS_BLOCKS = 2


class PatchEmbed(nnx.Module):
    """Three convolutions, normalised and rectified, of which the first halves the map, then cells of 4×4 embedded.

    Args:
        in_channels: of the images.
        hidden: the channels of the three convolutions.
        channels: of the map.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv = partial(nnx.Conv, use_bias=False, **types)
        self.conv = nnx.Sequential(
            conv(in_channels, hidden, (7, 7), 2, padding=3),
            BatchNorm(hidden, **types),
            jax.nn.relu,
            conv(hidden, hidden, (3, 3)),
            BatchNorm(hidden, **types),
            jax.nn.relu,
            conv(hidden, hidden, (3, 3)),
            BatchNorm(hidden, **types),
            jax.nn.relu,
        )
        self.proj = nnx.Conv(hidden, channels, (4, 4), 4, padding="VALID", **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map, of an eighth of the image's height and width."""
        return self.proj(self.conv(x))


class ClassBlock(nnx.Module):
    """u + attention(norm([u, z])), then u + perceptron(norm(u)); z stays as it is.

    Args:
        channels: of the tokens.
        num_heads: of the class attention.
        mlp_ratio: the width of the perceptron, in `channels`.
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
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = Norm(channels, **types)
        self.attn = ClassAttention(channels, num_heads=num_heads, **types)
        self.norm2 = Norm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)

    def __call__(self, tokens: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """The tokens, the class token first, after the block."""
        u = tokens[..., 0, :] + self.attn(self.norm1(tokens))
        u = u + self.mlp(self.norm2(u))
        return jnp.concatenate([u[..., None, :], tokens[..., 1:, :]], -2)


class Volo(Classifier):
    """A vision outlooker; for 1000 classes of colour images of 26,632,040 parameters (D1) to 295,455,584 (D5).

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of the outlookers, and of the transformers and class blocks.
        depths: how many outlookers there are, and then how many transformers in each further stage.
        num_heads: of the outlook attention, and of self-attention and class attention.
        mlp_ratio: the width of the perceptrons, in channels.
        stem_channels: of the stem's convolutions.
        image_size: the height and width for which there are positions; a number is both.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in the last transformer, as if from zero in the first outlooker.
        attention: a factory of the mechanism of maps in every outlooker, or None for none. The default, the class
            OutlookAttention itself, is given its heads, a stride of 2, and the types.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, images below 16×16, heads that do not divide the channels or a rate out of range at
            construction; images of other channels or below 16×16 at the call.
    """

    heads = ("head", "aux_head")
    timm_names: ClassVar = (
        (r"^patch_embed\.proj\.(conv|proj)\b", r"patch_embed.\1"),
        (r"\bconv\.layers\b", "conv"),
        (r"^network\.1\b", "network.1.proj"),
        (r"^(post_network\.\d+\.attn)\.k\b", r"\1.kv[0]"),
        (r"^(post_network\.\d+\.attn)\.v\b", r"\1.kv[1]"),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: tuple[int, int],
        depths: tuple[int, ...],
        num_heads: tuple[int, int],
        mlp_ratio: int = 3,
        stem_channels: int = 64,
        image_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        attention: AttentionFactory | None = OutlookAttention,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {
            "num_classes": num_classes, "mlp_ratio": mlp_ratio, "stem_channels": stem_channels,
            "in_channels": in_channels,
        }  # fmt: skip
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(min(embed_dims) >= 1, f"embed_dims must be at least 1, got {embed_dims}.")
        check(len(depths) >= 2 and min(depths) >= 1, f"depths must be at least 2 numbers of at least 1, got {depths}.")
        size = height_and_width(image_size)
        check(min(size) >= 16, f"image_size must be at least 16×16, got {size[0]}×{size[1]}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        outlook_dim, embed_dim = embed_dims
        outlook_heads, heads = num_heads
        if attention is OutlookAttention:
            attention = partial(attention, num_heads=outlook_heads, stride=2, **types)
        outlooker = partial(SwinBlock, outlook_dim, mlp_ratio=mlp_ratio, attention=attention, **layer)
        self_attention = partial(MultiHeadSelfAttention, num_heads=heads, **types)
        transformer = partial(SwinBlock, embed_dim, mlp_ratio=mlp_ratio, attention=self_attention, **layer)
        class_block = partial(ClassBlock, embed_dim, num_heads=heads, mlp_ratio=mlp_ratio, **layer)
        first, *rates = drop_path_rates(drop_path_rate, depths)
        self.patch_embed = PatchEmbed(in_channels, stem_channels, outlook_dim, **layer)
        self.network = nnx.List(
            [
                nnx.List([outlooker() for _ in first]),
                nnx.Conv(outlook_dim, embed_dim, (2, 2), 2, padding="VALID", **layer),
                *(nnx.List([transformer(drop_path_rate=rate) for rate in of_stage]) for of_stage in rates),
            ]
        )
        small = nnx.initializers.truncated_normal(0.02)
        grid = [-(-n // 2) // 8 for n in size]  # the stem rounds up, the cells down
        self.pos_embed = nnx.Param(small(rngs.params(), (*grid, embed_dim), param_dtype))
        self.cls_token = nnx.Param(small(rngs.params(), (embed_dim,), param_dtype))
        self.post_network = nnx.List([class_block() for _ in range(CLASS_BLOCKS)])
        self.norm = Norm(embed_dim, **layer)
        self.head = nnx.Linear(embed_dim, num_classes, **layer)
        self.aux_head = nnx.Linear(embed_dim, num_classes, **layer)
        self.remat = remat
        self.feature_channels = (outlook_dim, *(embed_dim for _ in rates))

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after the outlookers and after each stage of transformers, of `feature_channels` channels.

        The first has an eighth of the image's height and width, the others a sixteenth.
        """
        check_map(x, self.patch_embed.conv.layers[0].in_features)
        h, w = x.shape[-3:-1]
        check(min(h, w) >= 16, f"images must be at least 16×16, got {h}×{w}.")
        outlookers, downsample, *stages = self.network
        x = in_order(outlookers, self.patch_embed(x), remat=self.remat)
        maps = [x]
        x = downsample(x)
        x = x + ops.resize_bicubic(self.pos_embed[...], x.shape[-3:-1]).astype(x.dtype)
        for transformers in stages:
            x = in_order(transformers, x, remat=self.remat)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """The tokens after the last block, normalised: u, then z in row-major order."""
        z = flatten_positions(self.features(x)[-1], 2)
        u = jnp.broadcast_to(self.cls_token[...].astype(z.dtype), (*z.shape[:-2], 1, z.shape[-1]))
        return self.norm(in_order(self.post_network, jnp.concatenate([u, z], -2), remat=self.remat))

    def pool(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b c"]:
        """u of the tokens."""
        return x[..., 0, :]

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b classes"]:
        """The logits of images."""
        tokens = self.forward_features(x)
        return self.head(self.pool(tokens)) + 0.5 * self.aux_head(tokens[..., 1:, :]).max(-2)


D1 = {"embed_dims": (192, 384), "depths": (4, 4, 8, 2), "num_heads": (6, 12)}
D2 = {"embed_dims": (256, 512), "depths": (6, 4, 10, 4), "num_heads": (8, 16)}
D3 = D2 | {"depths": (8, 8, 16, 4)}
D4 = D3 | {"embed_dims": (384, 768), "num_heads": (12, 16)}
D5 = D4 | {"depths": (12, 12, 20, 4), "mlp_ratio": 4, "stem_channels": 128}

MODELS = MappingProxyType(
    {
        "volo_d1_224": (Volo, D1),
        "volo_d1_384": (Volo, D1 | {"image_size": 384}),
        "volo_d2_224": (Volo, D2),
        "volo_d2_384": (Volo, D2 | {"image_size": 384}),
        "volo_d3_224": (Volo, D3),
        "volo_d3_448": (Volo, D3 | {"image_size": 448}),
        "volo_d4_224": (Volo, D4),
        "volo_d4_448": (Volo, D4 | {"image_size": 448}),
        "volo_d5_224": (Volo, D5),
        "volo_d5_448": (Volo, D5 | {"image_size": 448}),
        "volo_d5_512": (Volo, D5 | {"image_size": 512}),
    }
)
