"""What the networks on video share: the tokens of frames, and their positions in time."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_video
from attn_flax.models.attention import AttentionFactory


class Stem(nnx.Module):
    """Convolutions 3×3 that halve the map, each normalised and rectified, then a linear layer.

    The channels double from each to the next, the last having as many as the tokens.

    Args:
        in_channels: of the images.
        embed_dim: the features of a token.
        patch_size: how many pixels a token stands for along both axes, a power of two.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a patch size that is no power of two, or a width that cannot be halved so often.

    Source: Xiao, Singh, Mintun, Darrell, Dollár and Girshick, "Early Convolutions Help Transformers See Better" (2021),
    arXiv:2106.14881.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        patch_size: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(
            patch_size >= 2 and patch_size & (patch_size - 1) == 0,
            f"patch_size must be a power of two with a stem, got {patch_size}.",
        )
        halvings = patch_size.bit_length() - 1
        check(
            embed_dim % (patch_size // 2) == 0,
            f"embed_dim must be a multiple of patch_size / 2 with a stem, got {embed_dim} and {patch_size}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        channels = [in_channels, *(embed_dim >> i for i in reversed(range(halvings)))]
        self.convs = nnx.List(
            [
                nnx.Conv(c, d, (3, 3), strides=2, padding=1, use_bias=False, **types)
                for c, d in itertools.pairwise(channels)
            ]
        )
        self.norms = nnx.List([BatchNorm(d, **types) for d in channels[1:]])
        self.linear = nnx.Linear(embed_dim, embed_dim, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map of tokens; its height and width are rounded up."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return self.linear(x)


class FrameTokens(nnx.Module):
    """attention(embed(x_t)) + p, the map of tokens of each frame with their positions in it.

    p are the sines and cosines of `ops.sincos_position`, so that frames may have any size.

    Args:
        in_channels: of the frames.
        embed_dim: the features of a token, a multiple of four.
        patch_size: how many pixels a token stands for along both axes.
        stem: whether tokens are made by the convolutions of `Stem`, or by a linear layer of each patch.
        attention: a factory of the mechanism on the map of each frame, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or that does not fit, at construction; an input that is no video of these channels,
            or without a stem of frames that the patches do not divide, at the call.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        patch_size: int,
        stem: bool,
        attention: AttentionFactory | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in {"in_channels": in_channels, "patch_size": patch_size}.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(embed_dim >= 4 and embed_dim % 4 == 0, f"embed_dim must be a positive multiple of four, got {embed_dim}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if stem:
            self.embed = Stem(in_channels, embed_dim, patch_size=patch_size, **types)
        else:
            patch = (patch_size, patch_size)
            self.embed = nnx.Conv(in_channels, embed_dim, patch, strides=patch, padding="VALID", **types)
        self.attention = nnx.data(attention(embed_dim, rngs=rngs) if attention else None)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.stem = stem

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b t p q d"]:
        """The tokens of every frame."""
        check_video(x, self.in_channels)
        (frames, height, width), patch = x.shape[-4:-1], self.patch_size
        check(
            min(frames, height, width) >= 1 and (self.stem or height % patch == width % patch == 0),
            f"videos must have frames of patches of {patch}×{patch}, got {frames} of {height}×{width}.",
        )
        x = self.embed(x)
        if self.attention is not None:
            x = self.attention(x)
        *_, p, q, d = x.shape
        return x + ops.sincos_position((p, q), d).reshape(p, q, d).astype(x.dtype)


class TimePositions(nnx.Module):
    """p_t of every frame: the sines and cosines of `ops.sincos_position`, or learned.

    Args:
        embed_dim: the features of a token, for sines and cosines an even number.
        num_frames: for how many frames the positions are learned; None for sines and cosines, of any number.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: no frames at construction, videos of another number than that of learned positions at the call.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_frames: int | None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_frames is None or num_frames >= 1, f"num_frames must be at least 1 or None, got {num_frames}.")
        self.embed_dim = embed_dim
        start = nnx.initializers.truncated_normal(0.02)
        learned = nnx.Param(start(rngs.params(), (num_frames, embed_dim), param_dtype)) if num_frames else None
        self.learned = nnx.data(learned)

    def __call__(self, num_frames: int) -> Float[Array, "t d"]:
        """The positions of so many frames."""
        if self.learned is None:
            return ops.sincos_position((num_frames,), self.embed_dim)
        check(
            num_frames == len(self.learned),
            f"the positions in time are learned for {len(self.learned)} frames, got videos of {num_frames}.",
        )
        return self.learned[...]
