"""What CoAtNet and MaxViT are made of: mobile convolutions, transformers on maps, and what stands around their stages.

    stem           y = W_2 f(norm(W_1 x))                          with convolutions of 3×3, W_1 at steps of 2
    MBConv         y = s(x) + W_2 SE(f(norm(D f(norm(W_1 norm(x)))))) + b
    transformer    z = s(x) + attention(pool(norm(x)))
                   y = z + W_2 f(W_1 norm(z) + b_1) + b_2

    x -> stem (1/2 of the image) -> stages (1/4, 1/8, …) -> mean over positions -> norm -> tanh(W x + b) -> linear

with W_1 to 4c features, W_2 back to c, and a depthwise convolution D of 3×3 between them; SE is squeeze-and-excitation
with c/4 hidden features, silu and biases. The first block of a stage halves the map and changes the channels: D is at
steps of 2, pool the mean of 2×2 positions, and s(x) = W pool(x) + b. In the others pool and s are the identity, and so
is the W of s where the channels stay. The norms of stem and MBConv are by batch, the others over the channels of each
position.

Source: MBConv: Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(2018), arXiv:1801.04381; with squeeze-and-excitation: Tan and Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks" (2019), arXiv:1905.11946. With a norm before it and pooling beside it: coatnet.py's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv, LayerNorm, Perceptron, depthwise_at_stride
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, Stage, drop_path, drop_path_rates
from attn_flax.models.resnet import halve_rounding_up
from attn_flax.nn import SqueezeExcite

Activation = Callable[[Array], Array]
Padding = str | Sequence[tuple[int, int]]
"""Zeros around a map, as `jax.lax.conv_general_dilated` takes them."""

EXPANSION = 4
REDUCTION = 4
ALIKE = ((1, 1), (1, 1))
"""On all sides, as PyTorch pads; XLA's and TensorFlow's "SAME" is another thing where the step is two."""


class Stem(nnx.Module):
    """y = W_2 f(norm(W_1 x)), of half the height and width, rounded up.

    Args:
        in_channels: of x.
        channels: of y, and between the convolutions.
        activation: f.
        epsilon: of the norm.
        padding: of the convolutions.
        use_bias: whether they have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        activation: Activation,
        epsilon: float,
        padding: Padding,
        use_bias: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv = partial(nnx.Conv, kernel_size=(3, 3), padding=padding, use_bias=use_bias, **types)
        self.conv1 = conv(in_channels, channels, strides=2)
        self.norm1 = BatchNorm(channels, epsilon=epsilon, **types)
        self.conv2 = conv(channels, channels)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        return self.conv2(self.activation(self.norm1(self.conv1(x))))


