"""TimeSformer, with divided space-time attention.

    z_tp = E x_tp + p_p + p_t                         of the patch at p in the frame t
    z = divided_st(z)                                 in every block: over time, then over space,
    z = z + W_2 gelu(W_1 norm(z) + b_1) + b_2         and this
    logits = W pool(z) + b

where pool is the norm of the class token, which sees all frames (`"token"`), or the mean of the normalised tokens
(`"avg"`). Without time there is neither p_t nor attention over frames: the paper's space attention, to which a video is
a bag of its frames.

Differs from the paper: p_p are sines and cosines, so that frames may have any size, and p_t may be; E may be a stem of
convolutions, and tokens may be pooled by their mean. The attention over time starts at zero in every block, in the
authors' networks in all but the first.

Source: Bertasius, Wang and Torresani, "Is Space-Time Attention All You Need for Video Understanding?" (2021),
arXiv:2102.05095.
"""

from types import MappingProxyType
from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.functional import divided_st_attention, divided_st_attention_with_class_token
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.video import FrameTokens, TimePositions
from attn_flax.nn import DividedSpaceTime, MultiHeadSelfAttention

Pool = Literal["token", "avg"]


class SpaceAttention(nnx.Module):
    """The half of divided space-time attention that looks at each frame by itself.

    Args:
        channels: c.
        num_heads: which must divide c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.space = MultiHeadSelfAttention(channels, num_heads=num_heads, qkv_bias=True, num_spatial_dims=1, **types)
        self.space_norm = LayerNorm(channels, **types)

    def __call__(
        self, x: Float[Array, "*b t h w c"], class_token: Float[Array, "*b c"] | None = None
    ) -> Float[Array, "*b t h w c"] | tuple[Float[Array, "*b t h w c"], Float[Array, "*b c"]]:
        """x + attend(norm(x)) in each frame; with a class token u the pair with u', as in divided attention."""
        if class_token is None:
            return divided_st_attention(x, jnp.zeros_like, self._attend_in_space)
        return divided_st_attention_with_class_token(x, class_token, jnp.zeros_like, self._attend_in_space)

    def _attend_in_space(self, tokens):
        return self.space(self.space_norm(tokens))


class TimeSformerBlock(nnx.Module):
    """Attention over time and space, or over space alone, then a perceptron.

    Args:
        channels: c.
        num_heads: of the attention, which must divide c.
        mlp_ratio: the width of the perceptron, in c.
        temporal: whether time is attended to.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        mlp_ratio: int,
        temporal: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if temporal:
            self.attn = DividedSpaceTime(channels, num_heads=num_heads, qkv_bias=True, zero_init=True, **types)
        else:
            self.attn = SpaceAttention(channels, num_heads=num_heads, **types)
        self.norm = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)

    def __call__(
        self, x: Float[Array, "*b t h w c"], class_token: Float[Array, "*b c"] | None
    ) -> tuple[Float[Array, "*b t h w c"], Float[Array, "*b c"] | None]:
        """The tokens, and the class token if there is one, after the block."""
        if class_token is None:
            return self._perceive(self.attn(x)), None
        x, class_token = self.attn(x, class_token)
        return self._perceive(x), self._perceive(class_token)

    def _perceive(self, z):
        return z + self.mlp(self.norm(z))


class TimeSformer(nnx.Module):
    """A transformer on video whose blocks attend over time, then over space.

    Args:
        num_classes: the number of logits.
        in_channels: of the frames.
        embed_dim: the features of a token, a multiple of four.
        depth: how many blocks there are.
        num_heads: of the attention in every block.
        mlp_ratio: the width of the blocks' perceptrons, in `embed_dim`.
        patch_size: how many pixels a token stands for along both axes.
        stem: whether tokens are made by convolutions, or by a linear layer of each patch.
        num_frames: for how many frames the positions in time are learned; None for sines and cosines, of any number.
        temporal: whether time is attended to, and frames know their positions in it.
        global_pool: what of the tokens is classified: "token" or "avg".
        attention: a factory of a mechanism on the map of each frame, before the blocks, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or that does not fit, or an unknown pooling, at construction; an input that is no
            video of these channels, of frames that the patches do not divide, or of other than `num_frames`, at the
            call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        embed_dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: int = 2,
        patch_size: int = 8,
        stem: bool = True,
        num_frames: int | None = None,
        temporal: bool = True,
        global_pool: Pool = "avg",
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in {"num_classes": num_classes, "depth": depth, "mlp_ratio": mlp_ratio}.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(global_pool in get_args(Pool), f"global_pool must be 'token' or 'avg', got {global_pool!r}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.tokens = FrameTokens(
            in_channels, embed_dim, patch_size=patch_size, stem=stem, attention=attention, **types
        )
        self.time = nnx.data(
            TimePositions(embed_dim, num_frames=num_frames, param_dtype=param_dtype, rngs=rngs) if temporal else None
        )
        with_token = global_pool == "token"
        self.cls_token = nnx.data(nnx.Param(jnp.zeros(embed_dim, param_dtype)) if with_token else None)
        block = {"num_heads": num_heads, "mlp_ratio": mlp_ratio, "temporal": temporal, **types}
        self.blocks = nnx.List([TimeSformerBlock(embed_dim, **block) for _ in range(depth)])
        self.norm = LayerNorm(embed_dim, **types)
        self.head = nnx.Linear(embed_dim, num_classes, **types)

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b classes"]:
        """The logits of videos."""
        z, class_token = self.tokens(x), None
        if self.time is not None:
            z = z + self.time(z.shape[-4])[:, None, None].astype(z.dtype)
        if self.cls_token is not None:
            class_token = jnp.broadcast_to(self.cls_token[...], (*z.shape[:-4], z.shape[-1])).astype(z.dtype)
        for block in self.blocks:
            z, class_token = block(z, class_token)
        if class_token is not None:
            return self.head(self.norm(class_token))
        return self.head(self.norm(z).mean((-4, -3, -2)))


MODELS = MappingProxyType({"timesformer": (TimeSformer, {})})
