"""Split-attention networks, ResNeSt: residual networks whose channels come in several splits and weigh them.

    F(x) = norm(conv 1×1, 4c (pool(splat(relu(norm(conv 1×1, w (x)))))))
    y = relu(shortcut(x) + F(x))

where splat, SplitAttention, stands in the place of the 3×3 convolution of a bottleneck, and pool averages 3×3 positions
in each block that halves the map; with `pool_first` it stands before splat. Stem and shortcuts are those of
`resnet*d`, the rest is `models.resnet`'s. In the names `RsKxBd` R is the radix, K the groups, and w is K·B·c/64. The
names of the layers are timm's.

Differs from the paper: as in the authors' code and timm, pool counts the zeros around the map, and the scale of the
last norm of F starts at zero.

Errors elsewhere: in training timm leaves out, at random, the shortcut of a block that changes the channels or the map,
and nothing in the others; here it is F(x), as Huang et al. (2016) have it.

Source: Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li and Smola, "ResNeSt: Split-Attention Networks"
(2020), arXiv:2004.08955.
"""

from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.resnet import WIDTHS, Bottleneck, ResNet, Stem
from attn_flax.nn import SplitAttention


class SplitBottleneck(Bottleneck):
    """Of split attention between 1×1 convolutions.

    Args, besides those of `Bottleneck`:
        radix: R of the split attention, or 0 for a 3×3 convolution with norm and relu in its place.
        pool_first: whether the map is halved before it, not after.
    """

    def _add_middle(self, in_channels, channels, stride, types, *, groups, radix, pool_first):
        self.radix = radix
        self.pool_first = pool_first
        self.stride = stride
        if radix:
            self.conv2 = SplitAttention(channels, radix=radix, groups=groups, **types)
        else:
            super()._add_middle(in_channels, channels, 1, types, groups=groups)

    def middle(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """pool(splat(x)), or splat(pool(x))."""
        splat = self.conv2 if self.radix else super().middle
        return splat(self.pool(x)) if self.pool_first else self.pool(splat(x))

    def pool(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """The means of 3×3 positions, of every other one of these; x where the map keeps its size."""
        if self.stride == 1:
            return x
        wide = x.astype(ops.at_least_float32(x.dtype))
        return nnx.avg_pool(wide, (3, 3), (self.stride, self.stride), ((1, 1), (1, 1))).astype(x.dtype)


class ResNeSt(ResNet):
    """A ResNeSt; for 1000 classes of colour images of 10,611,688 parameters (14 layers) to 110,929,480 (269).

    Args:
        num_classes: the number of logits.
        depths: how many blocks each of the four layers has.
        radix: R, the splits of every channel.
        groups: K, the parts of the channels that attend by themselves.
        base_width: how many channels a group has for c = 64; in proportion for others.
        pool_first: whether a block halves the map before the split attention, not after.
        widths: c of each layer.
        in_channels: of the images.
        stem: as in `ResNet`.
        stem_widths: as in `ResNet`.
        attention: the class SplitAttention; or a factory of the mechanism after F in every block, in which a 3×3
            convolution stands for splat, or None for none.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: what `ResNet`, `Bottleneck` and SplitAttention refuse.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depths: tuple[int, int, int, int],
        radix: int = 2,
        groups: int = 1,
        base_width: int = 64,
        pool_first: bool = False,
        widths: tuple[int, int, int, int] = WIDTHS,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        stem_widths: tuple[int, ...] = (32, 32, 64),
        attention: AttentionFactory | None = SplitAttention,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(radix >= 1, f"radix must be at least 1, got {radix}.")
        splits = attention is SplitAttention
        super().__init__(
            num_classes,
            block=partial(
                SplitBottleneck,
                radix=radix if splits else 0,
                groups=groups,
                base_width=base_width,
                pool_first=pool_first,
                average_shortcut=True,
            ),
            depths=depths,
            widths=widths,
            in_channels=in_channels,
            stem=stem,
            stem_widths=stem_widths,
            attention=None if splits else attention,
            drop_path_rate=drop_path_rate,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


E_STEM = {"stem_widths": (64, 64, 128)}

MODELS = MappingProxyType(
    {
        "resnest14d": (ResNeSt, {"depths": (1, 1, 1, 1)}),
        "resnest26d": (ResNeSt, {"depths": (2, 2, 2, 2)}),
        "resnest50d": (ResNeSt, {"depths": (3, 4, 6, 3)}),
        "resnest101e": (ResNeSt, {"depths": (3, 4, 23, 3), **E_STEM}),
        "resnest200e": (ResNeSt, {"depths": (3, 24, 36, 3), **E_STEM}),
        "resnest269e": (ResNeSt, {"depths": (3, 30, 48, 8), **E_STEM}),
        "resnest50d_1s4x24d": (
            ResNeSt,
            {"depths": (3, 4, 6, 3), "radix": 1, "groups": 4, "base_width": 24, "pool_first": True},
        ),
        "resnest50d_4s2x40d": (
            ResNeSt,
            {"depths": (3, 4, 6, 3), "radix": 4, "groups": 2, "base_width": 40, "pool_first": True},
        ),
    }
)
