"""Residual networks, with any attention in every block.

    basic block   F(x) = norm(conv 3×3, c (relu(norm(conv 3×3, c (x)))))
    bottleneck    F(x) = norm(conv 1×1, 4c (relu(norm(conv 3×3, c (relu(norm(conv 1×1, c (x))))))))
    each          y = relu(shortcut(x) + attention(F(x)))

    x -> stem -> layer1 (c = 64) -> layer2 (128) -> layer3 (256) -> layer4 (512) -> mean over positions -> linear

The first block of each layer but layer1 halves the map, and the shortcut is the identity where it can be, else a
normalised 1×1 convolution. The names of the layers are timm's.

Differs from the paper: as in timm, the 3×3 convolution of a bottleneck halves the map, not the first one, and the scale
of the last norm of F starts at zero, so that every block starts as its shortcut (Goyal et al., "Accurate, Large
Minibatch SGD", 2017, arXiv:1706.02677).

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015), arXiv:1512.03385. Where the
attention stands: Hu, Shen and Sun, "Squeeze-and-Excitation Networks" (2017), arXiv:1709.01507.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory

Stem = Literal["imagenet", "cifar"]
WIDTHS = (64, 128, 256, 512)

ZeroBatchNorm = partial(BatchNorm, scale_init=nnx.initializers.zeros)


def _conv(in_channels, channels, size, *, stride=1, **types):
    """Padded alike on all sides, as PyTorch does; XLA's "SAME" is another thing where the stride is two."""
    return nnx.Conv(
        in_channels,
        channels,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        **types,
    )


class Block(nnx.Module):
    """y = relu(shortcut(x) + attention(F(x))); the kinds of blocks say what F, their `branch`, is.

    Args:
        in_channels: of x.
        channels: c, of y `expansion` times as many.
        stride: 2 halves the map.
        attention: a factory of the mechanism after F, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    expansion: int

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        out_channels = channels * self.expansion
        self._add_branch(in_channels, channels, stride, **types)
        self.attention = nnx.data(attention(out_channels, rngs=rngs) if attention else None)
        self.downsample = nnx.List([])
        if stride != 1 or in_channels != out_channels:
            self.downsample.append(_conv(in_channels, out_channels, 1, stride=stride, **types))
            self.downsample.append(BatchNorm(out_channels, **types))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        y = self.branch(x)
        if self.attention is not None:
            y = self.attention(y)
        for layer in self.downsample:
            x = layer(x)
        return jax.nn.relu(x + y)


class BasicBlock(Block):
    """Of two 3×3 convolutions."""

    expansion = 1

    def _add_branch(self, in_channels, channels, stride, **types):
        self.conv1 = _conv(in_channels, channels, 3, stride=stride, **types)
        self.bn1 = BatchNorm(channels, **types)
        self.conv2 = _conv(channels, channels, 3, **types)
        self.bn2 = ZeroBatchNorm(channels, **types)

    def branch(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """F(x)."""
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """Of a 3×3 convolution of few channels, between 1×1 convolutions from and to four times as many."""

    expansion = 4

    def _add_branch(self, in_channels, channels, stride, **types):
        self.conv1 = _conv(in_channels, channels, 1, **types)
        self.bn1 = BatchNorm(channels, **types)
        self.conv2 = _conv(channels, channels, 3, stride=stride, **types)
        self.bn2 = BatchNorm(channels, **types)
        self.conv3 = _conv(channels, channels * self.expansion, 1, **types)
        self.bn3 = ZeroBatchNorm(channels * self.expansion, **types)

    def branch(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """F(x)."""
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nnx.Module):
    """A residual network; for 1000 classes of colour images of 11,689,512 parameters (18 layers) to 44,549,160 (101).

    Args:
        num_classes: the number of logits.
        block: the kind of its blocks.
        depths: how many blocks each of the four layers has.
        in_channels: of the images.
        stem: "imagenet", a 7×7 convolution and a maximum, which reduce the map to a quarter; or "cifar", a 3×3
            convolution that leaves it as large as it is, for images of 64×64 or less.
        attention: a factory of the mechanism in every block, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an unknown stem at construction, images of other channels at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        block: type[Block],
        depths: tuple[int, int, int, int],
        in_channels: int = 3,
        stem: Stem = "imagenet",
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        check(in_channels >= 1, f"in_channels must be at least 1, got {in_channels}.")
        check(stem in get_args(Stem), f"stem must be 'imagenet' or 'cifar', got {stem!r}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = _conv(in_channels, WIDTHS[0], size, stride=stride, **types)
        self.bn1 = BatchNorm(WIDTHS[0], **types)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._layer(i, block, depth, attention, types) for i, depth in enumerate(depths)
        )
        self.fc = nnx.Linear(WIDTHS[-1] * block.expansion, num_classes, **types)
        self.stem = stem
        self.feature_channels = (WIDTHS[0], *(width * block.expansion for width in WIDTHS))

    @staticmethod
    def _layer(i, block, depth, attention, types):
        width = WIDTHS[i]
        before = WIDTHS[i - 1] * block.expansion if i else WIDTHS[0]
        first = block(before, width, stride=2 if i else 1, attention=attention, **types)
        rest = [block(width * block.expansion, width, attention=attention, **types) for _ in range(depth - 1)]
        return nnx.List([first, *rest])

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after the stem's convolution and after each of the four layers, of `feature_channels` channels.

        With the stem "imagenet" they have a half, a quarter, … and a 32th of the image's height and width, rounded up;
        with "cifar" all, all, a half, … and an eighth.
        """
        check_map(x, self.conv1.in_features)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        maps = [x]
        if self.stem == "imagenet":
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
            maps.append(x)
        return maps

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b classes"]:
        """The logits of images of any size."""
        return self.fc(ops.average(self.features(x)[-1]))


MODELS = MappingProxyType(
    {
        "resnet18": (ResNet, {"block": BasicBlock, "depths": (2, 2, 2, 2)}),
        "resnet34": (ResNet, {"block": BasicBlock, "depths": (3, 4, 6, 3)}),
        "resnet50": (ResNet, {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
        "resnet101": (ResNet, {"block": Bottleneck, "depths": (3, 4, 23, 3)}),
    }
)
