"""The self-attention GAN: a generator of images by class, and the discriminator that it learns from.

    generator      z -> linear to the smallest map -> blocks that double it, attention before the last -> image
    discriminator  image -> blocks that halve it, attention after the first -> φ, the sum over the smallest map
                   D(x, y) = ψ·φ(x) + b + V_yᵀ φ(x)

so that maps of half the image's size attend. Images are in [-1, 1]. The blocks are residual: two 3×3 convolutions
beside a 1×1 one, after ReLU and, in the generator, batch normalisation whose scale and shift the class chooses; it
enters the discriminator by the projection V. In both networks all linear and convolutional layers are divided by their
spectral norms.

Differs from the paper: its networks are for images of 128×128 and its z has 128 features, here sizes are arguments and
the blocks those of Miyato and Koyama; the layers inside the attention, which comes as an argument, are not divided by
their spectral norms.

Source: Zhang, Goodfellow, Metaxas and Odena, "Self-Attention Generative Adversarial Networks" (2018), arXiv:1805.08318;
the projection is of Miyato and Koyama, "cGANs with Projection Discriminator" (2018), arXiv:1802.05637.
"""

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.maps import check_halvings, double, halve
from attn_flax.models.spectral_norm import SpectralNorm
from attn_flax.nn import SaganAttention


class ConditionalBatchNorm(nnx.Module):
    """γ_y · (x - μ) / σ + β_y: batch normalisation with a scale and a shift for each class y.

    Source: Dumoulin, Shlens and Kudlur, "A Learned Representation For Artistic Style" (2017), arXiv:1610.07629.

    Args:
        num_classes: of y.
        channels: of x.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: taken as by all layers; nothing is random here.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.norm = BatchNorm(channels, use_scale=False, use_bias=False, **types, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((num_classes, channels), param_dtype))
        self.shift = nnx.Param(jnp.zeros((num_classes, channels), param_dtype))

    def __call__(self, x: Float[Array, "b h w c"], labels: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        """The map normalised for its class."""
        x = self.norm(x)
        scale, shift = (table[...][labels, None, None].astype(x.dtype) for table in (self.scale, self.shift))
        return scale * x + shift


class GeneratorBlock(nnx.Module):
    """x -> twice as large, conv(relu(norm(conv(up(relu(norm(x))))))) + conv 1×1(up(x)).

    Args:
        num_classes: of the labels.
        in_features: of x.
        out_features: of the result.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        num_classes: int,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.norm1 = ConditionalBatchNorm(num_classes, in_features, **types, rngs=rngs)
        self.conv1 = _conv(in_features, out_features, 3, **types, rngs=rngs)
        self.norm2 = ConditionalBatchNorm(num_classes, out_features, **types, rngs=rngs)
        self.conv2 = _conv(out_features, out_features, 3, **types, rngs=rngs)
        self.shortcut = _conv(in_features, out_features, 1, **types, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], labels: Int[Array, " b"]) -> Float[Array, "b 2*h 2*w d"]:
        """The map of twice the height and width."""
        y = self.conv1(double(jax.nn.relu(self.norm1(x, labels))))
        y = self.conv2(jax.nn.relu(self.norm2(y, labels)))
        return y + double(self.shortcut(x))


class DiscriminatorBlock(nnx.Module):
    """x -> half as large, down(conv(relu(conv(relu(x)))) + conv 1×1(x)); the first relu not where x is an image.

    Args:
        in_features: of x.
        out_features: of the result.
        of_image: whether x is one.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        of_image: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = _conv(in_features, out_features, 3, **types, rngs=rngs)
        self.conv2 = _conv(out_features, out_features, 3, **types, rngs=rngs)
        self.shortcut = _conv(in_features, out_features, 1, **types, rngs=rngs)
        self.of_image = of_image

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map of half the height and width."""
        y = self.conv1(x if self.of_image else jax.nn.relu(x))
        return halve(self.conv2(jax.nn.relu(y))) + self.shortcut(halve(x))


