"""Residual channel attention block.

    u = W_2 ∗ relu(W_1 ∗ x + b_1) + b_2
    s = sigmoid(V_2 relu(V_1 mean_hw(u) + a_1) + a_2)
    y = x + u · s

with 3×3 convolutions W_1 and W_2 from c to c channels and 1×1 ones V_1, V_2 over c/r features. A residual block
without batch norm whose branch is recalibrated by squeeze-and-excitation; the network that it was made for, for
super-resolution, has twenty of them in a row.

Differs from the paper: nothing.

Errors elsewhere: the authors' code takes a factor for the branch, res_scale, and leaves it out of its equation.

Source: Zhang, Li, Li, Wang, Zhong and Fu, "Image Super-Resolution Using Very Deep Residual Channel Attention Networks"
(2018), arXiv:1807.02758; compared with the authors' code, yulunzhang/RCAN.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.mechanisms.channel.se import se, se_weights
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def rca_weights(x: Float[Array, "*b h w c"], transform: Callable, excite: Callable) -> Float[Array, "*b c"]:
    """s, in (0, 1), one for each channel of the branch u = transform(x).

    Args:
        x: maps.
        transform: x -> u, the two convolutions, any callable that keeps the shape.
        excite: z -> V_2 relu(V_1 z + a_1) + a_2, any callable on (*b, c).
    """
    return se_weights(transform(x), excite)


def rca(x: Float[Array, "*b h w c"], transform: Callable, excite: Callable) -> Float[Array, "*b h w c"]:
    """y = x + u · s, with u = transform(x) and the s of `rca_weights`.

    >>> rca(jnp.array([[[2.0, -4.0]]]), lambda x: 2 * x, lambda z: 0 * z)
    Array([[[ 4., -8.]]], dtype=float32)
    """
    return x + se(transform(x), excite)


class ResidualChannelAttention(nnx.Module):
    """The residual channel attention block on maps of any size.

    Parameters: 18c² + 2c for the convolutions, 2c·hidden + hidden + c for the gate. Multiply-adds: 18c² for each
    position and 2c·hidden.

    Args:
        channels: c.
        reduction: r.
        hidden: the features between the layers of the gate, by default ⌊c/r⌋ and at least 1.
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
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.first = nnx.Conv(channels, channels, (3, 3), **layer)
        self.second = nnx.Conv(channels, channels, (3, 3), **layer)
        self.excite = Perceptron(channels, hidden, **layer)

    def transform(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """u, the branch before it is recalibrated."""
        return self.second(jax.nn.relu(self.first(x)))

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel of the branch."""
        return rca_weights(self._map(x), self.transform, self.excite)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return rca(self._map(x), self.transform, self.excite)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *positions, c = shape
        gate = self.excite.cost(1)
        return Cost(18 * c * c + 2 * c + gate.parameters, math.prod(positions) * 18 * c * c + gate.multiply_adds)

    def _map(self, x):
        check_map(x, self.excite.reduce.in_features)
        return promote(x, self.excite.reduce)
