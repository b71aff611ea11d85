"""Outlook attention.

    A_i = softmax(reshape(W_A x̄_i + b_A) / √d)                   K²×K² for each head, a softmax for each row
    y_p = W_O [Σ_{i,u: s·i+u = p} Σ_t A_i,ut v_{s·i+t}]_heads + b_O,   v = W_V x

where u and t are the K×K offsets around a position, x̄_i is the mean of the s×s positions from s·i on, of as many as the
map has, and d = c/heads. Every position makes the weights among its neighbours from its own features, without asking
them; each row of A_i weighs what lies around s·i for one of the neighbours, which gathers all that comes its way.

With a stride s only every s-th position does so. Beyond the border v is zero, but takes weight.

Differs from the paper: its equations do not divide by √d, its authors' code does.

Errors elsewhere: External-Attention-pytorch gives padding and stride of its windows in the places of dilation and
padding, so that it is right for a stride of 1 only, and drops a tenth of the weights in training.

Source: Yuan, Hou, Jiang, Feng and Yan, "VOLO: Vision Outlooker for Visual Recognition" (2021), arXiv:2106.13112.
Confirmed with timm's code.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_heads, check_map, promote


def outlook_weights(
    x: Float[Array, "*b h w c"], score: Callable, *, num_heads: int, kernel_size: int, stride: int = 1
) -> Float[Array, "*b p q k u t"]:
    """A of every head, K² rows and K² columns in row-major order.

    Args:
        x: maps.
        score: x̄ -> W_A x̄ + b_A, any callable on (*b, p, q, c): heads, rows and columns.
        num_heads: which divide c.
        kernel_size: K, odd.
        stride: s.
    """
    scores = score(_cell_means(x, stride))
    scores = scores.reshape(*scores.shape[:-1], num_heads, kernel_size**2, kernel_size**2)
    return ops.softmax(scores * (x.shape[-1] // num_heads) ** -0.5)


def outlook(
    x: Float[Array, "*b h w c"],
    score: Callable,
    value: Callable,
    project: Callable,
    *,
    num_heads: int,
    kernel_size: int,
    stride: int = 1,
) -> Float[Array, "*b h w e"]:
    """y, with the A of `outlook_weights`; `value` is x -> W_V x and `project` o -> W_O o + b_O.

    >>> x = jnp.array([[[9.0], [0.0], [0.0]]])
    >>> outlook(x, lambda x: jnp.zeros((1, 3, 81)), lambda x: x, lambda o: o, num_heads=1, kernel_size=3).squeeze()
    Array([2., 2., 1.], dtype=float32)
    """
    weights = outlook_weights(x, score, num_heads=num_heads, kernel_size=kernel_size, stride=stride)
    v = value(x)
    unfold = functools.partial(_windows, kernel_size=kernel_size, stride=stride)
    windows, wide = unfold(v), ops.at_least_float32(v.dtype)
    by_head = windows.reshape(*windows.shape[:-1], num_heads, -1)
    gathered = jnp.einsum("...kut,...tke->...uke", weights, by_head, preferred_element_type=wide)
    fold = jax.linear_transpose(unfold, jax.ShapeDtypeStruct(v.shape, wide))
    (o,) = fold(gathered.reshape(windows.shape))
    return project(o.astype(v.dtype))


def _windows(v, *, kernel_size, stride):
    """The windows around every stride-th position, zeros around the map: (*b, p, q, K², c)."""
    reach = kernel_size // 2
    blocks = ops.halo_blocks(ops.pad_to_multiple(v, stride), (stride, stride), (reach, reach))
    p, q = _cells(v.shape, stride)
    side = stride + 2 * reach
    squares = blocks.reshape(*v.shape[:-3], p, q, side, side, -1)[..., :kernel_size, :kernel_size, :]
    return squares.reshape(*squares.shape[:-3], kernel_size**2, -1)


def _cell_means(x, side):
    """The means of the cells of side×side positions, of those that the map has."""
    wide = ops.at_least_float32(x.dtype)
    sums, counts = (
        ops.window_partition(ops.pad_to_multiple(values, side), (side, side)).sum(-2)
        for values in (x.astype(wide), jnp.ones((*x.shape[-3:-1], 1), wide))
    )
    return (sums / counts).reshape(*x.shape[:-3], *_cells(x.shape, side), -1).astype(x.dtype)


def _cells(shape, side):
    """How many of them there are along each axis."""
    return tuple(-(-n // side) for n in shape[-3:-1])


class OutlookAttention(nnx.Module):
    """Outlook attention over maps of any size.

    Parameters: 2c² + c + (c + 1)·K⁴·k, with k heads. Multiply-adds, of n positions, N of which make weights: 2n·c² +
    N·K⁴·c·k + N·K⁴·c.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        kernel_size: K, odd.
        stride: s, at most K.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, an even kernel or a stride above it, at
            construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 3,
        stride: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        check(1 <= stride <= kernel_size, f"stride must be from 1 to kernel_size={kernel_size}, got {stride}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.v = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.attn = nnx.Linear(channels, kernel_size**4 * num_heads, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.stride = stride

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q k u t"]:
        """A of every s-th position and head, K² rows and K² columns in row-major order."""
        return outlook_weights(self._map(x), self.attn, **self._sizes())

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return outlook(self._map(x), self.attn, self.v, self.proj, **self._sizes())

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        cells = math.prod(_cells(shape, self.stride))
        scores = self.attn.out_features
        return Cost(
            2 * c * c + c + (c + 1) * scores, 2 * h * w * c * c + cells * (c * scores + self.kernel_size**4 * c)
        )

    def _sizes(self):
        return {"num_heads": self.num_heads, "kernel_size": self.kernel_size, "stride": self.stride}

    def _map(self, x):
        check_map(x, self.v.in_features)
        return promote(x, self.v)
