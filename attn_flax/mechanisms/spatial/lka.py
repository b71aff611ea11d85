"""Large kernel attention.

    A = W f_d(f(x))
    y = A ∘ x

with f a depthwise convolution of (2d-1)×(2d-1), f_d one of ⌈K/d⌉×⌈K/d⌉ whose taps lie d steps apart, W a 1×1
convolution, each with a bias, and zeros beyond the border. The two sparse windows together see about K×K positions, and
W mixes the channels of what they saw, so that every entry of the map is scaled by a context that is large, local and
adaptive in position and channel; nothing normalises it.

Differs from the paper: nothing. The network around it projects before and after and adds its input, 3c² + 79c
parameters in all; those layers are the network's.

Source: Guo, Lu, Liu, Cheng and Hu, "Visual Attention Network" (2022), arXiv:2202.09741; compared with the authors'
code.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import DepthwiseConv
from attn_flax.mechanisms.layout import check_map, promote


def lka_weights(x: Float[Array, "*b h w c"], near: Callable, far: Callable, mix: Callable) -> Float[Array, "*b h w c"]:
    """A = mix(far(near(x))), of any sign and size, one for each position and channel.

    Args:
        x: maps.
        near: f, any callable on maps.
        far: f_d, likewise.
        mix: W with its bias, the 1×1 convolution.
    """
    return mix(far(near(x)))


def lka(x: Float[Array, "*b h w c"], near: Callable, far: Callable, mix: Callable) -> Float[Array, "*b h w c"]:
    """y = A ∘ x, with the A of `lka_weights`.

    >>> lka(jnp.array([[[2.0, -4.0]]]), lambda x: x, lambda x: x, lambda x: x / 2)
    Array([[[2., 8.]]], dtype=float32)
    """
    return lka_weights(x, near, far, mix) * x


class LargeKernelAttention(nnx.Module):
    """Large kernel attention over maps of any size.

    Parameters: c² + ((2d-1)² + ⌈K/d⌉² + 3)·c, which is c² + 77c as it stands. Multiply-adds for each position:
    c² + ((2d-1)² + ⌈K/d⌉²)·c.

    Args:
        channels: c.
        kernel_size: K, the window that the two convolutions decompose; ⌈K/d⌉ must be odd.
        dilation: d.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, or an even ⌈K/d⌉, at construction; an input that is no map of these channels at the
            call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 21,
        dilation: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(dilation >= 1, f"dilation must be at least 1, got {dilation}.")
        near, far = 2 * dilation - 1, -(-kernel_size // dilation)
        check(
            kernel_size >= 1 and far % 2 == 1,
            f"kernel_size must be at least 1 and ⌈kernel_size/dilation⌉ odd, "
            f"got kernel_size={kernel_size}, dilation={dilation}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.near = DepthwiseConv(channels, (near, near), **layer)
        self.far = DepthwiseConv(channels, (far, far), dilation=(dilation, dilation), **layer)
        self.mix = nnx.Linear(channels, channels, **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """A, in the layout of x."""
        return lka_weights(self._map(x), self.near, self.far, self.mix)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return lka(self._map(x), self.near, self.far, self.mix)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        near, far = self.near.cost(h * w), self.far.cost(h * w)
        return Cost(
            near.parameters + far.parameters + c * c + c, near.multiply_adds + far.multiply_adds + h * w * c * c
        )

    def _map(self, x):
        check_map(x, self.mix.in_features)
        return promote(x, self.mix)
