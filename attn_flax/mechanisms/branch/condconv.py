"""Conditionally parameterised convolution.

    α = sigmoid(R mean_hw(x))
    y = (α_1 W_1 + ... + α_K W_K) * x

with K kernels W_k, the experts, and R from c to K. Every example mixes its own kernel from the experts by what it shows
as a whole, and is convolved once with it, so that experts cost parameters and hardly any time.

Differs from the paper: nothing. The paper routes by a matrix without bias; `routing_bias` adds one, as its authors'
code and timm have, and `use_bias` mixes biases along with the kernels. timm has 4 experts by default, and leaves the
routing to the block around.

Errors elsewhere: External-Attention-pytorch initialises the experts at random twice over and reshapes its output as if
the stride were 1.

Source: Yang, Bender, Le and Ngiam, "CondConv: Conditionally Parameterized Convolutions for Efficient Inference" (2019),
arXiv:1904.04971; compared with the code of its authors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote
from attn_flax.ops.branches import conv_by_experts


def condconv_weights(x: Float[Array, "*b h w c"], route: Callable) -> Float[Array, "*b k"]:
    """α = sigmoid(route(mean_hw(x))), in (0, 1), one for each expert.

    Args:
        x: maps.
        route: z -> R z, any callable from (*b, c) to (*b, k).
    """
    return jax.nn.sigmoid(route(ops.average(x)))


def condconv(
    x: Float[Array, "*b h w c"],
    experts: Float[Array, "k p q i o"],
    route: Callable,
    *,
    biases: Float[Array, "k o"] | None = None,
    groups: int = 1,
) -> Float[Array, "*b h w o"]:
    """y = (Σ_k α_k W_k) * x + Σ_k α_k b_k, with the α of `condconv_weights`, zeros around the map.

    Args:
        x: maps.
        experts: the kernels W_k, of i = c/groups inputs and o outputs.
        route: z -> R z, any callable from (*b, c) to (*b, k).
        biases: the b_k; none by default.
        groups: of the convolution.

    >>> experts = jnp.array([2.0, 6.0]).reshape(2, 1, 1, 1, 1)
    >>> condconv(jnp.ones((1, 2, 1)), experts, lambda z: jnp.zeros(2)).squeeze()
    Array([4., 4.], dtype=float32)
    """
    return conv_by_experts(x, condconv_weights(x, route), experts, biases, groups=groups)


class CondConv(nnx.Module):
    """Conditionally parameterised convolution of maps of any size.

    Parameters: K·k²·c²/groups + c·K, with routing_bias K and with use_bias K·c more. Multiply-adds: k²·c²/groups at
    each position, c·K for the routing, and one for each number of the experts that is mixed.

    Args:
        channels: c.
        num_experts: K.
        kernel_size: k of the window, odd.
        groups: of the convolution; as many as channels for a depthwise one.
        use_bias: whether the experts have biases.
        routing_bias: whether R comes with a bias.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window or groups that do not divide the channels at construction; an input
            that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_experts: int = 8,
        kernel_size: int = 3,
        groups: int = 1,
        use_bias: bool = False,
        routing_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_experts(channels, num_experts, kernel_size, groups)
        shape = (num_experts, kernel_size, kernel_size, channels // groups, channels)
        self.kernel = nnx.Param(initialize_experts(rngs.params(), shape, param_dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros((num_experts, channels), param_dtype)) if use_bias else None)
        self.route = nnx.Linear(
            channels, num_experts, use_bias=routing_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.groups = groups

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k"]:
        """α, a weight for each expert."""
        return condconv_weights(self._map(x), self.route)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        biases = None if self.bias is None else self.bias[...].astype(x.dtype)
        return condconv(x, self.kernel[...].astype(x.dtype), self.route, biases=biases, groups=self.groups)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *_, c = shape
        experts = len(self.kernel)
        routing = c * experts
        own = cost_of_experts(self.kernel.shape, self.bias is not None, shape)
        return Cost(own.parameters + routing + self.route.use_bias * experts, own.multiply_adds + routing)

    def _map(self, x):
        check_map(x, self.route.in_features)
        return promote(x, self.route)


initialize_experts = nnx.initializers.lecun_normal(batch_axis=0)


def check_experts(channels: int, num_experts: int, kernel_size: int, groups: int) -> None:
    """Raises InputError unless these are the sizes of experts."""
    check(channels >= 1, f"channels must be at least 1, got {channels}.")
    check(num_experts >= 1, f"num_experts must be at least 1, got {num_experts}.")
    check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd, got {kernel_size}.")
    check(
        groups >= 1 and channels % groups == 0,
        f"groups must be at least 1 and divide the {channels} channels, got {groups}.",
    )


def cost_of_experts(experts: tuple[int, ...], with_biases: bool, shape: tuple[int, ...]) -> Cost:
    """Of mixing experts of this shape (K, k, k, i, o) and of convolving an example (h, w, c) with what they give."""
    num_experts, p, q, i, o = experts
    h, w, _ = shape
    kernel = p * q * i * o
    mixed = num_experts * (kernel + (o if with_biases else 0))
    return Cost(mixed, mixed + h * w * kernel)
