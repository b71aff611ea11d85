"""Effective squeeze-and-excitation.

    z = mean_hw(x)
    s = σ(W z + b),   σ(u) = min(max(u + 3, 0), 6) / 6
    y = x · s

with W from c to c features. One layer that keeps the width stands for the two of squeeze-and-excitation, whose
bottleneck loses information on the channels. σ is the hard sigmoid, in [0, 1], so that a channel can be closed, or left
as it is, exactly.

Differs from the paper: nothing in the layer; σ is the hard sigmoid of the authors' code, `use_hard_sigmoid=False`
takes the smooth one, as some networks with this block do.

Source: Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation" (2020), arXiv:1911.06667; compared with
the authors' code, youngwanLEE/vovnet-detectron2.
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


def ese_weights(
    x: Float[Array, "*b h w c"], excite: Callable, *, gate: Callable = jax.nn.hard_sigmoid
) -> Float[Array, "*b c"]:
    """s = σ(excite(mean_hw(x))), in [0, 1], one for each channel.

    Args:
        x: maps.
        excite: z -> W z + b, any callable on (*b, c).
        gate: σ.
    """
    return gate(excite(ops.average(x)))


def ese(
    x: Float[Array, "*b h w c"], excite: Callable, *, gate: Callable = jax.nn.hard_sigmoid
) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `ese_weights`.

    >>> ese(jnp.array([[[2.0, -4.0]]]), lambda z: 3 * z)  # 3·2 and 3·(-4) lie beyond the two ends of σ
    Array([[[ 2., -0.]]], dtype=float32)
    """
    return x * ese_weights(x, excite, gate=gate)[..., None, None, :]


class EffectiveSqueezeExcite(nnx.Module):
    """Effective squeeze-and-excitation of maps of any size.

    Parameters: c² + c. Multiply-adds: c².

    Args:
        channels: c.
        use_hard_sigmoid: whether σ is the hard sigmoid, else the sigmoid.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: channels below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        use_hard_sigmoid: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        self.excite = nnx.Linear(channels, channels, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.gate = jax.nn.hard_sigmoid if use_hard_sigmoid else jax.nn.sigmoid

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel."""
        return ese_weights(self._map(x), self.excite, gate=self.gate)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return ese(self._map(x), self.excite, gate=self.gate)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        c = self.excite.in_features
        return Cost(c * c + c, c * c)

    def _map(self, x):
        check_map(x, self.excite.in_features)
        return promote(x, self.excite)
