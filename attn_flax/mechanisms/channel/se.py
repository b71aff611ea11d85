"""Squeeze-and-excitation.

    z = mean_hw(x)
    s = sigmoid(W_2 relu(W_1 z))
    y = x · s

with W_1 from c to c/r features and W_2 back. Every channel is scaled by a number in (0, 1) that depends on the means of
all channels over the whole map; what to emphasise is decided once for all positions.

Differs from the paper: nothing. The paper's counts are those of layers without biases; `use_bias` adds them, as many
implementations do, and `hidden` sets the width, which timm rounds to a multiple of 8.

Errors elsewhere: timm rounds c/r to a multiple of 8 and has biases, so its counts are not the paper's.

Source: Hu, Shen, Albanie, Sun and Wu, "Squeeze-and-Excitation Networks" (2018), arXiv:1709.01507.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def se_weights(x: Float[Array, "*b h w c"], excite: Callable) -> Float[Array, "*b c"]:
    """s = sigmoid(excite(mean_hw(x))), in (0, 1), one for each channel.

    Args:
        x: maps.
        excite: z -> W_2 relu(W_1 z), any callable on (*b, c).
    """
    return jax.nn.sigmoid(excite(ops.average(x)))


def se(x: Float[Array, "*b h w c"], excite: Callable) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `se_weights`.

    >>> se(jnp.array([[[2.0, -4.0]]]), lambda z: 0 * z)
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return x * se_weights(x, excite)[..., None, None, :]


class SqueezeExcite(nnx.Module):
    """Squeeze-and-excitation of maps of any size.

    Parameters: 2c·hidden, and hidden + c with biases. Multiply-adds: 2c·hidden.

    Args:
        channels: c.
        reduction: r.
        hidden: the features between the layers, by default ⌊c/r⌋ and at least 1.
        use_bias: whether the layers have biases.
        activation: between the layers.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        use_bias: bool = False,
        activation: Callable[[Array], Array] = jax.nn.relu,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        layer = {"use_bias": use_bias, "activation": activation, "dtype": dtype, "param_dtype": param_dtype}
        self.excite = Perceptron(channels, hidden, **layer, rngs=rngs)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel."""
        return se_weights(self._map(x), self.excite)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return se(self._map(x), self.excite)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return self.excite.cost(1)

    def _map(self, x):
        check_map(x, self.excite.reduce.in_features)
        return promote(x, self.excite.reduce)
