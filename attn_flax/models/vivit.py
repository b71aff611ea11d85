"""ViViT with a factorised encoder.

    z_t = E x_t + p                                   the tokens of the frame t
    z_t = block(z_t)                                  L_s times, within each frame
    h = [mean norm(z_1) … mean norm(z_T)] + p_t       a token for each frame
    h = block(h)                                      L_t times, over the frames
    logits = W mean norm(h) + b

with block(z) = y + W_2 gelu(W_1 norm(y) + b_1) + b_2, y = z + attention(norm(z)). Time is attended to late, by one
token a frame, at next to no price. Without time there is neither p_t nor the second encoder: the mean of the frames'
tokens is classified.

Differs from the paper: tokens are averaged, which it allows, and no class token is added; they are of one frame each
(its "uniform frame sampling"), not of tubes of several. p are sines and cosines, so that frames may have any size, and
p_t may be; E may be a stem of convolutions.

Source: Arnab, Dehghani, Heigold, Sun, Lučić and Schmid, "ViViT: A Video Vision Transformer" (2021), arXiv:2103.15691,
model 2.
"""

from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.video import FrameTokens, TimePositions
from attn_flax.models.vit import TransformerBlock
from attn_flax.nn import MultiHeadSelfAttention


class Encoder(nnx.Module):
    """Transformer blocks on the positions of the last axes, whose normalised outputs are averaged.

    Args:
        channels: c.
        depth: how many blocks there are.
        num_heads: of the attention in every block, which must divide c.
        mlp_ratio: the width of the blocks' perceptrons, in c.
        num_spatial_dims: how many axes before the channels are positions.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: int,
        num_spatial_dims: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype}
        attention = partial(
            MultiHeadSelfAttention, num_heads=num_heads, qkv_bias=True, num_spatial_dims=num_spatial_dims, **types
        )
        block = {"mlp_ratio": mlp_ratio, "attention": attention, **types, "rngs": rngs}
        self.blocks = nnx.List([TransformerBlock(channels, **block) for _ in range(depth)])
        self.norm = LayerNorm(channels, **types, rngs=rngs)
        self.positions = tuple(range(-1 - num_spatial_dims, -1))

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*b c"]:
        """One token for those of each example."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(self.positions)


class ViViT(nnx.Module):
    """A transformer on frames, then one on what it makes of each frame.

    Args:
        num_classes: the number of logits.
        in_channels: of the frames.
        embed_dim: the features of a token, a multiple of four.
        depth: how many blocks the encoder of frames has, and how many that of time.
        num_heads: of the attention in every block.
        mlp_ratio: the width of the blocks' perceptrons, in `embed_dim`.
        patch_size: how many pixels a token stands for along both axes.
        stem: whether tokens are made by convolutions, or by a linear layer of each patch.
        num_frames: for how many frames the positions in time are learned; None for sines and cosines, of any number.
        temporal: whether there is an encoder of time, and frames know their positions in it.
        attention: a factory of a mechanism on the map of each frame, before the blocks, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or that does not fit, at construction; an input that is no video of these channels,
            of frames that the patches do not divide, or of other than `num_frames`, at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        embed_dim: int = 64,
        depth: tuple[int, int] = (3, 1),
        num_heads: int = 4,
        mlp_ratio: int = 2,
        patch_size: int = 8,
        stem: bool = True,
        num_frames: int | None = None,
        temporal: bool = True,
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in {"num_classes": num_classes, "mlp_ratio": mlp_ratio}.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(len(depth) == 2 and min(depth) >= 1, f"depth must be two numbers of at least 1, got {depth}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.tokens = FrameTokens(
            in_channels, embed_dim, patch_size=patch_size, stem=stem, attention=attention, **types
        )
        block = {"num_heads": num_heads, "mlp_ratio": mlp_ratio, **types}
        self.space = Encoder(embed_dim, depth=depth[0], num_spatial_dims=2, **block)
        self.positions = self.time = nnx.data(None)
        if temporal:
            self.positions = TimePositions(embed_dim, num_frames=num_frames, param_dtype=param_dtype, rngs=rngs)
            self.time = Encoder(embed_dim, depth=depth[1], num_spatial_dims=1, **block)
        self.head = nnx.Linear(embed_dim, num_classes, **types)

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b classes"]:
        """The logits of videos."""
        frames = self.space(self.tokens(x))
        if self.time is None:
            return self.head(frames.mean(-2))
        positions = self.positions(frames.shape[-2]).astype(frames.dtype)
        return self.head(self.time(frames + positions))


MODELS = MappingProxyType({"vivit": (ViViT, {})})
