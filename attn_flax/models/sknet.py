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
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.branch.sk import sk, sk_weights
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote
from attn_flax.models import resnet
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.resnet import WIDTHS, BasicBlock, Block, Bottleneck, ResNet, Stem, conv
from attn_flax.nn import SelectiveKernel


class SelectiveConv(SelectiveKernel):
    """Selective kernels from some channels to others, which may halve the map.

    Args:
        in_channels: of x.
        channels: c, of y.
        stride: 2 halves the map.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
        **form: further arguments of SelectiveKernel.

    Raises:
        InputError: what SelectiveKernel refuses, also for the channels of x.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **form: Any,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, **form, **types)
        groups = self.convs[0].feature_group_count
        check(
            in_channels >= 1 and in_channels % (self.parts * groups) == 0,
            f"in_channels must be at least 1 and a multiple of the {self.parts} parts of the input times the {groups} "
            f"groups of each, got {in_channels}.",
        )

        def like(own):
            geometry = {"stride": stride, "dilation": own.kernel_dilation, "groups": groups}
            return conv(in_channels // self.parts, channels, own.kernel_size[0], **geometry, **types)

        self.convs = nnx.List([like(own) for own in self.convs])
        self.in_channels = in_channels
        self.stride = stride

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b m d"]:
        """a, for each channel of y a weight of each branch."""
        return sk_weights(self._branches(x), self._select)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        return sk(self._branches(x), self._select)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, in_channels)."""
        h, w, _ = shape
        return super().cost((-(-h // self.stride), -(-w // self.stride), self.reduce.in_features))

    def _branches(self, x):
        check_map(x, self.in_channels)
        inputs = jnp.split(promote(x, self.reduce), self.parts, -1) * (len(self.convs) // self.parts)
        return [
            jax.nn.relu(norm(convolve(u))) for u, convolve, norm in zip(inputs, self.convs, self.norms, strict=True)
        ]


class SelectiveBasicBlock(BasicBlock):
    """Of selective kernels and a 3×3 convolution.

    Args, besides those of `Block`:
        selective: whether the kernels are so; else it is a basic block like others.
        **form: of the SelectiveConv.
    """

    def _add_first(self, in_channels, channels, stride, types, *, selective=True, **form):
        self.selective = selective
        if selective:
            self.conv1 = SelectiveConv(in_channels, channels, stride=stride, groups=1, **form, **types)
        else:
            super()._add_first(in_channels, channels, stride, types)

    def first(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """sk(x)."""
        return self.conv1(x) if self.selective else super().first(x)


class SelectiveBottleneck(Bottleneck):
    """Of selective kernels between 1×1 convolutions.

    Args, besides those of `Bottleneck`:
        selective: whether the kernels are so; else it is a bottleneck like others.
        **form: of the SelectiveConv.
    """

    def _add_middle(self, in_channels, channels, stride, types, *, groups, selective=True, **form):
        self.selective = selective
        if selective:
            self.conv2 = SelectiveConv(in_channels, channels, stride=stride, groups=groups, **form, **types)
        else:
            super()._add_middle(in_channels, channels, stride, types, groups=groups)

    def middle(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """sk(x)."""
        return self.conv2(x) if self.selective else super().middle(x)


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
        (r"\bconvs\.(\d)\b", r"paths.\1.conv"),
        (r"\bnorms\.(\d)\b", r"paths.\1.bn"),
        (r"^(layer\d\.\d+\.conv\d)\.fc1\b", r"\1.attn.fc_reduce"),
        (r"^(layer\d\.\d+\.conv\d)\.norm\b", r"\1.attn.bn"),
        (r"^(layer\d\.\d+\.conv\d)\.fc2\b", r"\1.attn.fc_select"),
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
