"""Cross-covariance image transformers: the features attend to one another, and convolutions mix the positions.

    block          x = x + γ₁ ⊙ attention(norm(x))                            cross-covariance attention
                   x = x + γ₃ ⊙ conv(bn(gelu(conv(norm(x)))))                 local patch interaction
                   x = x + γ₂ ⊙ (W_2 gelu(W_1 norm(x) + b_1) + b_2)
    class block    [v, t_1 … t_n] = norm([u, z_1 … z_n])
                   u = norm(u + γ₁ ⊙ attention([v, t_1 … t_n]))               class attention, of the class token alone
                   z_j = 2 norm(z_j + γ₁ ⊙ t_j)
                   u = u + γ₂ ⊙ (W_2 gelu(W_1 u + b_1) + b_2)

    images -> convolutions (1/16 or 1/8 of the image), + p -> blocks -> z
    [u, z_1 … z_n] -> two class blocks -> norm
    logits = W u + b

    p_ij = V [sin(s_i θ_f), cos(s_i θ_f), …, sin(t_j θ_f), cos(t_j θ_f), …] + d,     f = 0 … 15
    with s_i = 2π i/h, t_j = 2π j/w for i = 1 … h, j = 1 … w and θ_f = 10000^(-f/16)

where every convolution before the blocks is one of 3×3 that halves height and width, rounded up, doubles the channels
and is normalised by batch, with gelu between them; conv in the blocks are depthwise, of 3×3, and bn is batch norm. The
attention costs as much for each position whatever their number, and no parameter belongs to a position: images of any
size. The names of the layers are timm's.

Differs from the paper: its class blocks are CaiT's. Those above are those of the authors' code, which the published
numbers need: there the residual of the perceptron starts from the norm, and the z are changed too. The smallest
networks, nano, have no norm over z_j in it: z_j = 2 (z_j + γ₁ ⊙ t_j). The code divides i by h + 10⁻⁶ and j by
w + 10⁻⁶. Stochastic depth leaves branches out at the same rate in every block, and none in the class blocks, as there.

Errors elsewhere: in vit-pytorch's, γ starts at 10⁻⁶ in networks of 19 to 24 blocks, by a condition that is never met.

Source: El-Nouby, Touvron, Caron, Bojanowski, Douze, Joulin, Laptev, Neverova, Synnaeve, Verbeek and Jégou, "XCiT:
Cross-Covariance Image Transformers" (2021), arXiv:2106.09681. Confirmed with timm's code.
"""

from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv, LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, flatten_positions
from attn_flax.mechanisms.self_attention.class_attention import ClassAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, LayerScale, after_each, drop_path, in_order
from attn_flax.nn import CrossCovarianceAttention

CLASS_BLOCKS = 2
WAVES = 16


class LocalPatchInteraction(nnx.Module):
    """conv(bn(gelu(conv(x)))), with depthwise convolutions of 3×3.

    Args:
        channels: of x.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv1 = DepthwiseConv(channels, (3, 3), **types)
        self.bn = BatchNorm(channels, **types)
        self.conv2 = DepthwiseConv(channels, (3, 3), **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map of the same size."""
        return self.conv2(self.bn(gelu(self.conv1(x))))