class Shortcut(nnx.Module):
    """s(x) = W pool(x) + b, or as much of it as the change of size and channels asks for.

    Args:
        in_channels: of x.
        channels: of s(x).
        halve: whether the map is halved.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        halve: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.pool = halve_rounding_up if halve else jax.nn.identity
        self.proj = nnx.Linear(in_channels, channels, **types) if in_channels != channels else jax.nn.identity

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """s(x)."""
        return self.proj(self.pool(x))


class MBConv(nnx.Module):
    """y = s(x) + W_2 SE(f(norm(D f(norm(W_1 norm(x)))))) + b.

    Args:
        in_channels: of x.
        channels: c, of y.
        halve: whether the map is halved.
        activation: f.
        epsilon: of the norms.
        padding: of D.
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
        activation: Activation,
        epsilon: float,
        padding: Padding,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = partial(BatchNorm, epsilon=epsilon, **types)
        expanded, hidden = EXPANSION * channels, max(channels // REDUCTION, 1)
        self.shortcut = Shortcut(in_channels, channels, halve=halve, **types)
        self.pre_norm = norm(in_channels)
        self.conv1_1x1 = nnx.Linear(in_channels, expanded, use_bias=False, **types)
        self.norm1 = norm(expanded)
        self.conv2_kxk = DepthwiseConv(expanded, (3, 3), use_bias=False, **types)
        self.norm2 = norm(expanded)
        self.se = SqueezeExcite(expanded, hidden=hidden, use_bias=True, activation=jax.nn.silu, **types)
        self.conv3_1x1 = nnx.Linear(expanded, channels, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)
        self.activation = activation
        self.padding = padding
        self.stride = 2 if halve else 1

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        return self.shortcut(x) + self.drop_path(self.branch(x))

    def branch(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """What is added to the shortcut."""
        x = self.activation(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        x = depthwise_at_stride(x, self.conv2_kxk, self.stride, padding=self.padding)
        return self.conv3_1x1(self.se(self.activation(self.norm2(x))))


class TransformerBlock(nnx.Module):
    """z = s(x) + attention(pool(norm(x))) and y = z + W_2 f(W_1 norm(z) + b_1) + b_2, all of it on maps.

    Args:
        in_channels: of x.
        channels: of z and y.
        halve: whether the map is halved.
        attention: a factory of the mechanism on the map, or None for none. It is given `in_channels` too where x has
            others than y.
        activation: f.
        epsilon: of the norms.
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
        attention: AttentionFactory | None,
        activation: Activation,
        epsilon: float,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = partial(LayerNorm, epsilon=epsilon, **types)
        changed = {"in_channels": in_channels} if in_channels != channels else {}
        self.shortcut = Shortcut(in_channels, channels, halve=halve, **types)
        self.pool = halve_rounding_up if halve else jax.nn.identity
        self.norm1 = nnx.data(norm(in_channels) if attention else None)
        self.attn = nnx.data(attention(channels, **changed, rngs=rngs) if attention else None)
        self.norm2 = norm(channels)
        self.mlp = Perceptron(channels, EXPANSION * channels, activation=activation, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        z = self.shortcut(x)
        if self.attn is not None:
            z = z + self.drop_path(self.attn(self.pool(self.norm1(x))))
        return z + self.drop_path(self.mlp(self.norm2(z)))


class Hybrid(Classifier):
    """A stem, stages of blocks of which the first halves the map, and a classifier with a hidden layer.

    Args:
        num_classes: the number of logits.
        stem: the factory of the stem, from so many to so many channels.
        blocks: the factory of each stage's blocks, of so many channels from so many, with `halve` and `drop_path_rate`.
        stem_channels: of the stem.
        embed_dims: the channels of each stage.
        depths: how many blocks each stage has.
        in_channels: of the images.
        epsilon: of the norm before the classifier.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    timm_names: ClassVar = (
        (r"\bshortcut\.proj\b", "shortcut.expand"),
        (r"^head\b", "head.fc"),
        (r"^norm\b", "head.norm"),
        (r"^pre_logits\b", "head.pre_logits.fc"),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        stem: Callable[..., Stem],
        blocks: Sequence[Callable[..., nnx.Module]],
        stem_channels: int,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        in_channels: int,
        epsilon: float,
        drop_path_rate: float,
        remat: bool,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        sizes = {"num_classes": num_classes, "stem_channels": stem_channels, "in_channels": in_channels}
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        for name, sizes in {"embed_dims": embed_dims, "depths": depths}.items():
            check(
                len(sizes) == len(blocks) and min(sizes) >= 1,
                f"{name} must be {len(blocks)} numbers of at least 1, got {sizes}.",
            )
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.feature_channels = (stem_channels, *embed_dims)
        self.stem = stem(in_channels, stem_channels, **types)
        self.stages = nnx.List([])
        rates = drop_path_rates(drop_path_rate, depths)
        for block, before, channels, (first, *further) in zip(
            blocks, self.feature_channels, embed_dims, rates, strict=False
        ):
            of_stage = [block(before, channels, halve=True, drop_path_rate=first, **types)]
            of_stage += [block(channels, channels, drop_path_rate=rate, **types) for rate in further]
            self.stages.append(Stage(None, of_stage, remat=remat))
        self.norm = LayerNorm(embed_dims[-1], epsilon=epsilon, **types)
        self.pre_logits = nnx.Linear(embed_dims[-1], embed_dims[-1], **types)
        self.head = nnx.Linear(embed_dims[-1], num_classes, **types)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after the stem and after each stage, of `feature_channels` channels.

        They have a half, a quarter, … of the image's height and width, rounded up.
        """
        check_map(x, self.stem.conv1.in_features)
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps."""
        return self.features(x)[-1]

    def pool(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """tanh(W norm(x) + b) of the mean x over the positions."""
        return jnp.tanh(self.pre_logits(self.norm(ops.average(x))))
