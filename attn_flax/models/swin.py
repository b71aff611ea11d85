"""The Swin transformers: attention in windows, over maps that shrink from stage to stage.

    x -> norm(patches of 4×4 embedded) -> stage -> (merge -> stage) three times -> norm -> mean over positions -> linear

    merge of V1   y = W norm([x_00, x_10, x_01, x_11])
    block of V1   z = x + attention(norm(x))
                  y = z + W_2 gelu(W_1 norm(z) + b_1) + b_2

    merge of V2   y = norm(W [x_00, x_10, x_01, x_11])
    block of V2   z = x + norm(attention(x))
                  y = z + norm(W_2 gelu(W_1 z + b_1) + b_2)

where x_rc is what stands in row r and column c of each cell of 2×2, with zeros below and on the right of a map of odd
size: a merge halves the map and doubles the channels. The attention of V1 is ShiftedWindowAttention, that of V2
CosineWindowAttention; every other block rolls its windows. The window is at most as large as the map that a stage has
for images of the size that the network is made for, and is not rolled where it covers that map. The names of the layers
are timm's.

Differs from the paper: as in the authors' code, the scale of the norms in V2's blocks starts at zero, so that every
block starts as the identity. The norm after every sixth block of V2's largest networks is not here.

Errors elsewhere: a map that its windows do not divide is rolled and padded by timm in the wrong order, of which
ShiftedWindowAttention tells.

Source: Liu, Lin, Cao, Hu, Wei, Zhang, Lin and Guo, "Swin Transformer: Hierarchical Vision Transformer using Shifted
Windows" (2021), arXiv:2103.14030; V2: Liu, Hu, Lin, Yao, Xie, Wei, Ning, Cao, Zhang, Dong, Wei and Guo, "Swin
Transformer V2: Scaling Up Capacity and Resolution" (2022), arXiv:2111.09883.
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
from attn_flax.mechanisms import layers
from attn_flax.mechanisms.layers import Perceptron, gelu
from attn_flax.mechanisms.layout import check_map
from attn_flax.mechanisms.self_attention.swinv2 import CosineWindowAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, Stage, count_patches, drop_path, drop_path_rates, height_and_width
from attn_flax.nn import ShiftedWindowAttention

LayerNorm = partial(layers.LayerNorm, epsilon=1e-5)
ZeroLayerNorm = partial(LayerNorm, scale_init=nnx.initializers.zeros)


def _normed(layer, norm, x, *, post_norm):
    """layer(norm(x)), or norm(layer(x))."""
    return norm(layer(x)) if post_norm else layer(norm(x))


class SwinBlock(nnx.Module):
    """z = x + attention(norm(x)) and z + perceptron(norm(z)); or x + norm(attention(x)) and z + norm(perceptron(z)).

    Args:
        channels: of x and y.
        mlp_ratio: the width of the perceptron, in channels.
        attention: a factory of the mechanism on the map, or None for none.
        post_norm: whether the norms stand after attention and perceptron.
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
        attention: AttentionFactory | None,
        post_norm: bool = False,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = partial(ZeroLayerNorm if post_norm else LayerNorm, channels, **types)
        self.norm1 = nnx.data(norm() if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.norm2 = norm()
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)
        self.post_norm = post_norm

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y."""
        if self.attn is not None:
            x = x + self.drop_path(_normed(self.attn, self.norm1, x, post_norm=self.post_norm))
        return x + self.drop_path(_normed(self.mlp, self.norm2, x, post_norm=self.post_norm))


class PatchMerging(nnx.Module):
    """W norm([x_00, x_10, x_01, x_11]), or with `post_norm` norm(W […]).

    Args:
        channels: of x; y has twice as many.
        post_norm: whether the norm stands after W.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        post_norm: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = LayerNorm((2 if post_norm else 4) * channels, **types)
        self.reduction = nnx.Linear(4 * channels, 2 * channels, use_bias=False, **types)
        self.post_norm = post_norm

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y, of half the height and width, rounded up."""
        columns_first = ops.pad_to_multiple(x, 2).swapaxes(-3, -2)
        cells = ops.space_to_depth(columns_first, 2).swapaxes(-3, -2)
        return _normed(self.reduction, self.norm, cells, post_norm=self.post_norm)


class SwinTransformer(Classifier):
    """A Swin transformer; for 1000 classes of colour images of 28,288,354 (tiny) to 196,739,932 (V2 large) parameters.

    It is one of V2 with `post_norm` and the attention CosineWindowAttention.

    Args:
        num_classes: the number of logits.
        embed_dim: the channels of the first stage; each further one has twice those of the one before.
        depths: how many blocks each stage has.
        head_dim: the features of a head of the attention in windows.
        mlp_ratio: the width of the blocks' perceptrons, in channels.
        image_size: the height and width of the images for which no window is larger than the map; a number is both.
            Others may come.
        window: the height and width of the windows, where the map is large enough.
        patch_size: the height and width of a patch.
        in_channels: of the images.
        post_norm: whether the norms of blocks and merges stand after what they otherwise stand before.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        attention: a factory of the mechanism on the maps of every block, or None for none. The class
            ShiftedWindowAttention, the default, or CosineWindowAttention is given `head_dim`, its window and roll, and
            the types.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, heads that do not divide the channels, patches that do not divide `image_size`, or a
            rate out of range, at construction; images of other channels, or that the patches do not divide, at the
            call.
    """

    timm_names: ClassVar = (
        (r"^patch_embed\.(kernel|bias)", r"patch_embed.proj.\1"),
        (r"^patch_norm\b", "patch_embed.norm"),
        (r"^head\b", "head.fc"),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        head_dim: int = 32,
        mlp_ratio: int = 4,
        image_size: int | tuple[int, int] = 224,
        window: int = 7,
        patch_size: int = 4,
        in_channels: int = 3,
        post_norm: bool = False,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        attention: AttentionFactory | None = ShiftedWindowAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {
            "num_classes": num_classes, "embed_dim": embed_dim, "mlp_ratio": mlp_ratio, "window": window,
            "patch_size": patch_size, "in_channels": in_channels,
        }  # fmt: skip
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(len(depths) >= 1 and min(depths) >= 1, f"depths must be numbers of at least 1, got {depths}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        windows = {"window": window, "head_dim": head_dim, **types}
        self.patch_size = patch_size
        side = min(count_patches(height_and_width(image_size), patch_size))
        self.feature_channels = tuple(embed_dim * 2**i for i in range(len(depths)))
        patch = (patch_size, patch_size)
        self.patch_embed = nnx.Conv(in_channels, embed_dim, patch, patch, padding="VALID", **layer)
        self.patch_norm = LayerNorm(embed_dim, **layer)
        self.layers = nnx.List([])
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (channels, of_blocks) in enumerate(zip(self.feature_channels, rates, strict=True)):
            merge = PatchMerging(channels // 2, post_norm=post_norm, **layer) if i else None
            mechanisms = _in_windows(attention, math.ceil(side / 2**i), **windows)
            block = partial(SwinBlock, channels, mlp_ratio=mlp_ratio, post_norm=post_norm, **layer)
            blocks = [block(attention=mechanisms[j % 2], drop_path_rate=rate) for j, rate in enumerate(of_blocks)]
            self.layers.append(Stage(merge, blocks, remat=remat))
        self.norm = LayerNorm(self.feature_channels[-1], **layer)
        self.head = nnx.Linear(self.feature_channels[-1], num_classes, **layer)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after each stage, of `feature_channels` channels: as many positions as patches, then a quarter each.

        Their heights and widths are halved from stage to stage and rounded up.
        """
        check_map(x, self.patch_embed.in_features)
        count_patches(x.shape[-3:-1], self.patch_size)
        x = self.patch_norm(self.patch_embed(x))
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps, normalised."""
        return self.norm(self.features(x)[-1])


def _in_windows(attention, side, *, window, **arguments):
    """The attentions of even and of odd blocks on a map whose shorter side is this long."""
    if attention not in (ShiftedWindowAttention, CosineWindowAttention):
        return attention, attention
    attention = partial(attention, window=min(window, side), **arguments)
    return partial(attention, shift=0), attention if window < side else partial(attention, shift=0)


TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2)}
SMALL = {"embed_dim": 96, "depths": (2, 2, 18, 2)}
BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2)}
LARGE = {"embed_dim": 192, "depths": (2, 2, 18, 2)}
V2 = {"post_norm": True, "attention": CosineWindowAttention}

MODELS = MappingProxyType(
    {
        "swin_tiny_patch4_window7_224": (SwinTransformer, TINY),
        "swin_small_patch4_window7_224": (SwinTransformer, SMALL),
        "swin_base_patch4_window7_224": (SwinTransformer, BASE),
        "swin_large_patch4_window7_224": (SwinTransformer, LARGE),
        "swin_base_patch4_window12_384": (SwinTransformer, {**BASE, "window": 12, "image_size": 384}),
        "swin_large_patch4_window12_384": (SwinTransformer, {**LARGE, "window": 12, "image_size": 384}),
        "swinv2_tiny_window8_256": (SwinTransformer, {**TINY, **V2, "window": 8, "image_size": 256}),
        "swinv2_small_window8_256": (SwinTransformer, {**SMALL, **V2, "window": 8, "image_size": 256}),
        "swinv2_base_window8_256": (SwinTransformer, {**BASE, **V2, "window": 8, "image_size": 256}),
        "swinv2_tiny_window16_256": (SwinTransformer, {**TINY, **V2, "window": 16, "image_size": 256}),
        "swinv2_small_window16_256": (SwinTransformer, {**SMALL, **V2, "window": 16, "image_size": 256}),
        "swinv2_base_window16_256": (SwinTransformer, {**BASE, **V2, "window": 16, "image_size": 256}),
        "swinv2_base_window12_192": (SwinTransformer, {**BASE, **V2, "window": 12, "image_size": 192}),
        "swinv2_large_window12_192": (SwinTransformer, {**LARGE, **V2, "window": 12, "image_size": 192}),
    }
)