class Generator(nnx.Module):
    """Images in [-1, 1] from latent vectors and labels; the arguments are those of `Sagan`."""

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        in_channels: int,
        latent_features: int,
        features: Sequence[int],
        attention: AttentionFactory | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        doublings = len(features) - 1
        height, width = image_size
        self.smallest = (height >> doublings, width >> doublings, features[0])
        self.latent_features = latent_features
        self.project = SpectralNorm(
            nnx.Linear(latent_features, self.smallest[0] * self.smallest[1] * features[0], **types, rngs=rngs),
            rngs=rngs,
        )
        self.blocks = nnx.List(
            GeneratorBlock(num_classes, wide, narrow, **types, rngs=rngs) for wide, narrow in pairwise(features)
        )
        self.attention = nnx.data(attention(features[-2], rngs=rngs) if attention else None)
        self.norm = BatchNorm(features[-1], **types, rngs=rngs)
        self.to_image = _conv(features[-1], in_channels, 3, **types, rngs=rngs)

    def __call__(self, z: Float[Array, "b l"], labels: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        """The images."""
        check(
            z.ndim == 2 and z.shape == (len(labels), self.latent_features),
            f"z must be (b, {self.latent_features}) for the b labels, got shapes {z.shape} and {labels.shape}.",
        )
        x = self.project(z).reshape(-1, *self.smallest)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, labels)
        if self.attention is not None:
            x = self.attention(x)
        x = last(x, labels)
        return jnp.tanh(self.to_image(jax.nn.relu(self.norm(x))))


class Discriminator(nnx.Module):
    """How real images in [-1, 1] of a class look; the arguments are those of `Sagan`."""

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int,
        features: Sequence[int],
        attention: AttentionFactory | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.blocks = nnx.List(
            DiscriminatorBlock(narrow, wide, of_image=number == 0, **types, rngs=rngs)
            for number, (narrow, wide) in enumerate(pairwise((in_channels, *features)))
        )
        self.attention = nnx.data(attention(features[0], rngs=rngs) if attention else None)
        self.score = SpectralNorm(nnx.Linear(features[-1], 1, **types, rngs=rngs), rngs=rngs)
        self.classes = SpectralNorm(
            nnx.Linear(num_classes, features[-1], use_bias=False, **types, rngs=rngs), rngs=rngs
        )
        self.num_classes = num_classes

    def __call__(self, x: Float[Array, "*b h w c"], labels: Int[Array, "*b"]) -> Float[Array, "*b"]:
        """D(x, y) of the images and their labels."""
        first, *blocks = self.blocks
        x = first(x)
        if self.attention is not None:
            x = self.attention(x)
        for block in blocks:
            x = block(x)
        phi = jax.nn.relu(x).sum((-3, -2))
        v = self.classes(jax.nn.one_hot(labels, self.num_classes, dtype=phi.dtype))
        return self.score(phi)[..., 0] + (v * phi).sum(-1)


class Sagan(nnx.Module):
    """Both networks; called, it is the generator.

    Args:
        num_classes: the classes of images.
        image_size: height and width of the images, which the doublings and halvings must divide.
        in_channels: of the images.
        latent_features: of z.
        generator_features: the channels of its maps, from the smallest to the last; each after the first doubles them.
        discriminator_features: the channels of its maps, each of which halves them.
        attention: a factory of the mechanism in both, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, no doubling, or an image that they do not divide, at construction; latent vectors
            of another size at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        in_channels: int = 3,
        latent_features: int = 64,
        generator_features: Sequence[int] = (64, 64, 32),
        discriminator_features: Sequence[int] = (32, 64),
        attention: AttentionFactory | None = SaganAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "latent_features": latent_features}
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        _check_features("generator_features", generator_features, image_size, len(generator_features) - 1)
        _check_features("discriminator_features", discriminator_features, image_size, len(discriminator_features))
        self.image_shape = (*image_size, in_channels)
        common = {"in_channels": in_channels, "attention": attention, "dtype": dtype, "param_dtype": param_dtype}
        self.generator = Generator(
            num_classes,
            image_size=image_size,
            latent_features=latent_features,
            features=generator_features,
            **common,
            rngs=rngs,
        )
        self.discriminator = Discriminator(num_classes, features=discriminator_features, **common, rngs=rngs)

    def __call__(self, z: Float[Array, "b l"], labels: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        """Images in [-1, 1]."""
        return self.generator(z, labels)


def _check_features(name, features, image_size, halvings):
    check(halvings >= 1 and min(features) >= 1, f"{name} must be positive sizes of at least one block, got {features}.")
    check_halvings(image_size, halvings, f"{name}={features}")


def _conv(in_features, out_features, window, *, dtype, param_dtype, rngs):
    conv = nnx.Conv(in_features, out_features, (window, window), dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    return SpectralNorm(conv, rngs=rngs)


MODELS = MappingProxyType({"gan": (Sagan, {})})
