"""Focal modulation networks.

    block              x = x + modulation(norm(x))
                       x = x + W_2 gelu(W_1 norm(x) + b_1) + b_2
    post-norm block    x = x + γ_1 ⊙ norm(modulation(x))
                       x = x + γ_2 ⊙ norm(W_2 gelu(W_1 x + b_1) + b_2)

    x -> stem (c channels, 1/4 of the image) -> stage 1 (c, 1/4) -> stage 2 (2c, 1/8) -> stage 3 (4c, 1/16)
      -> stage 4 (8c, 1/32) -> norm -> mean over positions -> linear

The stem is norm(W x + b), with a convolution W at steps of 4, and so, at steps of 2, begins each stage but the first.
The convolutions' windows are as large as the steps, and rows and columns that fill none are left out; or they overlap,
of 7×7 in the stem and 3×3 thereafter. The large networks and those beyond have post-norm blocks and windows that
overlap. "srf" are networks of a small receptive field, of two ranges of focal modulation, "lrf" those of a large one,
of three, and "fl3" and "fl4" those of three and four. The names of the layers are timm's.

Differs from the paper: nothing. Norms, scales and windows of the large networks are those of the authors' code, where
the convolutions between stages stand at the end of one, not at the beginning of the next.

Source: Yang, Li, Dai, Yuan and Gao, "Focal Modulation Networks" (2022), arXiv:2203.11926. Confirmed with timm's code;
read in the authors' code, microsoft/FocalNet.
"""

from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map
from attn_flax.mechanisms.spatial.focal_modulation import FocalModulation
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, LayerScale, Stage, drop_path, drop_path_rates

Norm = partial(LayerNorm, epsilon=1e-5)
LAYER_SCALE = 1e-4


class Block(nnx.Module):
    """x + modulate(x), then x + transform(x); the kinds of blocks say where in these, their branches, the norms are.

    Args:
        channels: of x.
        mlp_ratio: the width of the perceptron, in `channels`.
        drop_path_rate: of stochastic depth.
        attention: a factory of the mechanism of maps, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.0,
        attention: AttentionFactory | None = FocalModulation,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.modulation = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)
        self._add_norms(channels, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map after the block."""
        if self.modulation is not None:
            x = x + self.drop_path(self.modulate(x))
        return x + self.drop_path(self.transform(x))


