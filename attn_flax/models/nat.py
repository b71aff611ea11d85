"""Neighbourhood attention transformers, and dilated ones.

    x -> norm(conv 3×3 (conv 3×3 (x))) -> stage 1 (c channels, 1/4 of the image) -> stage 2 (2c, 1/8)
      -> stage 3 (4c, 1/16) -> stage 4 (8c, 1/32) -> norm -> mean over positions -> linear

    block   z = x + γ_1 ⊙ attention(norm(x))
            y = z + γ_2 ⊙ (W_2 gelu(W_1 norm(z) + b_1) + b_2)

where both convolutions of the stem are at steps of 2, and each stage but the first begins with norm(conv 3×3 (x)), at
steps of 2 as well: maps are halved and rounded up. The attention is NeighborhoodAttention, each position's to the K×K
nearest to it, K = 7, with heads of 32 features. γ scale channels, little at first, in some of the networks.

DiNAT is NAT with a dilation δ in every other block, the largest with which the windows fit into the map: ⌊56/7⌋ = 8,
⌊28/7⌋ = 4, ⌊14/7⌋ = 2 and ⌊7/7⌋ = 1 in the four stages for images of 224×224. Nothing that is learned depends on it,
so that for images of another size it may be another.

Differs from the papers: nothing. γ are where the authors' code has them, which is in NAT's small and base, and in
DiNAT's base. Images whose maps do not hold K·δ positions along each axis are refused; the authors' code fills such maps
up with zeros, which then are attended to. timm has neither network.

Source: Hassani, Walton, Li, Li and Shi, "Neighborhood Attention Transformer" (2022), arXiv:2204.07143; Hassani and Shi,
"Dilated Neighborhood Attention Transformer" (2022), arXiv:2209.15001. Sizes, norms and γ read in the authors' code,
SHI-Labs/Neighborhood-Attention-Transformer.
"""

from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, LayerScale, Stage, drop_path, drop_path_rates
from attn_flax.nn import NeighborhoodAttention

Norm = partial(LayerNorm, epsilon=1e-5)
halving_conv = partial(nnx.Conv, kernel_size=(3, 3), strides=2, padding=1)


class NatBlock(nnx.Module):
    """z = x + γ_1 ⊙ attention(norm(x)), then y = z + γ_2 ⊙ perceptron(norm(z)).

    Args:
        channels: of x and y.
        mlp_ratio: the width of the perceptron, in channels.
        attention: a factory of the mechanism on the map, or None for none.
        layer_scale: γ at first, or None for no γ.
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
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        scale = partial(LayerScale, channels, layer_scale, **types) if layer_scale else lambda: jax.nn.identity
        self.norm1 = nnx.data(Norm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.ls1 = scale() if attention else jax.nn.identity
        self.norm2 = Norm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.ls2 = scale()
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y."""
        if self.attn is not None:
            x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Tokenizer(nnx.Module):
    """norm(conv 3×3 (conv 3×3 (x))), which leaves a quarter of height and width.

    Args:
        in_channels: of x.
        channels: of the map made of it; the first convolution makes half as many.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = halving_conv(in_channels, channels // 2, **types)
        self.conv2 = halving_conv(channels // 2, channels, **types)
        self.norm = Norm(channels, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The smaller map."""
        return self.norm(self.conv2(self.conv1(x)))


class Downsample(nnx.Module):
    """norm(conv 3×3 (x)), of half the height and width and twice the channels.

    Args:
        channels: of x.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.reduction = halving_conv(channels, 2 * channels, use_bias=False, **types)
        self.norm = Norm(2 * channels, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The smaller map."""
        return self.norm(self.reduction(x))


