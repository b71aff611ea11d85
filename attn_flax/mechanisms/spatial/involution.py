"""Involution.

    H = W_1 relu(BN(W_0 x)) + b_1
    y_p = Σ_k H_p,k · x_{p+k}

with 1×1 convolutions W_0 from c to c/r channels and W_1 to K² numbers for each of g groups of channels, and k over the
K×K offsets around a position, zeros beyond the border. A convolution turned inside out: every position makes its window
from its own features, and all channels of a group share it.

Differs from the paper: nothing at stride 1; the strided form is left out. `use_bias` adds a bias to W_0, which some
implementations have before the norm.

Errors elsewhere: External-Attention-pytorch has a bias before the batch norm and one group for all channels by default.

Source: Li, Hu, Wang, Li, She, Zhu, Zhang and Chen, "Involution: Inverting the Inherence of Convolution for Visual
Recognition" (2021), arXiv:2103.06255; compared with the authors' code.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote, reduced


def involution_weights(
    x: Float[Array, "*b h w c"], generate: Callable, *, groups: int, kernel_size: int
) -> Float[Array, "*b h w g k k"]:
    """H = generate(x), a window of K×K for each position and group.

    Args:
        x: maps.
        generate: x -> g·K² numbers for each position, those of a group in a row, its window in row-major order.
        groups: g, of as many channels in a row; must divide c.
        kernel_size: K, odd.
    """
    kernels = generate(x)
    return kernels.reshape(*kernels.shape[:-1], groups, kernel_size, kernel_size)


def involution(
    x: Float[Array, "*b h w c"], generate: Callable, *, groups: int, kernel_size: int
) -> Float[Array, "*b h w c"]:
    """y_p = Σ_k H_p,k · x_{p+k}, with the H of `involution_weights`; summed in float32 or wider.

    >>> x = jnp.array([[[1.0], [2.0], [4.0]]])
    >>> involution(x, lambda x: jnp.ones((1, 3, 9)), groups=1, kernel_size=3).squeeze()
    Array([3., 7., 6.], dtype=float32)
    """
    kernels = involution_weights(x, generate, groups=groups, kernel_size=kernel_size)
    wide = ops.at_least_float32(x.dtype)
    *batch, h, w, _ = x.shape
    margin = kernel_size // 2
    padded = jnp.pad(x, [(0, 0)] * len(batch) + [(margin, margin)] * 2 + [(0, 0)])
    grouped = padded.reshape(*padded.shape[:-1], groups, -1).astype(wide)
    y = sum(
        kernels[..., i, j, None].astype(wide) * grouped[..., i : i + h, j : j + w, :, :]
        for i, j in itertools.product(range(kernel_size), repeat=2)
    )
    return y.reshape(x.shape).astype(x.dtype)


class Involution(nnx.Module):
    """Involution of maps of any size.

    Parameters: c·c/r + 2c/r + (c/r + 1)·g·K², and c/r with `use_bias`. Multiply-adds: c·c/r + c/r·g·K² for each
    position.

    Args:
        channels: c.
        kernel_size: K, odd.
        group_channels: c/g, the channels that share a window; must divide c.
        reduction: r.
        use_bias: whether W_0 has a bias.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window, or groups that do not divide the channels, at construction; an input
            that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        group_channels: int = 16,
        reduction: int = 4,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        check(
            group_channels >= 1 and channels % group_channels == 0,
            f"group_channels must be at least 1 and divide channels, "
            f"got group_channels={group_channels}, channels={channels}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        groups = channels // group_channels
        self.reduce = nnx.Linear(channels, hidden, use_bias=use_bias, **layer)
        self.norm = BatchNorm(hidden, **layer)
        self.span = nnx.Linear(hidden, groups * kernel_size**2, **layer)
        self.groups = groups
        self.kernel_size = kernel_size

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w g k k"]:
        """H, a window for each position and group."""
        return involution_weights(self._map(x), self._generate, groups=self.groups, kernel_size=self.kernel_size)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return involution(self._map(x), self._generate, groups=self.groups, kernel_size=self.kernel_size)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        hidden, windows = self.reduce.out_features, self.span.out_features
        products = c * hidden + hidden * windows
        biases = windows + (hidden if self.reduce.use_bias else 0)
        return Cost(products + 2 * hidden + biases, h * w * products)

    def _generate(self, x):
        return self.span(jax.nn.relu(self.norm(self.reduce(x))))

    def _map(self, x):
        check_map(x, self.reduce.in_features)
        return promote(x, self.reduce)
