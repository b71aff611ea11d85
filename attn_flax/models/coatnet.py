"""CoAtNet: stages of convolutions, then stages of self-attention that knows offsets.

    x -> stem (1/2 of the image) -> MBConv (1/4) -> MBConv (1/8) -> transformers (1/16) -> transformers (1/32)
      -> mean over positions -> norm -> tanh(W x + b) -> linear

with the blocks of mbconv.py. What a convolution and self-attention have in common is a weighted sum over positions; by
offset alone in the one, by what is alike in the other, and in RelativeSelfAttention by the sum of both before the
softmax. Convolutions come first, where the maps are large. The names of the layers are timm's.

Differs from the paper: as in timm, maps are halved by the mean of 2×2 positions, not their maximum, in MBConv by the
depthwise convolution, not by the one before it, and the classifier has a hidden layer. Maps of odd height or width,
which timm refuses, are halved too, rounded up: the last row or column has the means of what is there.

Source: Dai, Liu, Le and Tan, "CoAtNet: Marrying Convolution and Attention for All Data Sizes" (2021), arXiv:2106.04803.
Confirmed with timm's code; of these networks no numbers are published.
"""

from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import gelu
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import height_and_width
from attn_flax.models.mbconv import ALIKE, Hybrid, MBConv, Stem, TransformerBlock
from attn_flax.nn import RelativeSelfAttention

CONVOLUTION = {"activation": gelu, "epsilon": 1e-5, "padding": ALIKE}
TRANSFORMER = {"activation": gelu, "epsilon": 1e-6}


class Widened(nnx.Module):
    """attention(W x + b), for an attention whose features go in as they come out; or the attention alone.

    Args:
        attention: its factory.
        channels: of the attention.
        in_channels: of x; by default as many.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        attention: AttentionFactory,
        channels: int,
        *,
        in_channels: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.widen = nnx.data(nnx.Linear(in_channels, channels, **types) if in_channels else None)
        self.attention = attention(channels, rngs=rngs)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """The map attended to."""
        return self.attention(x if self.widen is None else self.widen(x))


class CoAtNet(Hybrid):
    """A CoAtNet; for 1000 classes of colour images of 25,036,820 (0) to 687,472,008 (5) parameters.

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of the two stages of convolutions and of the two of transformers.
        depths: how many blocks each stage has.
        stem_channels: of the stem.
        head_dim: the features of a head of the attention.
        image_size: the height and width of the images that the tables of offsets are for; a number is both. For other
            images the attention interpolates them.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        attention: a factory of the mechanism on the maps of every transformer, or None for none. The default, the class
            RelativeSelfAttention itself, is given `head_dim`, the size of the maps, and the types.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, channels or depths that are not four, heads that do not divide the channels, or a
            rate out of range, at construction; images of other channels at the call.
    """

    timm_convs: ClassVar[str] = r"^stages"
    timm_names: ClassVar = (*Hybrid.timm_names, (r"^(stages\.[23]\.blocks\.0\.norm1)\b", r"\1.norm"))

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        stem_channels: int,
        head_dim: int = 32,
        image_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        attention: AttentionFactory | None = RelativeSelfAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width = height_and_width(image_size)
        check(min(height, width) >= 1, f"image_size must be at least 1×1, got {height}×{width}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}

        def transformer(reduction):
            size = (-(-height // reduction), -(-width // reduction))
            own = partial(RelativeSelfAttention, size=size, head_dim=head_dim, **types)
            another = partial(Widened, attention, **types) if attention else None
            mechanism = own if attention is RelativeSelfAttention else another
            return partial(TransformerBlock, attention=mechanism, **TRANSFORMER)

        mbconv = partial(MBConv, **CONVOLUTION)
        super().__init__(
            num_classes,
            stem=partial(Stem, use_bias=False, **CONVOLUTION),
            blocks=[mbconv, mbconv, transformer(16), transformer(32)],
            stem_channels=stem_channels,
            embed_dims=embed_dims,
            depths=depths,
            in_channels=in_channels,
            epsilon=TRANSFORMER["epsilon"],
            drop_path_rate=drop_path_rate,
            remat=remat,
            **types,
            rngs=rngs,
        )


WIDTHS_0 = {"stem_channels": 64, "embed_dims": (96, 192, 384, 768)}
WIDTHS_2 = {"stem_channels": 128, "embed_dims": (128, 256, 512, 1024)}
WIDTHS_3 = {"stem_channels": 192, "embed_dims": (192, 384, 768, 1536)}
WIDTHS_5 = {"stem_channels": 192, "embed_dims": (256, 512, 1280, 2048)}

MODELS = MappingProxyType(
    {
        "coatnet_0_224": (CoAtNet, {**WIDTHS_0, "depths": (2, 3, 5, 2)}),
        "coatnet_1_224": (CoAtNet, {**WIDTHS_0, "depths": (2, 6, 14, 2)}),
        "coatnet_2_224": (CoAtNet, {**WIDTHS_2, "depths": (2, 6, 14, 2)}),
        "coatnet_3_224": (CoAtNet, {**WIDTHS_3, "depths": (2, 6, 14, 2)}),
        "coatnet_4_224": (CoAtNet, {**WIDTHS_3, "depths": (2, 12, 28, 2)}),
        "coatnet_5_224": (CoAtNet, {**WIDTHS_5, "depths": (2, 12, 28, 2)}),
    }
)