class PreNormBlock(Block):
    """With the norms before modulation and perceptron."""

    def _add_norms(self, channels, **types):
        self.norm1 = nnx.data(None if self.modulation is None else Norm(channels, **types))
        self.norm2 = Norm(channels, **types)

    def modulate(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The first branch."""
        return self.modulation(self.norm1(x))

    def transform(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The second branch."""
        return self.mlp(self.norm2(x))


class PostNormBlock(Block):
    """With the norms after modulation and perceptron, and after these a small scale."""

    def _add_norms(self, channels, **types):
        has_attention = self.modulation is not None
        self.norm1_post = nnx.data(Norm(channels, **types) if has_attention else None)
        self.ls1 = nnx.data(LayerScale(channels, LAYER_SCALE, **types) if has_attention else None)
        self.norm2_post = Norm(channels, **types)
        self.ls2 = LayerScale(channels, LAYER_SCALE, **types)

    def modulate(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The first branch."""
        return self.ls1(self.norm1_post(self.modulation(x)))

    def transform(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The second branch."""
        return self.ls2(self.norm2_post(self.mlp(x)))


class Downsample(nnx.Module):
    """norm(W x + b), with a convolution W at steps of 4, that of the stem, or of 2.

    Args:
        in_channels: of x.
        channels: of the map made of it.
        stride: the steps, 4 or 2.
        overlap: whether the convolution's windows overlap, and there are zeros around x.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        overlap: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        size, padding = {4: (7, 2), 2: (3, 1)}[stride] if overlap else (stride, 0)
        self.proj = nnx.Conv(in_channels, channels, (size, size), stride, padding=padding, **types)
        self.norm = Norm(channels, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The smaller map."""
        return self.norm(self.proj(x))


class FocalNet(Classifier):
    """A focal modulation network; for 1000 classes of colour images of 28 to 689 million parameters (tiny to huge).

    Args:
        num_classes: the number of logits.
        embed_dim: c, the channels of the first stage; each stage has twice as many as the one before.
        depths: how many blocks each stage has.
        block: the kind of its blocks.
        overlap_down: whether the windows of stem and smaller maps overlap.
        mlp_ratio: the width of the blocks' perceptrons, in their channels.
        focal_window: k_1, of the default attention.
        focal_level: L, of the default attention.
        modulation_norm: whether the default attention has a norm of its own, its `post_norm`.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        attention: a factory of the mechanism of maps in every block, or None for none. The default, the class
            FocalModulation itself, is given the arguments above, and the types.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, an even window or a rate outside [0, 1) at construction; images of other channels,
            or too small for the last stage to have a position, at the call.
    """

    timm_names: ClassVar = ((r"^head\b", "head.fc"),)
    timm_convs: ClassVar = r"\bmlp\."

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        block: type[Block] = PreNormBlock,
        overlap_down: bool = False,
        mlp_ratio: int = 4,
        focal_window: int = 3,
        focal_level: int = 2,
        modulation_norm: bool = False,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        attention: AttentionFactory | None = FocalModulation,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {
            "num_classes": num_classes, "embed_dim": embed_dim, "mlp_ratio": mlp_ratio, "in_channels": in_channels
        }  # fmt: skip
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(len(depths) >= 1 and min(depths) >= 1, f"depths must be numbers of at least 1, got {depths}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        if attention is FocalModulation:
            ranges = {"focal_window": focal_window, "focal_level": focal_level, "post_norm": modulation_norm}
            attention = partial(attention, **ranges, **types)
        block = partial(block, mlp_ratio=mlp_ratio, attention=attention, **types, rngs=rngs)
        downsample = partial(Downsample, overlap=overlap_down, **types, rngs=rngs)
        self.feature_channels = tuple(embed_dim * 2**i for i in range(len(depths)))
        last = self.feature_channels[-1]
        self.smallest = 3 if overlap_down else 4 * 2 ** (len(depths) - 1)
        self.stem = downsample(in_channels, embed_dim, stride=4)
        self.layers = nnx.List([])
        for width, rates in zip(self.feature_channels, drop_path_rates(drop_path_rate, depths), strict=True):
            smaller = downsample(width // 2, width, stride=2) if self.layers else None
            self.layers.append(Stage(smaller, [block(width, drop_path_rate=rate) for rate in rates], remat=remat))
        self.norm = Norm(last, **types, rngs=rngs)
        self.head = nnx.Linear(last, num_classes, **types, rngs=rngs)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after each stage, of `feature_channels` channels and a quarter, an eighth, … of height and width."""
        check_map(x, self.stem.proj.in_features)
        h, w = x.shape[-3:-1]
        check(min(h, w) >= self.smallest, f"images must be of at least {self.smallest}×{self.smallest}, got {h}×{w}.")
        x = self.stem(x)
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last stage's map, normalised."""
        return self.norm(self.features(x)[-1])


TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2)}
SMALL = {"embed_dim": 96, "depths": (2, 2, 18, 2)}
BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2)}
LARGE = {"embed_dim": 192, "depths": (2, 2, 18, 2), "block": PostNormBlock, "overlap_down": True}
XLARGE = LARGE | {"embed_dim": 256}
HUGE = LARGE | {"embed_dim": 352, "modulation_norm": True}

MODELS = MappingProxyType(
    {
        "focalnet_tiny_srf": (FocalNet, TINY),
        "focalnet_small_srf": (FocalNet, SMALL),
        "focalnet_base_srf": (FocalNet, BASE),
        "focalnet_tiny_lrf": (FocalNet, TINY | {"focal_level": 3}),
        "focalnet_small_lrf": (FocalNet, SMALL | {"focal_level": 3}),
        "focalnet_base_lrf": (FocalNet, BASE | {"focal_level": 3}),
        "focalnet_large_fl3": (FocalNet, LARGE | {"focal_window": 5, "focal_level": 3}),
        "focalnet_large_fl4": (FocalNet, LARGE | {"focal_level": 4}),
        "focalnet_xlarge_fl3": (FocalNet, XLARGE | {"focal_window": 5, "focal_level": 3}),
        "focalnet_xlarge_fl4": (FocalNet, XLARGE | {"focal_level": 4}),
        "focalnet_huge_fl3": (FocalNet, HUGE | {"focal_level": 3}),
        "focalnet_huge_fl4": (FocalNet, HUGE | {"focal_level": 4}),
    }
)
