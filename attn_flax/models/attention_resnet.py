"""Residual networks with attention within their bottlenecks: kin of BoTNet, HaloNet, LambdaResNet, GCNet and BAT's.

    block    u = f(norm(conv 1×1, w (x)))
             m = attention(f(norm(conv 3×3, w (u))))              attention behind the convolution,
          or m = f(norm(attention(u)))                            or in its place
             y = f(shortcut(x) + norm(conv 1×1, c (m)))

    x -> stem -> four stages of blocks -> mean over positions -> linear

The stem's convolutions and a maximum, or without one the last of these convolutions, reduce the map to a quarter; the
first block of each stage but the first halves it again, by the stride of the convolution. Attention in its place is
followed by the mean of 2×2 positions there, or has a stride itself, as HaloAttention does. The shortcut is the identity
where it can be, else a normalised 1×1 convolution; f is relu, or silu in `*s`. The names of the layers are timm's.

- `botnet*`: BottleneckAttention in the place of some convolutions, over maps of one size.
- `halonet*`: HaloAttention there; in `halonet_h1` in every block.
- `lambda_resnet*`: LambdaLayer there, by a convolution, or in `*rpt` by a table over maps of one size.
- `lamhalobotnet50ts_256`, `halo2botnet50ts_256`: each of the last three stages has one of these.
- `gc*`, `se*`, `eca_*`: GlobalContext, SqueezeExcite and EfficientChannel in timm's form, behind every convolution.
- `bat_*`: BilinearAttentionTransform behind it, for images of which every stage's map can be cut into 8×8 blocks.
- `resnext26ts`, `resnet32ts`, `resnet33ts`: none, to be compared with.

Differs from the papers: the mechanisms are the authors', the stems, widths and places of attention are timm's, but for
those of `halonet_h1`. As there, products of queries and positions are not scaled, HaloAttention sees the zeros around
the map and counts the offsets of its strided form among the positions that ask, and global context and BAT stand
behind the 3×3 convolution, not the whole branch. The scale of a branch's last norm starts at zero, so that every block
starts as its shortcut.

Source: Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani, "Bottleneck Transformers for Visual Recognition" (2021),
arXiv:2101.11605; Vaswani, Ramachandran, Srinivas, Parmar, Hechtman and Shlens, "Scaling Local Self-Attention for
Parameter Efficient Visual Backbones" (2021), arXiv:2103.12731; Bello, "LambdaNetworks: Modeling Long-Range Interactions
Without Attention" (2021), arXiv:2102.08602; Cao, Xu, Lin, Wei and Hu, "GCNet: Non-local Networks Meet
Squeeze-Excitation Networks and Beyond" (2019), arXiv:1904.11492; Chi, Yuan, Mu and Wang, "Non-Local Neural Networks
With Grouped Bilinear Attentional Transforms" (2020), CVPR 2020 (no arXiv id). These networks are timm's (2021).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.interop import timm_attention
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, drop_path, drop_path_rates, height_and_width, in_order
from attn_flax.models.resnet import (
    WIDTHS,
    ZeroBatchNorm,
    conv,
    efficient_channel,
    halve_rounding_up,
    squeeze_excite,
)
from attn_flax.nn import BottleneckAttention, HaloAttention, LambdaLayer

CHANNELS = (256, 512, 1024, 2048)

Attention = AttentionFactory | tuple[AttentionFactory | None, ...] | None
Activation = Callable[[Array], Array]

halo = partial(HaloAttention, scale_positions=False, attend_padding=True, compact_offsets=True)
bottleneck = partial(BottleneckAttention, scale_positions=False)
lambda_table = partial(LambdaLayer, kernel_size=None)
global_context = partial(timm_attention, "gca")
bilinear = partial(timm_attention, "bat", block_size=8)


class ConvNorm(nnx.Module):
    """f(norm(W x)), W a convolution of n×n that is padded alike on all sides.

    Args:
        in_channels: of x.
        channels: of y.
        size: n.
        stride: 2 halves the map.
        groups: of W.
        activation: f.
        norm: a factory of the norm.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = jax.nn.identity,
        norm: Callable[..., nnx.BatchNorm] = BatchNorm,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = conv(in_channels, channels, size, stride=stride, groups=groups, **types)
        self.bn = norm(channels, **types)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        return self.activation(self.bn(self.conv(x)))


