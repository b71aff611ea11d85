"""A convolutional variational autoencoder with attention at its bottleneck.

    encoder  image -> convolution -> blocks, each after the first on half the map -> attention -> μ, log σ² of z
    decoder  z -> the smallest map -> attention -> blocks, each before the last doubling it -> μ, log s of each pixel

The blocks are residual: twice group normalisation, SiLU and a 3×3 convolution.

Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), arXiv:1312.6114, whose networks are not
convolutional; the blocks and the attention among the positions of the smallest map are those of Ho, Jain and Abbeel,
"Denoising Diffusion Probabilistic Models" (2020), arXiv:2006.11239, without the time.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import GroupNorm
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.maps import check_halvings, double, halve
from attn_flax.nn import SaganAttention

GROUPS = 8


class Block(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))).

    Args:
        features: the channels of x.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self, features: int, *, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.norm1 = GroupNorm(features, GROUPS, **types, rngs=rngs)
        self.conv1 = nnx.Conv(features, features, (3, 3), **types, rngs=rngs)
        self.norm2 = GroupNorm(features, GROUPS, **types, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), **types, rngs=rngs)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map of the same size."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        return x + self.conv2(jax.nn.silu(self.norm2(y)))


class Encoder(nnx.Module):
    """μ and log σ² of z from images; the arguments are those of `ConvVae`."""

    def __init__(
        self,
        *,
        smallest: tuple[int, int],
        in_channels: int,
        latent_features: int,
        features: Sequence[int],
        attention: AttentionFactory | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.widen = nnx.List(
            nnx.Conv(narrow, wide, (3, 3), **types, rngs=rngs) for narrow, wide in pairwise((in_channels, *features))
        )
        self.blocks = nnx.List(Block(width, **types, rngs=rngs) for width in features)
        self.attention = nnx.data(attention(features[-1], rngs=rngs) if attention else None)
        self.norm = GroupNorm(features[-1], GROUPS, **types, rngs=rngs)
        self.out = nnx.Linear(math.prod(smallest) * features[-1], 2 * latent_features, **types, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
        """μ and log σ²."""
        for number, (widen, block) in enumerate(zip(self.widen, self.blocks, strict=True)):
            x = block(widen(halve(x) if number else x))
        if self.attention is not None:
            x = self.attention(x)
        x = jax.nn.silu(self.norm(x))
        return tuple(jnp.split(self.out(x.reshape(len(x), -1)), 2, axis=-1))


class Decoder(nnx.Module):
    """μ and log s of each pixel from z; the arguments are those of `ConvVae`."""

    def __init__(
        self,
        *,
        smallest: tuple[int, int],
        in_channels: int,
        latent_features: int,
        features: Sequence[int],
        attention: AttentionFactory | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.smallest = (*smallest, features[-1])
        self.project = nnx.Linear(latent_features, math.prod(self.smallest), **types, rngs=rngs)
        self.attention = nnx.data(attention(features[-1], rngs=rngs) if attention else None)
        self.blocks = nnx.List(Block(width, **types, rngs=rngs) for width in features[::-1])
        self.narrow = nnx.List(
            nnx.Conv(wide, narrow, (3, 3), **types, rngs=rngs) for wide, narrow in pairwise(features[::-1])
        )
        self.norm = GroupNorm(features[0], GROUPS, **types, rngs=rngs)
        self.out = nnx.Conv(features[0], 2 * in_channels, (3, 3), **types, rngs=rngs)

    def __call__(self, z: Float[Array, "b l"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """μ and log s."""
        x = self.project(z).reshape(-1, *self.smallest)
        if self.attention is not None:
            x = self.attention(x)
        first, *blocks = self.blocks
        x = first(x)
        for narrow, block in zip(self.narrow, blocks, strict=True):
            x = block(narrow(double(x)))
        return tuple(jnp.split(self.out(jax.nn.silu(self.norm(x))), 2, axis=-1))


class ConvVae(nnx.Module):
    """Encoder and decoder.

    Args:
        num_classes: is not used: what it learns has no label.
        image_size: height and width of the images, which the halvings must divide.
        in_channels: of the images.
        latent_features: of z.
        features: the channels of its maps, from the image's size on; each after the first halves them. Multiples of 8.
        attention: a factory of the mechanism on the smallest map of both, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, channels that are no multiples of 8, or an image that the halvings do not divide,
            at construction; images or noise of another size at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        in_channels: int = 3,
        latent_features: int = 32,
        features: Sequence[int] = (32, 64),
        attention: AttentionFactory | None = SaganAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in {"in_channels": in_channels, "latent_features": latent_features}.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(
            len(features) >= 1 and all(width >= 1 and width % GROUPS == 0 for width in features),
            f"features must be multiples of {GROUPS}, got {features}.",
        )
        halvings = len(features) - 1
        check_halvings(image_size, halvings, f"features={features}")
        common = {
            "smallest": tuple(size >> halvings for size in image_size),
            "in_channels": in_channels,
            "latent_features": latent_features,
            "features": features,
            "attention": attention,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.image_shape = (*image_size, in_channels)
        self.latent_features = latent_features
        self.encoder = Encoder(**common)
        self.decoder = Decoder(**common)

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
        """μ and log σ² of q(z | x)."""
        expected = "b, " + ", ".join(map(str, self.image_shape))
        check(x.ndim == 4 and x.shape[1:] == self.image_shape, f"x must be images ({expected}), got shape {x.shape}.")
        return self.encoder(x)

    def decode(self, z: Float[Array, "b l"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """μ and log s of p(x | z): the location, where [-1, 1] are black and white, and the logarithm of the scale."""
        check(
            z.ndim == 2 and z.shape[-1] == self.latent_features,
            f"z must be (b, {self.latent_features}), got shape {z.shape}.",
        )
        return self.decoder(z)

    def __call__(self, x: Float[Array, "b h w c"], noise: Float[Array, "b l"]) -> tuple[Array, Array, Array, Array]:
        """What `encode` gives of x, and `decode` of z = μ + σ · noise."""
        mean, log_variance = self.encode(x)
        return mean, log_variance, *self.decode(mean + jnp.exp(log_variance / 2) * noise)


MODELS = MappingProxyType({"vae": (ConvVae, {})})