class XcitBlock(nnx.Module):
    """x + γ₁ ⊙ attention(norm(x)), then x + γ₃ ⊙ interaction(norm(x)), then x + γ₂ ⊙ perceptron(norm(x)).

    Args:
        channels: of x.
        mlp_ratio: the width of the perceptron, in channels.
        layer_scale: γ at first.
        attention: a factory of the mechanism on the map, or None for none.
        drop_path_rate: of stochastic depth.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int,
        layer_scale: float,
        attention: AttentionFactory | None,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = nnx.data(LayerNorm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.ls1 = nnx.data(LayerScale(channels, layer_scale, **types) if attention else None)
        self.norm3 = LayerNorm(channels, **types)
        self.local_mp = LocalPatchInteraction(channels, **types)
        self.ls3 = LayerScale(channels, layer_scale, **types)
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.ls2 = LayerScale(channels, layer_scale, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map after the block."""
        if self.attn is not None:
            x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path(self.ls3(self.local_mp(self.norm3(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ClassBlock(nnx.Module):
    """The class block above, in which u gathers and the z_j are changed each by itself.

    Args:
        channels: of the tokens.
        num_heads: of the class attention.
        mlp_ratio: the width of the perceptron, in channels.
        layer_scale: γ at first.
        tokens_norm: whether the second norm is over the z_j too, or only over u.
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
        layer_scale: float,
        tokens_norm: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = LayerNorm(channels, **types)
        self.attn = ClassAttention(channels, num_heads=num_heads, qkv_bias=True, **types)
        self.ls1 = LayerScale(channels, layer_scale, **types)
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.ls2 = LayerScale(channels, layer_scale, **types)
        self.tokens_norm = tokens_norm

    def __call__(self, tokens: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """The tokens, the class token first, after the block."""
        normed = self.norm1(tokens)
        u = self.norm2(tokens[..., 0, :] + self.ls1(self.attn(normed)))
        z = tokens[..., 1:, :] + self.ls1(normed[..., 1:, :])
        z = 2 * (self.norm2(z) if self.tokens_norm else z)
        u = u + self.ls2(self.mlp(u))
        return jnp.concatenate([u[..., None, :], z], -2)


class FourierPositions(nnx.Module):
    """p of a map of any size.

    Args:
        channels: of p.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.token_projection = nnx.Linear(4 * WAVES, channels, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, h: int, w: int) -> Float[Array, "h w c"]:
        """p."""
        shares = np.meshgrid(np.arange(1, h + 1) / h, np.arange(1, w + 1) / w, indexing="ij")
        waves = ops.sincos_coordinates(jnp.asarray(np.stack(shares, -1)), 4 * WAVES)
        alternating = waves.reshape(h, w, 2, 2, WAVES).swapaxes(-2, -1).reshape(h, w, -1)
        return self.token_projection(alternating)


def halving_convolutions(
    in_channels: int,
    channels: int,
    times: int,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Convolutions of 3×3 and stride 2, normalised by batch, with gelu between them.

    Args:
        in_channels: of the images.
        channels: of the last one; each has twice those of the one before.
        times: how many there are.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """
    types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    layers = []
    for before, after in pairwise([in_channels, *(channels >> i for i in reversed(range(times)))]):
        conv = nnx.Conv(before, after, (3, 3), 2, padding=1, use_bias=False, **types)
        layers += [nnx.Sequential(conv, BatchNorm(after, **types)), gelu]
    return nnx.Sequential(*layers[:-1])


class XCiT(Classifier):
    """A cross-covariance transformer; for 1000 classes of colour images of 3,049,016 to 189,096,136 parameters.

    Args:
        num_classes: the number of logits.
        embed_dim: the features of a token.
        depth: how many blocks there are before the two class blocks.
        num_heads: of the cross-covariance attention and of the class attention.
        mlp_ratio: the width of the perceptrons, in `embed_dim`.
        layer_scale: γ of all blocks at first.
        tokens_norm: whether the second norm of the class blocks is over the z_j too, or only over u.
        patch_size: how many times smaller than the image the map is, a power of 2.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in every block.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        attention: a factory of the mechanism on the map in every block, or None for none. The default, the class
            CrossCovarianceAttention itself, is given `num_heads`, all biases, and the types.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, a `patch_size` that is no power of 2 or half of which does not divide `embed_dim`,
            heads that do not divide it, or a rate out of range, at construction; images of other channels at the call.
    """

    timm_names: ClassVar = (
        (r"^patch_embed\.", "patch_embed.proj."),
        (r"\blayers\.", ""),
        (r"\bls(\d)\.gamma\b", r"gamma\1"),
    )
    timm_convs: ClassVar = r"^pos_embed\b"

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int = 4,
        layer_scale: float = 1.0,
        tokens_norm: bool = True,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        attention: AttentionFactory | None = CrossCovarianceAttention,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {
            "num_classes": num_classes, "embed_dim": embed_dim, "depth": depth, "mlp_ratio": mlp_ratio,
            "in_channels": in_channels,
        }  # fmt: skip
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(
            patch_size >= 2 and patch_size.bit_count() == 1,
            f"patch_size must be a power of 2, and at least that, got {patch_size}.",
        )
        check(
            embed_dim % (patch_size // 2) == 0,
            f"embed_dim must be a multiple of patch_size / 2 = {patch_size // 2}, got {embed_dim}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        if attention is CrossCovarianceAttention:
            attention = partial(attention, num_heads=num_heads, qkv_bias=True, **types)
        widths = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        block = partial(XcitBlock, embed_dim, attention=attention, drop_path_rate=drop_path_rate, **widths, **layer)
        class_block = partial(ClassBlock, embed_dim, num_heads=num_heads, tokens_norm=tokens_norm, **widths, **layer)
        self.patch_embed = halving_convolutions(in_channels, embed_dim, patch_size.bit_length() - 1, **layer)
        self.pos_embed = FourierPositions(embed_dim, **layer)
        self.cls_token = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (embed_dim,), param_dtype))
        self.blocks = nnx.List([block() for _ in range(depth)])
        self.cls_attn_blocks = nnx.List([class_block() for _ in range(CLASS_BLOCKS)])
        self.norm = LayerNorm(embed_dim, **layer)
        self.head = nnx.Linear(embed_dim, num_classes, **layer)
        self.in_channels = in_channels
        self.remat = remat
        self.feature_channels = (embed_dim,) * depth

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after each block, of `feature_channels` channels."""
        check_map(x, self.in_channels)
        x = self.patch_embed(x)
        x = x + self.pos_embed(*x.shape[-3:-1]).astype(x.dtype)
        return after_each(self.blocks, x, remat=self.remat)

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n d"]:
        """The tokens after the last block, normalised: u, then z in row-major order."""
        z = flatten_positions(self.features(x)[-1], 2)
        u = jnp.broadcast_to(self.cls_token[...].astype(z.dtype), (*z.shape[:-2], 1, z.shape[-1]))
        return self.norm(in_order(self.cls_attn_blocks, jnp.concatenate([u, z], -2), remat=self.remat))

    def pool(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b c"]:
        """u of the tokens."""
        return x[..., 0, :]


NANO_12 = {"embed_dim": 128, "depth": 12, "num_heads": 4, "tokens_norm": False}
TINY_12 = {"embed_dim": 192, "depth": 12, "num_heads": 4}
SMALL_12 = {"embed_dim": 384, "depth": 12, "num_heads": 8}
TINY_24 = TINY_12 | {"depth": 24, "layer_scale": 1e-5}
SMALL_24 = SMALL_12 | {"depth": 24, "layer_scale": 1e-5}
MEDIUM_24 = SMALL_24 | {"embed_dim": 512}
LARGE_24 = SMALL_24 | {"embed_dim": 768, "num_heads": 16}

MODELS = MappingProxyType(
    {
        f"xcit_{size}_p{patch_size}_{image_size}": (XCiT, own | {"patch_size": patch_size})
        for patch_size in (16, 8)
        for size, own in {
            "nano_12": NANO_12,
            "tiny_12": TINY_12,
            "small_12": SMALL_12,
            "tiny_24": TINY_24,
            "small_24": SMALL_24,
            "medium_24": MEDIUM_24,
            "large_24": LARGE_24,
        }.items()
        for image_size in (224, 384)
    }
)
