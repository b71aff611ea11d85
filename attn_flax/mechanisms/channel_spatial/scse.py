"""Concurrent spatial and channel squeeze-and-excitation.

    s = sigmoid(W_2 relu(W_1 mean_hw(x) + b_1) + b_2)
    m = sigmoid(w x + b)
    y = max(x · s, x · m)

with W_1 from c to c/r features and W_2 back, and w a 1×1 convolution from c channels to one. A number for each channel,
from the means over the map, and one for each position, from its own channels alone, scale the map side by side; of the
two results every entry keeps the larger.

Differs from the paper: nothing. The maximum is the form of the journal and of the authors' code; `merge="sum"` adds the
two instead, as the conference version does, arXiv:1803.02579.

Source: Roy, Navab and Wachinger, "Recalibrating Fully Convolutional Networks with Spatial and Channel 'Squeeze &
Excitation' Blocks" (2018), arXiv:1808.08127; confirmed with the authors' code, which has the maximum only; the sum is
stated from memory of the paper.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.channel.se import se_weights
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, promote, reduced

Merge = Literal["max", "sum"]


def scse_spatial_weights(x: Float[Array, "*b h w c"], project: Callable) -> Float[Array, "*b h w"]:
    """m = sigmoid(project(x)), in (0, 1), one for each position.

    Args:
        x: maps.
        project: x -> w x + b, any callable from (*b, h, w, c) to (*b, h, w, 1).
    """
    return jax.nn.sigmoid(project(x)).squeeze(-1)


def scse(
    x: Float[Array, "*b h w c"], excite: Callable, project: Callable, *, merge: Callable = jnp.maximum
) -> Float[Array, "*b h w c"]:
    """y = merge(x · s, x · m), with the s of `se_weights` and the m of `scse_spatial_weights`.

    Args:
        x: maps.
        excite: z -> W_2 relu(W_1 z + b_1) + b_2, any callable on (*b, c).
        project: x -> w x + b, any callable from (*b, h, w, c) to (*b, h, w, 1).
        merge: the maximum, or the sum.

    >>> scse(jnp.array([[[2.0, -4.0]]]), lambda z: 0 * z, lambda x: 0 * x[..., :1] + 100)
    Array([[[ 2., -2.]]], dtype=float32)
    """
    return merge(x * se_weights(x, excite)[..., None, None, :], x * scse_spatial_weights(x, project)[..., None])


class ScSE(nnx.Module):
    """Concurrent spatial and channel squeeze-and-excitation of maps of any size.

    Parameters: 2c·hidden + hidden + 2c + 1 with hidden = ⌊c/r⌋, at least 1. Multiply-adds: 2c·hidden, and c for each
    position.

    Args:
        channels: c.
        reduction: r.
        merge: "max" (the journal and the authors' code) or "sum" (the conference).
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an unknown merge at construction; an input that is no map of these channels at
            the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        merge: Merge = "max",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        check(merge in get_args(Merge), f"merge must be 'max' or 'sum', got {merge!r}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.excite = Perceptron(channels, hidden, **layer)
        self.project = nnx.Linear(channels, 1, **layer)
        self.merge = jnp.maximum if merge == "max" else jnp.add

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """s by channel, "channel" (*b, c), and m by position, "spatial" (*b, h, w)."""
        x = self._map(x)
        return {"channel": se_weights(x, self.excite), "spatial": scse_spatial_weights(x, self.project)}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return scse(self._map(x), self.excite, self.project, merge=self.merge)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        layers = self.excite.cost(1)
        return Cost(layers.parameters + c + 1, layers.multiply_adds + h * w * c)

    def _map(self, x):
        check_map(x, self.project.in_features)
        return promote(x, self.project)
