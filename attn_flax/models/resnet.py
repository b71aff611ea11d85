"""Residual networks, with any attention in every block, and their kin.

    basic block   F(x) = norm(conv 3×3, c (relu(norm(conv 3×3, c (x)))))
    bottleneck    F(x) = norm(conv 1×1, 4c (relu(norm(conv 3×3, w (relu(norm(conv 1×1, w (x))))))))
    each          y = relu(shortcut(x) + attention(F(x)))

    x -> stem -> layer1 (c = 64) -> layer2 (128) -> layer3 (256) -> layer4 (512) -> mean over positions -> linear

The first block of each layer but layer1 halves the map, and the shortcut is the identity where it can be, else a
normalised 1×1 convolution. The names of the layers are timm's. Where nothing else is said w = c. The kin:

- `resnet*d`: the stem is three convolutions of 3×3, and a shortcut averages 2×2 positions before its convolution.
- `*t`: as d, with fewer channels in the stem.
- `resnext*_GxBd`: the 3×3 convolution of a bottleneck is in G groups of B·c/64 channels, w is theirs together.
- `wide_resnet*_2`: w = 2c.
- `seresnet*`, `ecaresnet*`: with squeeze-and-excitation and efficient channel attention, in timm's form of them.
- `senet154`: squeeze-and-excitation, 64 groups of c/16 channels, w/2 channels before the 3×3 convolution, a stem of
  three convolutions, and a 3×3 convolution in a shortcut that halves the map.

Differs from the papers: as in timm, the 3×3 convolution of a bottleneck halves the map, not the first one, and the
scale of the last norm of F starts at zero, so that every block starts as its shortcut (Goyal et al., "Accurate, Large
Minibatch SGD", 2017, arXiv:1706.02677). senet154 has no dropout before its classifier.

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015), arXiv:1512.03385. Where the
attention stands, and senet154: Hu, Shen and Sun, "Squeeze-and-Excitation Networks" (2017), arXiv:1709.01507. d: He,
Zhang, Zhang, Zhang, Xie and Li, "Bag of Tricks for Image Classification with Convolutional Neural Networks" (2018),
arXiv:1812.01187. ResNeXt: Xie, Girshick, Dollár, Tu and He, "Aggregated Residual Transformations for Deep Neural
Networks" (2016), arXiv:1611.05431. Wide: Zagoruyko and Komodakis, "Wide Residual Networks" (2016), arXiv:1605.07146.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.interop import timm_attention
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, drop_path, drop_path_rates, in_order
from attn_flax.models.maps import halve

Stem = Literal["imagenet", "cifar"]
WIDTHS = (64, 128, 256, 512)

ZeroBatchNorm = partial(BatchNorm, scale_init=nnx.initializers.zeros)
squeeze_excite = partial(timm_attention, "se")
efficient_channel = partial(timm_attention, "eca")


def conv(in_channels, channels, size, *, stride=1, dilation=1, groups=1, **types):
    """Padded alike on all sides, as PyTorch does; XLA's "SAME" is another thing where the stride is two."""
    return nnx.Conv(
        in_channels,
        channels,
        (size, size),
        stride,
        padding=dilation * (size // 2),
        kernel_dilation=dilation,
        use_bias=False,
        feature_group_count=groups,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=ops.grouped_conv,
        **types,
    )


class Block(nnx.Module):
    """y = relu(shortcut(x) + attention(F(x))); the kinds of blocks say what F, their `branch`, is.

    Args:
        in_channels: of x.
        channels: c, of y `expansion` times as many.
        stride: 2 halves the map.
        average_shortcut: whether a shortcut that halves the map averages 2×2 positions, before a 1×1 convolution.
        shortcut_size: of the window of a shortcut that halves the map by its convolution.
        attention: a factory of the mechanism after F, or None for none.
        drop_path_rate: of stochastic depth, after the attention.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
        **branch: further arguments of F, which its kind documents.
    """

    expansion: int

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        average_shortcut: bool = False,
        shortcut_size: int = 1,
        attention: AttentionFactory | None = None,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **branch: Any,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.out_channels = channels * self.expansion
        self._add_branch(in_channels, channels, stride, types, **branch)
        self.attention = nnx.data(attention(self.out_channels, rngs=rngs) if attention else None)
        self.drop_path = nnx.data(drop_path(drop_path_rate, axes=3, rngs=rngs) if drop_path_rate else None)
        self.downsample = nnx.List([])
        if stride != 1 or in_channels != self.out_channels:
            shortcut = _average_shortcut if average_shortcut else partial(_conv_shortcut, size=shortcut_size)
            self.downsample.extend(shortcut(in_channels, self.out_channels, stride=stride, **types))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        y = self.branch(x)
        if self.attention is not None:
            y = self.attention(y)
        if self.drop_path is not None:
            y = self.drop_path(y)
        for layer in self.downsample:
            x = layer(x)
        return jax.nn.relu(x + y)


def _conv_shortcut(in_channels, channels, *, stride, size, **types):
    size = size if stride > 1 else 1
    return [conv(in_channels, channels, size, stride=stride, **types), BatchNorm(channels, **types)]


def _average_shortcut(in_channels, channels, *, stride, **types):
    pool = halve_rounding_up if stride > 1 else jax.nn.identity
    return [pool, conv(in_channels, channels, 1, **types), BatchNorm(channels, **types)]


def halve_rounding_up(x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
    """The means of 2×2 positions, of fewer at the end of an odd axis, which is repeated: their mean stays the same."""
    h, w = x.shape[-3:-1]
    return halve(jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, h % 2), (0, w % 2), (0, 0)], mode="edge"))