class AttentionBottleneck(nnx.Module):
    """y = f(shortcut(x) + norm(conv 1×1 (m))), m of f(norm(conv 1×1 (x))) by a 3×3 convolution or attention.

    Args:
        in_channels: of x.
        channels: c, of y.
        width: w, of m.
        size: the height and width of x, for attention over maps of one size.
        stride: 2 halves the map.
        group_size: how many channels a group of the 3×3 convolution has, or None for a single group.
        replacement: a factory of the mechanism in the place of the 3×3 convolution, or None for the convolution.
        behind: factories of mechanisms behind the 3×3 convolution, if there is one.
        activation: f.
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
        width: int,
        size: tuple[int, int],
        stride: int = 1,
        group_size: int | None = None,
        replacement: AttentionFactory | None = None,
        behind: Sequence[AttentionFactory] = (),
        activation: Activation = jax.nn.relu,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = partial(ConvNorm, **types, rngs=rngs)
        self.conv1_1x1 = layer(in_channels, width, activation=activation)
        self.is_replaced = replacement is not None
        if replacement:
            self.self_attn = _told(replacement, size, stride, **types)(width, rngs=rngs)
            self.post_attn = BatchNorm(width, **types, rngs=rngs)
        else:
            groups = width // (group_size or width)
            self.conv2_kxk = layer(width, width, 3, stride=stride, groups=groups, activation=activation)
            factories = [_told(factory, _reduced(size, stride), **types) for factory in behind]
            self.behind = nnx.List([factory(width, rngs=rngs) for factory in factories])
        self.conv3_1x1 = layer(width, channels, norm=ZeroBatchNorm)
        is_identity = stride == 1 and in_channels == channels
        self.shortcut = nnx.data(None if is_identity else layer(in_channels, channels, stride=stride))
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)
        self.stride = stride
        self.activation = activation

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        y = self.drop_path(self.conv3_1x1(self.middle(self.conv1_1x1(x))))
        return self.activation(y + (x if self.shortcut is None else self.shortcut(x)))

    def middle(self, u: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """m."""
        if not self.is_replaced:
            return in_order(self.behind, self.conv2_kxk(u))
        m = self.self_attn(u)
        if self.stride > 1 and m.shape == u.shape:
            m = halve_rounding_up(m)
        return self.activation(self.post_attn(m))


def _reduced(size, stride):
    return tuple(-(-n // stride) for n in size)


def _told(attention, size, stride=1, **types):
    """The factory, told what these networks' own mechanisms must know; others need nothing."""
    kind, given = getattr(attention, "func", attention), getattr(attention, "keywords", {})
    if kind is HaloAttention:
        return partial(attention, stride=stride, **types)
    if kind is BottleneckAttention or (kind is LambdaLayer and given.get("kernel_size", 1) is None):
        return partial(attention, size=size, **types)
    return partial(attention, **types) if kind in (LambdaLayer, timm_attention) else attention