class NAT(Classifier):
    """A neighbourhood attention transformer, dilated or not; of 20 to 200 million parameters (mini to DiNAT's large).

    Args:
        num_classes: the number of logits.
        embed_dim: c, the channels of the first stage, an even number; each stage has twice those of the one before.
        depths: how many blocks each stage has.
        mlp_ratio: the width of the blocks' perceptrons, in channels.
        num_heads: of the default attention in the first stage; each stage has twice those of the one before.
        kernel_size: K, of the default attention.
        dilations: δ of the blocks of each stage, over and over: ((1, 8), …) dilates every other block of the first
            stage. By default nothing is dilated.
        layer_scale: γ at first, or None for no γ.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        attention: a factory of the mechanism on the maps of every block, or None for none. The default, the class
            NeighborhoodAttention itself, is given the arguments above, and the types.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, an odd embed_dim, heads that do not divide the channels, an even kernel, dilations
            of other stages or a rate outside [0, 1), at construction; images of other channels, or too small for the
            windows of a stage, at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        mlp_ratio: int,
        num_heads: int,
        kernel_size: int = 7,
        dilations: tuple[tuple[int, ...], ...] | None = None,
        layer_scale: float | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        attention: AttentionFactory | None = NeighborhoodAttention,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"num_classes": num_classes, "mlp_ratio": mlp_ratio, "in_channels": in_channels}
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(embed_dim >= 2 and embed_dim % 2 == 0, f"embed_dim must be even and at least 2, got {embed_dim}.")
        check(len(depths) >= 1 and min(depths) >= 1, f"depths must be numbers of at least 1, got {depths}.")
        dilations = dilations or ((1,),) * len(depths)
        check(
            len(dilations) == len(depths) and all(len(steps) >= 1 for steps in dilations),
            f"dilations must be one or more for each of the {len(depths)} stages, got {dilations}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        steps = [[given[j % len(given)] for j in range(depth)] for given, depth in zip(dilations, depths, strict=True)]
        rates = drop_path_rates(drop_path_rate, depths)
        self.feature_channels = tuple(embed_dim * 2**i for i in range(len(depths)))
        self.patch_embed = Tokenizer(in_channels, embed_dim, **layer)
        self.levels = nnx.List([])
        self.smallest = 1
        for i, channels in enumerate(self.feature_channels):
            block = partial(NatBlock, channels, mlp_ratio=mlp_ratio, layer_scale=layer_scale, **layer)
            mechanisms = [attention] * depths[i]
            if attention is NeighborhoodAttention:
                own = partial(attention, num_heads=num_heads * 2**i, kernel_size=kernel_size, **types)
                mechanisms = [partial(own, dilation=step) for step in steps[i]]
                self.smallest = max(self.smallest, (kernel_size * max(steps[i]) - 1) * 4 * 2**i + 1)
            blocks = [block(attention=a, drop_path_rate=rate) for a, rate in zip(mechanisms, rates[i], strict=True)]
            self.levels.append(Stage(Downsample(channels // 2, **layer) if i else None, blocks, remat=remat))
        self.norm = Norm(self.feature_channels[-1], **layer)
        self.head = nnx.Linear(self.feature_channels[-1], num_classes, **layer)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after each stage, of `feature_channels` channels and a quarter, an eighth, … of height and width."""
        check_map(x, self.patch_embed.conv1.in_features)
        h, w = x.shape[-3:-1]
        check(min(h, w) >= self.smallest, f"images must be of at least {self.smallest}×{self.smallest}, got {h}×{w}.")
        x = self.patch_embed(x)
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps, normalised."""
        return self.norm(self.features(x)[-1])


MINI = {"embed_dim": 64, "num_heads": 2, "depths": (3, 4, 6, 5), "mlp_ratio": 3}
TINY = MINI | {"depths": (3, 4, 18, 5)}
SMALL = {"embed_dim": 96, "num_heads": 3, "depths": (3, 4, 18, 5), "mlp_ratio": 2}
BASE = SMALL | {"embed_dim": 128, "num_heads": 4, "layer_scale": 1e-5}
LARGE = SMALL | {"embed_dim": 192, "num_heads": 6}
DILATED = {"dilations": ((1, 8), (1, 4), (1, 2), (1,))}

MODELS = MappingProxyType(
    {
        "nat_mini": (NAT, MINI),
        "nat_tiny": (NAT, TINY),
        "nat_small": (NAT, SMALL | {"layer_scale": 1e-5}),
        "nat_base": (NAT, BASE),
        "dinat_mini": (NAT, MINI | DILATED),
        "dinat_tiny": (NAT, TINY | DILATED),
        "dinat_small": (NAT, SMALL | DILATED),
        "dinat_base": (NAT, BASE | DILATED),
        "dinat_large": (NAT, LARGE | DILATED),
        "dinat_large_384": (NAT, LARGE | {"dilations": ((1, 13), (1, 6), (1, 3), (1,))}),
        "dinat_large_384_11x11": (NAT, LARGE | DILATED | {"kernel_size": 11}),
    }
)
