"""Selective kernel networks: residual networks whose channels choose how far they see.

    basic block   F(x) = norm(conv 3×3, c (sk(x)))
    bottleneck    F(x) = norm(conv 1×1, 4c (sk(relu(norm(conv 1×1, w (x))))))
    each          y = relu(shortcut(x) + F(x))

where sk, SelectiveKernel, stands in the place of the convolution that may halve the map; the rest is `models.resnet`'s.
`skresnext50_32x4d` is the paper's network, with all its convolutions of sk in 32 groups. The names of the layers are
timm's.

Differs from the paper: in `skresnet*`, which are timm's own, each of the two convolutions of sk sees its half of the
channels. Unlike timm's, the scale of the last norm of F starts at zero, as in all residual networks here.

Source: Li, Wang, Hu and Yang, "Selective Kernel Networks" (2019), arXiv:1903.06586.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.models import resnet
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.resnet import WIDTHS, BasicBlock, Block, Bottleneck, ResNet, Stem
from attn_flax.nn import SelectiveKernel


class SelectiveBasicBlock(BasicBlock):
    """Of selective kernels and a 3×3 convolution.

    Args, besides those of `Block`:
        selective: whether the kernels are so; else it is a basic block like others.
        **form: of the SelectiveKernel, with r as `reduction` and L as `minimum`.
    """

    def _add_first(self, in_channels, channels, stride, types, *, selective=True, **form):
        self.selective = selective
        if selective:
            self.conv1 = _selective(in_channels, channels, stride, 1, types, **form)
        else:
            super()._add_first(in_channels, channels, stride, types)

    def first(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """sk(x)."""
        return self.conv1(x) if self.selective else super().first(x)


class SelectiveBottleneck(Bottleneck):
    """Of selective kernels between 1×1 convolutions.

    Args, besides those of `Bottleneck`:
        selective: whether the kernels are so; else it is a bottleneck like others.
        **form: of the SelectiveKernel, with r as `reduction` and L as `minimum`.
    """

    def _add_middle(self, in_channels, channels, stride, types, *, groups, selective=True, **form):
        self.selective = selective
        if selective:
            self.conv2 = _selective(in_channels, channels, stride, groups, types, **form)
        else:
            super()._add_middle(in_channels, channels, stride, types, groups=groups)

    def middle(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """sk(x)."""
        return self.conv2(x) if self.selective else super().middle(x)


def _selective(in_channels, channels, stride, groups, types, *, reduction=16, minimum=32, **form):
    """A SelectiveKernel of max(⌊c/r⌋, L) features in the middle."""
    for name, size in (("reduction", reduction), ("minimum", minimum)):
        check(size >= 1, f"{name} must be at least 1, got {size}.")
    hidden = max(channels // reduction, minimum)
    place = {"in_channels": in_channels, "stride": stride, "groups": groups}
    return SelectiveKernel(channels, hidden=hidden, **place, **form, **types)


class SKNet(ResNet):
    """A selective kernel network; for 1000 classes of colour images of 11,958,056 to 27,479,784 parameters (50 layers).

    Args:
        num_classes: the number of logits.
        block: SelectiveBasicBlock or SelectiveBottleneck, or a factory with further arguments of one.
        depths: how many blocks each of the four layers has.
        widths: c of each layer.
        in_channels: of the images.
        stem: as in `ResNet`.
        stem_widths: as in `ResNet`.
        attention: the class SelectiveKernel; or a factory of the mechanism after F in every block of the residual
            network that it otherwise is, or None for none.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: what `ResNet` and SelectiveKernel refuse.
    """

    timm_names: ClassVar = (
        *ResNet.timm_names,
        (r"^(layer\d\.\d+\.conv\d)\.kernel$", r"\1.conv.kernel"),
        (r"^(layer\d\.\d+)\.bn(\d)\b", r"\1.conv\2.bn"),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        block: Callable[..., Block],
        depths: tuple[int, int, int, int],
        widths: tuple[int, int, int, int] = WIDTHS,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        stem_widths: tuple[int, ...] = (64,),
        attention: AttentionFactory | None = SelectiveKernel,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        selective = attention is SelectiveKernel
        super().__init__(
            num_classes,
            block=partial(block, selective=selective),
            depths=depths,
            widths=widths,
            in_channels=in_channels,
            stem=stem,
            stem_widths=stem_widths,
            attention=None if selective else attention,
            drop_path_rate=drop_path_rate,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )


SPLIT_BASIC = {"block": partial(SelectiveBasicBlock, reduction=8, minimum=16, split_input=True)}
SPLIT = {"block": partial(SelectiveBottleneck, reduction=16, minimum=8, split_input=True)}
SPLIT_D = {**resnet.D, "block": partial(SPLIT["block"], average_shortcut=True)}
NEXT_32X4 = {"block": partial(SelectiveBottleneck, groups=32, base_width=4)}

MODELS = MappingProxyType(
    {
        "skresnet18": (SKNet, {**resnet.R18, **SPLIT_BASIC}),
        "skresnet34": (SKNet, {**resnet.R34, **SPLIT_BASIC}),
        "skresnet50": (SKNet, {**resnet.R50, **SPLIT}),
        "skresnet50d": (SKNet, {**resnet.R50, **SPLIT_D}),
        "skresnext50_32x4d": (SKNet, {**resnet.R50, **NEXT_32X4}),
    }
)
