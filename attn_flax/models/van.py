"""Visual attention networks: large kernel attention, over maps that shrink from stage to stage.

    x -> (norm(conv, halve) -> blocks -> norm) four times -> mean over positions -> linear

    block      z = x + γ₁ ⊙ mix(bn(x))
               y = z + γ₂ ⊙ W_4 gelu(conv 3×3 (W_3 bn(z)))
    mix(u)     = u + W_2 lka(gelu(W_1 u))

where lka is LargeKernelAttention, the W with their biases are 1×1 convolutions, the 3×3 convolution is depthwise, bn
are batch norms, the norm behind the blocks is one of each position's channels, and γ scale channels, little at first.
The first stage starts with a convolution of 7×7 that leaves a quarter of height and width, each further one with a
convolution of 3×3 that halves them, rounded up. timm has no such network; b0 to b3 are the authors' tiny, small, base
and large.

Differs from the paper: nothing that the authors' code does not do as well, γ and the u that mix adds; initial values
are Flax's.

Source: Guo, Lu, Liu, Cheng and Hu, "Visual Attention Network" (2022), arXiv:2202.09741; compared with the code of its
authors.
"""

from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv, LayerNorm, gelu
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, LayerScale, drop_path, drop_path_rates, in_order
from attn_flax.nn import LargeKernelAttention

SCALE = 0.01
"""γ at first."""


class Mixer(nnx.Module):
    """u + W_2 attention(gelu(W_1 u)).

    Args:
        channels: of u.
        attention: a factory of the mechanism.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: AttentionFactory,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.proj_1 = nnx.Linear(channels, channels, **types)
        self.attention = attention(channels, rngs=rngs)
        self.proj_2 = nnx.Linear(channels, channels, **types)

    def __call__(self, u: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """mix(u)."""
        return u + self.proj_2(self.attention(gelu(self.proj_1(u))))


class ConvPerceptron(nnx.Module):
    """W_4 gelu(conv 3×3 (W_3 u)), the convolution depthwise.

    Args:
        channels: of u.
        hidden: the channels between the layers.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.fc1 = nnx.Linear(channels, hidden, **types)
        self.dwconv = DepthwiseConv(hidden, (3, 3), **types)
        self.fc2 = nnx.Linear(hidden, channels, **types)

    def __call__(self, u: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map transformed."""
        return self.fc2(gelu(self.dwconv(self.fc1(u))))


class VanBlock(nnx.Module):
    """z = x + γ₁ ⊙ mix(bn(x)), then y = z + γ₂ ⊙ perceptron(bn(z)).

    Args:
        channels: of x and y.
        mlp_ratio: the width of the perceptron, in channels.
        attention: a factory of the mechanism in the mixer, or None for none, and then there is no mixer.
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
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = nnx.data(BatchNorm(channels, **types) if attention else None)
        self.attn = nnx.data(Mixer(channels, attention=attention, **types) if attention else None)
        self.layer_scale_1 = nnx.data(LayerScale(channels, SCALE, **types) if attention else None)
        self.norm2 = BatchNorm(channels, **types)
        self.mlp = ConvPerceptron(channels, mlp_ratio * channels, **types)
        self.layer_scale_2 = LayerScale(channels, SCALE, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y."""
        if self.attn is not None:
            x = x + self.drop_path(self.layer_scale_1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(self.norm2(x))))


class VanStage(nnx.Module):
    """A normalised convolution that makes the map smaller, blocks, and a norm.

    Args:
        in_channels: of x.
        channels: of y.
        size: of the convolution's window.
        stride: how many times smaller it makes height and width.
        rates: of stochastic depth, one for each block.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
        mlp_ratio: the width of the blocks' perceptrons, in channels.
        attention: a factory of the mechanism in the blocks, or None for none.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        size: int,
        stride: int,
        rates: list[float],
        mlp_ratio: int,
        attention: AttentionFactory | None,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.proj = nnx.Conv(in_channels, channels, (size, size), stride, padding=size // 2, **types)
        self.proj_norm = BatchNorm(channels, **types)
        block = partial(VanBlock, channels, mlp_ratio=mlp_ratio, attention=attention, **types)
        self.blocks = nnx.List([block(drop_path_rate=rate) for rate in rates])
        self.norm = LayerNorm(channels, **types)
        self.remat = remat

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        x = self.proj_norm(self.proj(x))
        return self.norm(in_order(self.blocks, x, remat=self.remat))


class VAN(Classifier):
    """A visual attention network; for 1000 classes of colour images of 4,105,800 parameters (b0) to 44,765,608 (b3).

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of each stage.
        depths: how many blocks each stage has.
        mlp_ratios: the width of the blocks' perceptrons in each stage, in channels.
        in_channels: of the images.
        attention: a factory of the mechanism in every block, or None for none, and then a block is its perceptron. The
            default, the class LargeKernelAttention itself, is given the types.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, stages without one of the sizes, or a rate out of range, at construction; images of
            other channels at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        in_channels: int = 3,
        attention: AttentionFactory | None = LargeKernelAttention,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("num_classes", num_classes), ("in_channels", in_channels)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(
            len(embed_dims) == len(depths) == len(mlp_ratios) >= 1 and min(*embed_dims, *depths, *mlp_ratios) >= 1,
            "embed_dims, depths and mlp_ratios must be sizes of at least 1, one of each for every stage, "
            f"got {embed_dims}, {depths} and {mlp_ratios}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        if attention is LargeKernelAttention:
            attention = partial(attention, **types)
        self.stages = nnx.List([])
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (channels, mlp_ratio) in enumerate(zip(embed_dims, mlp_ratios, strict=True)):
            self.stages.append(
                VanStage(
                    embed_dims[i - 1] if i else in_channels,
                    channels,
                    size=3 if i else 7,
                    stride=2 if i else 4,
                    rates=rates[i],
                    mlp_ratio=mlp_ratio,
                    attention=attention,
                    remat=remat,
                    **types,
                    rngs=rngs,
                )
            )
        self.head = nnx.Linear(embed_dims[-1], num_classes, **types, rngs=rngs)
        self.in_channels = in_channels
        self.feature_channels = tuple(embed_dims)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The normalised maps of all stages, of `feature_channels` channels.

        They have a quarter, an eighth, … of the image's height and width, rounded up.
        """
        check_map(x, self.in_channels)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps."""
        return self.features(x)[-1]


SMALL = {"embed_dims": (32, 64, 160, 256)}
WIDE = {"embed_dims": (64, 128, 320, 512)}

MODELS = MappingProxyType(
    {
        "van_b0": (VAN, {**SMALL, "depths": (3, 3, 5, 2)}),
        "van_b1": (VAN, {**WIDE, "depths": (2, 2, 4, 2)}),
        "van_b2": (VAN, {**WIDE, "depths": (3, 3, 12, 3)}),
        "van_b3": (VAN, {**WIDE, "depths": (3, 5, 27, 3)}),
    }
)
