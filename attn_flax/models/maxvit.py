"""MaxViT: in every block a convolution, attention among neighbours, and attention across the whole map.

    block      y = grid transformer(window transformer(MBConv(x)))

    x -> stem (1/2 of the image) -> stages of blocks (1/4, 1/8, 1/16, 1/32) -> mean over positions -> norm
      -> tanh(W x + b) -> linear

with the parts of mbconv.py. The attention of the one transformer is in windows of M×M neighbours, that of the other in
grids of M×M points spread over the map, both of them PartitionAttention, so that any position reaches any other at a
cost that grows with the map and not with its square. M must divide all maps: it is as large as the last of them, a 32th
of the image's height and width, and other images are of multiples of 32M. The names of the layers are timm's.

Differs from the paper: nothing; as in the authors' code gelu is approximated by tanh, convolutions are padded as
TensorFlow's are, one zero less before than after at steps of 2, and the classifier has a hidden layer. A map of odd
height or width, as of an image of 223×223, is halved as TensorFlow does, by the mean of what is there; timm counts
zeros too.

Source: Tu, Talebi, Zhang, Yang, Milanfar, Bovik and Li, "MaxViT: Multi-Axis Vision Transformer" (2022),
arXiv:2204.01697. Confirmed with timm's code, in whose "tf" networks, as in the authors' numbers, the layer of queries,
keys and values gives all queries first, and the tables run over the offsets from query to key.
"""

import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.interop import Layout
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import height_and_width
from attn_flax.models.maps import check_halvings
from attn_flax.models.mbconv import Hybrid, MBConv, Stem, TransformerBlock
from attn_flax.nn import PartitionAttention

gelu = partial(jax.nn.gelu, approximate=True)
CONVOLUTION = {"activation": gelu, "epsilon": 1e-3, "padding": "SAME"}
TRANSFORMER = {"activation": gelu, "epsilon": 1e-5}


class MaxVitBlock(nnx.Module):
    """y = grid transformer(window transformer(MBConv(x))).

    Args:
        in_channels: of x.
        channels: of y.
        halve: whether the map is halved.
        attentions: the factories of the mechanisms of the first and of the second transformer, or None for none.
        drop_path_rate: of stochastic depth.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        halve: bool = False,
        attentions: tuple[AttentionFactory | None, AttentionFactory | None],
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"drop_path_rate": drop_path_rate, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        transformer = partial(TransformerBlock, channels, channels, **TRANSFORMER, **layer)
        in_windows, in_grids = attentions
        self.conv = MBConv(in_channels, channels, halve=halve, **CONVOLUTION, **layer)
        self.attn_block = transformer(attention=in_windows)
        self.attn_grid = transformer(attention=in_grids)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        return self.attn_grid(self.attn_block(self.conv(x)))


def _by_part(n):
    """The features of queries, keys and values of heads of 32, of which here each head has its own three."""
    return np.arange(n).reshape(-1, 3, 32).swapaxes(0, 1).ravel()


def _reversed(n):
    """Offsets from query to key, which here are from key to query."""
    return np.arange(n)[::-1]


class MaxVit(Hybrid):
    """A MaxViT; for 1000 classes of colour images of 30,916,528 (tiny) to 475,769,296 (xlarge) parameters.

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of each stage.
        depths: how many blocks each stage has.
        stem_channels: of the stem.
        head_dim: the features of a head of the attention.
        image_size: the height and width of the images; a number is both. M is the largest that divides the maps of
            such images. Others may come, where it divides theirs.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        attention: a factory of the mechanism on the maps of every transformer, or None for none. The default, the class
            PartitionAttention itself, is given `head_dim`, the window M, its partition, and the types.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, other numbers of channels than of depths, heads that do not divide the channels, an
            `image_size` that cannot be halved so often, or a rate out of range, at construction; images of other
            channels, or with maps that M does not divide, at the call.
    """

    timm_convs: ClassVar[str] = r"\.conv\."
    timm_arrays: ClassVar = {
        r"\bqkv\.kernel$": Layout((1, 0), index=_by_part),
        r"\bqkv\.bias$": Layout(index=_by_part),
        r"\brelative_position_bias_table$": Layout((1, 0), square=True, index=_reversed, axis=0),
    }

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
        attention: AttentionFactory | None = PartitionAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(len(depths) >= 1, f"depths must be numbers of at least 1, got {depths}.")
        types = {"dtype": dtype, "param_dtype": param_dtype}
        attentions = (attention, attention)
        if attention is PartitionAttention:
            own = partial(attention, window=_window(image_size, len(depths)), head_dim=head_dim, **types)
            attentions = (partial(own, partition="window"), partial(own, partition="grid"))
        super().__init__(
            num_classes,
            stem=partial(Stem, use_bias=True, **CONVOLUTION),
            blocks=[partial(MaxVitBlock, attentions=attentions)] * len(depths),
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


def _window(image_size, stages):
    """M of a network of so many stages, each of which halves the map, as the stem does."""
    size = height_and_width(image_size)
    check_halvings(size, 1 + stages, f"the windows of {stages} stages")
    return math.gcd(*size) // 2 ** (1 + stages)


TINY = {"stem_channels": 64, "embed_dims": (64, 128, 256, 512), "depths": (2, 2, 5, 2)}
SMALL = {"stem_channels": 64, "embed_dims": (96, 192, 384, 768), "depths": (2, 2, 5, 2)}
BASE = {"stem_channels": 64, "embed_dims": (96, 192, 384, 768), "depths": (2, 6, 14, 2)}
LARGE = {"stem_channels": 128, "embed_dims": (128, 256, 512, 1024), "depths": (2, 6, 14, 2)}
XLARGE = {"stem_channels": 192, "embed_dims": (192, 384, 768, 1536), "depths": (2, 6, 14, 2)}

MODELS = MappingProxyType(
    {
        "maxvit_tiny_tf_224": (MaxVit, TINY),
        "maxvit_tiny_tf_384": (MaxVit, {**TINY, "image_size": 384}),
        "maxvit_tiny_tf_512": (MaxVit, {**TINY, "image_size": 512}),
        "maxvit_small_tf_224": (MaxVit, SMALL),
        "maxvit_small_tf_384": (MaxVit, {**SMALL, "image_size": 384}),
        "maxvit_small_tf_512": (MaxVit, {**SMALL, "image_size": 512}),
        "maxvit_base_tf_224": (MaxVit, BASE),
        "maxvit_base_tf_384": (MaxVit, {**BASE, "image_size": 384}),
        "maxvit_base_tf_512": (MaxVit, {**BASE, "image_size": 512}),
        "maxvit_large_tf_224": (MaxVit, LARGE),
        "maxvit_large_tf_384": (MaxVit, {**LARGE, "image_size": 384}),
        "maxvit_large_tf_512": (MaxVit, {**LARGE, "image_size": 512}),
        "maxvit_xlarge_tf_224": (MaxVit, XLARGE),
        "maxvit_xlarge_tf_384": (MaxVit, {**XLARGE, "image_size": 384}),
        "maxvit_xlarge_tf_512": (MaxVit, {**XLARGE, "image_size": 512}),
    }
)