class BasicBlock(Block):
    """Of two 3×3 convolutions."""

    expansion = 1

    def _add_branch(self, in_channels, channels, stride, types, **first):
        self._add_first(in_channels, channels, stride, types, **first)
        self.conv2 = conv(channels, channels, 3, **types)
        self.bn2 = ZeroBatchNorm(channels, **types)

    def _add_first(self, in_channels, channels, stride, types):
        self.conv1 = conv(in_channels, channels, 3, stride=stride, **types)
        self.bn1 = BatchNorm(channels, **types)

    def branch(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """F(x)."""
        return self.bn2(self.conv2(self.first(x)))

    def first(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The first convolution, which may halve the map, with norm and relu."""
        return jax.nn.relu(self.bn1(self.conv1(x)))


class Bottleneck(Block):
    """Of a 3×3 convolution of w channels, between 1×1 convolutions to them and from them to four times c.

    Args, besides those of `Block`:
        groups: of the 3×3 convolution.
        base_width: how many channels a group has for c = 64; in proportion for others.
        reduce_first: how many times fewer than w channels there are before the 3×3 convolution.

    Raises:
        InputError: an argument below 1, or groups that do not divide the channels before the 3×3 convolution.
    """

    expansion = 4

    def _add_branch(self, in_channels, channels, stride, types, *, groups=1, base_width=64, reduce_first=1, **middle):
        for name, size in (("groups", groups), ("base_width", base_width), ("reduce_first", reduce_first)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        width = channels * base_width // 64 * groups
        narrow = width // reduce_first
        check(
            narrow >= 1 and narrow % groups == 0,
            f"channels must be enough for every group to have as many before the 3×3 convolution, got {narrow} "
            f"channels for {groups} groups.",
        )
        self.conv1 = conv(in_channels, narrow, 1, **types)
        self.bn1 = BatchNorm(narrow, **types)
        self._add_middle(narrow, width, stride, types, groups=groups, **middle)
        self.conv3 = conv(width, channels * self.expansion, 1, **types)
        self.bn3 = ZeroBatchNorm(channels * self.expansion, **types)

    def _add_middle(self, in_channels, channels, stride, types, *, groups):
        self.conv2 = conv(in_channels, channels, 3, stride=stride, groups=groups, **types)
        self.bn2 = BatchNorm(channels, **types)

    def branch(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """F(x)."""
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.middle(x)))

    def middle(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The 3×3 convolution, which may halve the map, with norm and relu."""
        return jax.nn.relu(self.bn2(self.conv2(x)))


class ResNet(Classifier):
    """A residual network; for 1000 classes of colour images of 11,689,512 parameters (18 layers) to 60,192,808 (152).

    Args:
        num_classes: the number of logits.
        block: the kind of its blocks: a class, or a factory with further arguments of one.
        depths: how many blocks each of the four layers has.
        widths: c of each layer.
        in_channels: of the images.
        stem: "imagenet", convolutions and a maximum, which reduce the map to a quarter; or "cifar", convolutions that
            leave it as large as it is, for images of 64×64 or less.
        stem_widths: the channels of the stem's convolutions: of a single one, which is 7×7 ("imagenet") or 3×3, or of
            several, all of them 3×3.
        attention: a factory of the mechanism in every block, or None for none. `squeeze_excite` and `efficient_channel`
            are given the types as well.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, an unknown stem, other than four layers, or a rate out of range, at construction;
            images of other channels at the call.
    """

    timm_names: ClassVar = ((r"^conv1\.layers\b", "conv1"), (r"\battention\b", "se"))

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
        attention: AttentionFactory | None = None,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        check(in_channels >= 1, f"in_channels must be at least 1, got {in_channels}.")
        check(stem in get_args(Stem), f"stem must be 'imagenet' or 'cifar', got {stem!r}.")
        for name, sizes in (("depths", depths), ("widths", widths)):
            check(len(sizes) == 4 and min(sizes) >= 1, f"{name} must be four of at least 1, got {sizes}.")
        check(
            len(stem_widths) >= 1 and min(stem_widths) >= 1,
            f"stem_widths must be one or more of at least 1, got {stem_widths}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        if attention in (squeeze_excite, efficient_channel):
            attention = partial(attention, **types)
        self.conv1 = _stem(in_channels, stem_widths, stem, **types, rngs=rngs)
        self.bn1 = BatchNorm(stem_widths[-1], **types, rngs=rngs)
        block = partial(block, attention=attention, **types, rngs=rngs)
        layers, channels = [], [stem_widths[-1]]
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            layers.append(_layer(block, channels[-1], widths[i], stride=2 if i else 1, rates=rates))
            channels.append(layers[-1][-1].out_channels)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nnx.Linear(channels[-1], num_classes, **types, rngs=rngs)
        self.in_channels = in_channels
        self.stem = stem
        self.remat = remat
        self.feature_channels = tuple(channels)

    @property
    def head(self) -> nnx.Module:
        """The layer of the logits, which timm calls fc."""
        return self.fc

    @head.setter
    def head(self, layer: nnx.Module) -> None:
        self.fc = layer

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after the stem's convolution and after each of the four layers, of `feature_channels` channels.

        With the stem "imagenet" they have a half, a quarter, … and a 32th of the image's height and width, rounded up;
        with "cifar" all, all, a half, … and an eighth.
        """
        check_map(x, self.in_channels)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        maps = [x]
        if self.stem == "imagenet":
            x = nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = in_order(layer, x, remat=self.remat)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps."""
        return self.features(x)[-1]


def _stem(in_channels, widths, stem, **types):
    """A convolution, or several with norm and relu between them."""
    large, stride = (7, 2) if stem == "imagenet" else (3, 1)
    first = conv(in_channels, widths[0], large if len(widths) == 1 else 3, stride=stride, **types)
    if len(widths) == 1:
        return first
    layers = [first]
    for before, width in pairwise(widths):
        layers += [BatchNorm(before, **types), jax.nn.relu, conv(before, width, 3, **types)]
    return nnx.Sequential(*layers)


def _layer(block, in_channels, width, *, stride, rates):
    """Blocks, of which the first one changes channels and size."""
    layer = nnx.List([block(in_channels, width, stride=stride, drop_path_rate=rates[0])])
    for rate in rates[1:]:
        layer.append(block(layer[-1].out_channels, width, drop_path_rate=rate))
    return layer


R18 = {"block": BasicBlock, "depths": (2, 2, 2, 2)}
R34 = {"block": BasicBlock, "depths": (3, 4, 6, 3)}
R26 = {"block": Bottleneck, "depths": (2, 2, 2, 2)}
R50 = {"block": Bottleneck, "depths": (3, 4, 6, 3)}
R101 = {"block": Bottleneck, "depths": (3, 4, 23, 3)}
R152 = {"block": Bottleneck, "depths": (3, 8, 36, 3)}
BASIC_D = {"block": partial(BasicBlock, average_shortcut=True), "stem_widths": (32, 32, 64)}
D = {"block": partial(Bottleneck, average_shortcut=True), "stem_widths": (32, 32, 64)}
T = {**D, "stem_widths": (24, 32, 64)}
WIDE = {"block": partial(Bottleneck, base_width=128)}
NEXT_32X4 = {"block": partial(Bottleneck, groups=32, base_width=4)}
NEXT_32X8 = {"block": partial(Bottleneck, groups=32, base_width=8)}
NEXT_64X4 = {"block": partial(Bottleneck, groups=64, base_width=4)}
SE = {"attention": squeeze_excite}
ECA = {"attention": efficient_channel}
SENET = {
    "block": partial(Bottleneck, groups=64, base_width=4, reduce_first=2, shortcut_size=3),
    "stem_widths": (64, 64, 128),
}

MODELS = MappingProxyType(
    {
        "resnet18": (ResNet, R18),
        "resnet34": (ResNet, R34),
        "resnet26": (ResNet, R26),
        "resnet50": (ResNet, R50),
        "resnet101": (ResNet, R101),
        "resnet152": (ResNet, R152),
        "resnet18d": (ResNet, {**R18, **BASIC_D}),
        "resnet34d": (ResNet, {**R34, **BASIC_D}),
        "resnet26d": (ResNet, {**R26, **D}),
        "resnet26t": (ResNet, {**R26, **T}),
        "resnet50d": (ResNet, {**R50, **D}),
        "resnet50t": (ResNet, {**R50, **T}),
        "resnet101d": (ResNet, {**R101, **D}),
        "resnet152d": (ResNet, {**R152, **D}),
        "wide_resnet50_2": (ResNet, {**R50, **WIDE}),
        "wide_resnet101_2": (ResNet, {**R101, **WIDE}),
        "resnext50_32x4d": (ResNet, {**R50, **NEXT_32X4}),
        "resnext101_32x4d": (ResNet, {**R101, **NEXT_32X4}),
        "resnext101_32x8d": (ResNet, {**R101, **NEXT_32X8}),
        "resnext101_64x4d": (ResNet, {**R101, **NEXT_64X4}),
        "seresnet18": (ResNet, {**R18, **SE}),
        "seresnet34": (ResNet, {**R34, **SE}),
        "seresnet50": (ResNet, {**R50, **SE}),
        "seresnet101": (ResNet, {**R101, **SE}),
        "seresnet152": (ResNet, {**R152, **SE}),
        "seresnext50_32x4d": (ResNet, {**R50, **NEXT_32X4, **SE}),
        "seresnext101_32x4d": (ResNet, {**R101, **NEXT_32X4, **SE}),
        "ecaresnet26t": (ResNet, {**R26, **T, **ECA}),
        "ecaresnet50d": (ResNet, {**R50, **D, **ECA}),
        "ecaresnet50t": (ResNet, {**R50, **T, **ECA}),
        "ecaresnet101d": (ResNet, {**R101, **D, **ECA}),
        "senet154": (ResNet, {**R152, **SENET, **SE}),
    }
)