class AttentionResNet(Classifier):
    """Such a network; for 1000 classes of colour images of 8,100,056 to 25,897,080 parameters.

    Args:
        num_classes: the number of logits.
        depths: how many blocks each of the four stages has.
        channels: c of each stage.
        widths: w of each stage.
        group_size: how many channels a group of a 3×3 convolution has, or None for a single group.
        attention: a factory of the mechanism, or None for none; or four of these, one for each stage. `timm_attention`,
            HaloAttention, BottleneckAttention and LambdaLayer, and partials of them, are given the types; the second
            its stride, and the third, like the fourth with a table, the size of its maps.
        replaces: the indices of the blocks of each stage whose 3×3 convolution the attention replaces; or None if it
            stands behind that of every block.
        gate: a factory of a mechanism behind every 3×3 convolution that there is, or None for none; likewise given the
            types.
        stem_widths: the channels of the stem's convolutions: of a single one, which is 7×7, or of several, all of them
            3×3.
        stem_pool: whether a maximum behind these convolutions halves the map; else the last of them does.
        last_width: the channels of a last normalised 1×1 convolution with f, or None for none.
        activation: f.
        in_channels: of the images.
        image_size: the height and width of the images, on which attention over maps of one size depends; a number is
            both.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, other than four stages, groups that do not divide the widths, indices of blocks
            that are not there, a stem of a single convolution without a maximum, or a rate out of range, at
            construction; images of other channels at the call; and what the mechanisms refuse.
    """

    timm_names: ClassVar = (
        *((rf"^stem\.{i}\b", f"stem.conv{i + 1}") for i in range(3)),
        (r"\bbehind\.0\b", "attn"),
        (r"^head\b", "head.fc"),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        depths: tuple[int, int, int, int],
        channels: tuple[int, int, int, int] = CHANNELS,
        widths: tuple[int, int, int, int] = WIDTHS,
        group_size: int | None = None,
        attention: Attention = None,
        replaces: tuple[tuple[int, ...], ...] | None = None,
        gate: AttentionFactory | None = None,
        stem_widths: tuple[int, ...] = (24, 32, 64),
        stem_pool: bool = True,
        last_width: int | None = None,
        activation: Activation = jax.nn.relu,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 256,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("num_classes", num_classes), ("in_channels", in_channels)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        sides = height_and_width(image_size)
        check(len(sides) == 2 and min(sides) >= 1, f"image_size must be one or two of at least 1, got {image_size}.")
        for name, sizes in (("depths", depths), ("channels", channels), ("widths", widths)):
            check(len(sizes) == 4 and min(sizes) >= 1, f"{name} must be four of at least 1, got {sizes}.")
        check(
            group_size is None or (group_size >= 1 and all(width % group_size == 0 for width in widths)),
            f"group_size must be at least 1 and divide the widths {widths}, got {group_size}.",
        )
        check(
            len(stem_widths) >= (1 if stem_pool else 2) and min(stem_widths) >= 1,
            f"stem_widths must be one or more of at least 1, two or more without stem_pool, got {stem_widths}.",
        )
        check(last_width is None or last_width >= 1, f"last_width must be at least 1, got {last_width}.")
        attention = attention if isinstance(attention, tuple) else (attention,) * 4
        check(len(attention) == 4, f"attention must be one for all stages or four, got {len(attention)}.")
        check(
            replaces is None
            or (len(replaces) == 4 and all(0 <= j < n for js, n in zip(replaces, depths, strict=True) for j in js)),
            f"replaces must be indices of blocks for each of four stages, which have {depths}, got {replaces}.",
        )
        layer = {"activation": activation, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.stem = nnx.List(_stem(in_channels, stem_widths, stem_pool, **layer))
        self.stages = nnx.List([])
        before, size = stem_widths[-1], _reduced(sides, 4)
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            block = partial(AttentionBottleneck, channels=channels[i], width=widths[i], group_size=group_size, **layer)
            behind = [gate, attention[i]] if replaces is None else [gate]
            behind = [factory for factory in behind if factory]
            stage = nnx.List([])
            for j, rate in enumerate(rates):
                stride = 2 if i and not j else 1
                replacement = attention[i] if replaces is not None and j in replaces[i] else None
                places = {"size": size, "stride": stride, "replacement": replacement, "behind": behind}
                stage.append(block(before, **places, drop_path_rate=rate))
                before, size = channels[i], _reduced(size, stride)
            self.stages.append(stage)
        self.final_conv = nnx.data(None if last_width is None else ConvNorm(before, last_width, **layer))
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = nnx.Linear(last_width or before, num_classes, **types)
        self.in_channels = in_channels
        self.stem_pool = stem_pool
        self.remat = remat
        self.feature_channels = (stem_widths[-1 if stem_pool else -2], *channels)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps within the stem and after each of the four stages, of `feature_channels` channels.

        They have a half, a quarter, … and a 32th of the image's height and width, rounded up.
        """
        check_map(x, self.in_channels)
        half, x = self._halves(x)
        maps = [half]
        for stage in self.stages:
            x = in_order(stage, x, remat=self.remat)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps, after the last convolution if there is one."""
        x = self.features(x)[-1]
        return x if self.final_conv is None else self.final_conv(x)

    def _halves(self, x):
        """The maps of a half and of a quarter of the image's height and width."""
        *convolutions, last = self.stem
        half = in_order(convolutions, x)
        if not self.stem_pool:
            return half, last(half)
        half = last(half)
        return half, nnx.max_pool(half, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _stem(in_channels, widths, pool, **layer):
    """The convolutions, of which the first halves the map, and without a pooling the last, too."""
    size = 7 if len(widths) == 1 else 3
    halving = {0} if pool else {0, len(widths) - 1}
    sizes = pairwise((in_channels, *widths))
    return [ConvNorm(a, b, size, stride=2 if i in halving else 1, **layer) for i, (a, b) in enumerate(sizes)]


SILU = {"activation": jax.nn.silu}
R26 = {"depths": (2, 2, 2, 2)}
R50 = {"depths": (3, 4, 6, 3)}
R32 = {
    "depths": (2, 3, 3, 2),
    "channels": (256, 512, 1536, 1536),
    "widths": (64, 128, 384, 384),
    "stem_pool": False,
    **SILU,
}
R33 = {**R32, "last_width": 1280}
NEXT_26 = {**R26, **SILU, "group_size": 32}
NEXT_50 = {**R50, **SILU, "group_size": 32}

IN_26 = {**R26, "replaces": ((), (), (1,), (0, 1))}
IN_NEXT_26 = {**IN_26, **SILU, "group_size": 16, "gate": efficient_channel}
IN_33 = {
    **R33,
    "channels": (256, 512, 1024, 1536),
    "widths": WIDTHS,
    "replaces": ((), (2,), (2,), (0, 1)),
    "gate": squeeze_excite,
}
IN_50 = {**R50, **SILU, "replaces": ((), (3,), (1, 3, 5), (1,))}
MIXED_50 = {**IN_50, "stem_pool": False, "replaces": ((), (1, 3), (1, 3, 5), (1,))}
H1 = {
    "depths": (3, 3, 10, 3),
    "channels": WIDTHS,
    "replaces": tuple(tuple(range(depth)) for depth in (3, 3, 10, 3)),
    "stem_widths": (64,),
}

GC = {"attention": global_context}
SE = {"attention": squeeze_excite}
ECA = {"attention": efficient_channel}
BOT = {"attention": bottleneck}
LAMBDA = {"attention": LambdaLayer}

MODELS = MappingProxyType(
    {
        "resnext26ts": (AttentionResNet, NEXT_26),
        "gcresnext26ts": (AttentionResNet, {**NEXT_26, **GC}),
        "seresnext26ts": (AttentionResNet, {**NEXT_26, **SE}),
        "eca_resnext26ts": (AttentionResNet, {**NEXT_26, **ECA}),
        "bat_resnext26ts": (AttentionResNet, {**NEXT_26, "attention": bilinear}),
        "resnet32ts": (AttentionResNet, R32),
        "resnet33ts": (AttentionResNet, R33),
        "gcresnet33ts": (AttentionResNet, {**R33, **GC}),
        "seresnet33ts": (AttentionResNet, {**R33, **SE}),
        "eca_resnet33ts": (AttentionResNet, {**R33, **ECA}),
        "gcresnet50t": (AttentionResNet, {**R50, "stem_pool": False, **GC}),
        "gcresnext50ts": (AttentionResNet, {**NEXT_50, **GC}),
        "botnet26t_256": (AttentionResNet, {**IN_26, **BOT}),
        "sebotnet33ts_256": (AttentionResNet, {**IN_33, **BOT}),
        "botnet50ts_256": (AttentionResNet, {**IN_50, **BOT}),
        "eca_botnext26ts_256": (AttentionResNet, {**IN_NEXT_26, "attention": partial(bottleneck, key_features=16)}),
        "halonet_h1": (AttentionResNet, {**H1, "attention": halo}),
        "halonet26t": (AttentionResNet, {**IN_26, "attention": partial(halo, halo_size=2)}),
        "sehalonet33ts": (AttentionResNet, {**IN_33, "attention": halo}),
        "halonet50ts": (AttentionResNet, {**IN_50, "attention": (None, partial(halo, num_heads=4), halo, halo)}),
        "eca_halonext26ts": (
            AttentionResNet,
            {**IN_NEXT_26, "attention": partial(halo, halo_size=2, key_features=16)},
        ),
        "lambda_resnet26t": (AttentionResNet, {**IN_26, **LAMBDA}),
        "lambda_resnet50ts": (AttentionResNet, {**IN_50, **LAMBDA}),
        "lambda_resnet26rpt_256": (AttentionResNet, {**IN_26, "attention": lambda_table}),
        "lamhalobotnet50ts_256": (
            AttentionResNet,
            {**MIXED_50, "attention": (None, partial(LambdaLayer, kernel_size=13), halo, bottleneck)},
        ),
        "halo2botnet50ts_256": (AttentionResNet, {**MIXED_50, "attention": (None, halo, halo, bottleneck)}),
    }
)
