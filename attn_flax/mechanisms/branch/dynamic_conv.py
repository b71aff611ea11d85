"""Dynamic convolution.

    π = softmax(V_2 relu(V_1 mean_hw(x)) / τ)
    y = (Σ_k π_k W_k) * x + Σ_k π_k b_k

with K kernels W_k and biases b_k, V_1 from c to c/4 features and V_2 to K. Every example mixes its own kernel, the
weights summing to one. A high temperature τ keeps them near 1/K, so that early in training all kernels learn.

Differs from the paper: nothing; it does not say which of V_1 and V_2 have biases, and here only V_2 has one. τ is a
variable of the Module and no parameter: the paper lowers it from 30 to 1 over the first ten epochs, by
`module.temperature[...] = τ` here. `hidden` sets the features in the middle, of which much copied code by kaijieshi7
has ⌊c/4⌋ + 1.

Errors elsewhere: Awesome-Vision-Attentions draws the kernels from [0, 1), all of them positive, and with groups
reshapes them to kernels of all input channels, as kaijieshi7 does; External-Attention-pytorch reshapes its output as if
it were as large as the input.

Source: Chen, Dai, Liu, Chen, Yuan and Liu, "Dynamic Convolution: Attention over Convolution Kernels" (2020),
arXiv:1912.03458; stated from the paper, compared with kaijieshi7's code, the authors' being unpublished.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.branch.condconv import check_experts, cost_of_experts, initialize_experts
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, hidden_width, promote
from attn_flax.ops.branches import conv_by_experts


def dynamic_conv_weights(
    x: Float[Array, "*b h w c"], excite: Callable, *, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "*b k"]:
    """π = softmax(excite(mean_hw(x)) / τ), one for each kernel, summing to one.

    Args:
        x: maps.
        excite: z -> V_2 relu(V_1 z), any callable from (*b, c) to (*b, k).
        temperature: τ.
    """
    scores = excite(ops.average(x))[..., None, :]
    return ops.softmax(scores / jnp.asarray(temperature, scores.dtype))[..., 0, :]


def dynamic_conv(
    x: Float[Array, "*b h w c"],
    experts: Float[Array, "k p q i o"],
    biases: Float[Array, "k o"],
    excite: Callable,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    groups: int = 1,
) -> Float[Array, "*b h w o"]:
    """y = (Σ_k π_k W_k) * x + Σ_k π_k b_k, with the π of `dynamic_conv_weights`, zeros around the map.

    Args:
        x: maps.
        experts: the kernels W_k, of i = c/groups inputs and o outputs.
        biases: the b_k.
        excite: z -> V_2 relu(V_1 z), any callable from (*b, c) to (*b, k).
        temperature: τ.
        groups: of the convolution.

    >>> experts = jnp.array([2.0, 6.0]).reshape(2, 1, 1, 1, 1)
    >>> dynamic_conv(jnp.ones((1, 2, 1)), experts, jnp.array([[0.0], [2.0]]), lambda z: jnp.zeros(2)).squeeze()
    Array([5., 5.], dtype=float32)
    """
    weights = dynamic_conv_weights(x, excite, temperature=temperature)
    return conv_by_experts(x, weights, experts, biases, groups=groups)


class DynamicConv(nnx.Module):
    """Dynamic convolution of maps of any size.

    Parameters: K·(k²·c²/groups + c) + c·hidden + hidden·K + K. Multiply-adds: k²·c²/groups at each position,
    (c + K)·hidden, and one for each number of the kernels and biases that is mixed.

    Args:
        channels: c.
        num_experts: K.
        kernel_size: k of the window, odd.
        groups: of the convolution; as many as channels for a depthwise one.
        reduction: by which V_1 narrows.
        hidden: the features after V_1, by default ⌊c/reduction⌋ and at least 1.
        temperature: τ at first.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window, groups that do not divide the channels or a temperature that is not
            positive, at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_experts: int = 4,
        kernel_size: int = 3,
        groups: int = 1,
        reduction: int = 4,
        hidden: int | None = None,
        temperature: float = 30.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_experts(channels, num_experts, kernel_size, groups)
        hidden = hidden_width(channels, reduction, hidden)
        check(temperature > 0, f"temperature must be positive, got {temperature}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        shape = (num_experts, kernel_size, kernel_size, channels // groups, channels)
        self.kernel = nnx.Param(initialize_experts(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros((num_experts, channels), param_dtype))
        self.reduce = nnx.Linear(channels, hidden, use_bias=False, **layer)
        self.expand = nnx.Linear(hidden, num_experts, **layer)
        self.temperature = nnx.Variable(jnp.asarray(temperature, jnp.float32))
        self.groups = groups

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k"]:
        """π, a weight for each kernel."""
        return dynamic_conv_weights(self._map(x), self._excite, temperature=self.temperature[...])

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        kernel, bias = (p[...].astype(x.dtype) for p in (self.kernel, self.bias))
        return dynamic_conv(x, kernel, bias, self._excite, temperature=self.temperature[...], groups=self.groups)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *_, c = shape
        num_experts, hidden = len(self.kernel), self.reduce.out_features
        layers = (c + num_experts) * hidden
        own = cost_of_experts(self.kernel.shape, True, shape)
        return Cost(own.parameters + layers + num_experts, own.multiply_adds + layers)

    def _excite(self, z):
        return self.expand(jax.nn.relu(self.reduce(z)))

    def _map(self, x):
        check_map(x, self.reduce.in_features)
        return promote(x, self.reduce)
