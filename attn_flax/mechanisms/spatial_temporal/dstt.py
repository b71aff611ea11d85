"""Decoupled spatial-temporal attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    y = W_O softmax(q kᵀ / √d) v + b_O      for each head, within each part of the video

where a part is, in the spatial mode, a frame and, in the temporal mode, one of z_h × z_w zones of all frames: of h/z_h
rows and w/z_w columns. Layers of both modes in turn relate every token to every other, while none pays for
all pairs.

Differs from the paper: nothing. `zones` is two by two there. Dropout of the weights, which the authors' network sets to
0, is left out, and norm and residual around the attention are the caller's.

Errors elsewhere: the split into 2×2 zones is fixed in the authors' code and its copies.

Source: Liu, Deng, Huang, Shi, Lu, Sun, Wang, Dai and Li, "Decoupled Spatial-Temporal Transformer for Video Inpainting"
(2021), arXiv:2104.06637. Confirmed with the authors' code.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_video, promote
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention

Mode = Literal["spatial", "temporal"]


def dstt_attention(
    x: Float[Array, "*b t h w c"], attend: Callable, part: tuple[int, int, int]
) -> Float[Array, "*b t h w c"]:
    """y = attend(x) within each part of the video, a box of frames, rows and columns.

    Args:
        x: videos.
        attend: attention among the n tokens of each part, any callable on (*b, parts, n, c).
        part: its size: (1, h, w) in the spatial mode, (t, h/z_h, w/z_w) in the temporal one.

    Raises:
        InputError: a part that does not divide the video.

    >>> x = jnp.arange(8.0).reshape(2, 2, 2, 1)
    >>> share = lambda tokens: 0 * tokens + tokens.mean(-2, keepdims=True)
    >>> dstt_attention(x, share, (1, 2, 2))[:, 0, 0, 0]  # the mean of each frame
    Array([1.5, 5.5], dtype=float32)
    >>> dstt_attention(x, share, (2, 1, 1))[0].squeeze()  # of each of 2×2 zones
    Array([[2., 3.],
           [4., 5.]], dtype=float32)
    """
    return ops.window_merge(attend(ops.window_partition(x, part)), part, x.shape[-4:-1])


def dstt_attention_weights(
    x: Float[Array, "*b t h w c"], weigh: Callable, part: tuple[int, int, int]
) -> Float[Array, "*b parts k n n"]:
    """The weights of each part of the video, of the same arguments, with `weigh` from (*b, parts, n, c) to weights."""
    return weigh(ops.window_partition(x, part))


class DecoupledSpatialTemporal(nnx.Module):
    """Multi-head attention within frames, or over all frames within zones.

    Parameters: 4c² + 4c. Multiply-adds: 4thw·c² + 2thw·n·c, with n = h·w (spatial) or t·h·w / (z_h·z_w) (temporal).

    Args:
        channels: c.
        mode: "spatial", within each frame, or "temporal", over all frames within each zone.
        num_heads: which must divide c.
        zones: (z_h, z_w), which must divide h and w in the temporal mode.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: an unknown mode, sizes below 1 or heads that do not divide the channels, at construction; an input
            that is no video of these channels, or that the zones do not divide, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: Mode = "temporal",
        num_heads: int = 4,
        zones: tuple[int, int] = (2, 2),
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(mode in get_args(Mode), f"mode must be 'spatial' or 'temporal', got {mode!r}.")
        check(len(zones) == 2 and min(zones) >= 1, f"zones must be two numbers of at least 1, got {zones}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.heads = MultiHeadSelfAttention(channels, num_heads=num_heads, qkv_bias=True, num_spatial_dims=1, **types)
        self.mode = mode
        self.zones = tuple(zones)

    def attention_map(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b parts k n n"]:
        """The weights among the n tokens of each frame or zone, in row-major order, for each head."""
        x = self._video(x)
        return dstt_attention_weights(x, self.heads.attention_map, self._part(x.shape[-4:]))

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b t h w c"]:
        """y, in the layout of x."""
        x = self._video(x)
        return dstt_attention(x, self.heads, self._part(x.shape[-4:]))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (t, h, w, c)."""
        part = self._part(shape)
        parameters, multiply_adds = self.heads.cost((*part, shape[-1]))
        return Cost(parameters, math.prod(shape[:-1]) // math.prod(part) * multiply_adds)

    def _part(self, shape):
        t, h, w, _ = shape
        if self.mode == "spatial":
            return (1, h, w)
        rows, columns = self.zones
        check(
            h % rows == 0 and w % columns == 0 and min(h, w) >= 1,
            f"zones {self.zones} must divide the frames' height and width, got {h}×{w}.",
        )
        return (t, h // rows, w // columns)

    def _video(self, x):
        check_video(x, self.heads.proj.in_features)
        return promote(x, self.heads.proj)
