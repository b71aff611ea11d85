"""Bottleneck attention.

    M_c = BN(W_2 relu(W_1 mean_hw(x)))
    M_s = BN(f_4 relu(f_3 relu(f_2 relu(f_1 x))))
    M = sigmoid(M_c + M_s)
    y = x + x · M

with biased layers: W_1 from c to c/r features and W_2 back, f_1 a 1×1 convolution from c to c/r channels, f_2 and f_3
3×3 convolutions between as many, their taps d steps apart, and f_4 a 1×1 convolution to one channel. One number for
each channel and one for each position, from dilated windows around it, are added before the sigmoid, so that every
entry of the map is amplified by a factor of its own between 1 and 2.

Differs from the paper: its equations name no activations; the relu after every hidden layer is of the authors' code.
That code also has a batch norm after each hidden layer in the place of those that end the branches (`norm_hidden`) and
sigmoid(M_c · M_s) (`merge="product"`).

Errors elsewhere: the authors' code multiplies M_c with M_s where the paper adds them, averages over squares of side h,
which only fits square maps, and cannot be constructed, for want of a name. A collection copies the product and the
squares; another pads its dilated convolutions by too little, so that a map shrinks by 6 and at 7×7 one position decides
for all.

Source: Park, Woo, Lee and Kweon, "BAM: Bottleneck Attention Module" (2018), arXiv:1807.06514; the sum and the place of
the batch norms confirmed with quotations of the paper's equations, the rest with the authors' code.
"""

from collections.abc import Callable
from typing import Literal, get_args

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

Merge = Literal["sum", "product"]


def bam_weights(
    x: Float[Array, "*b h w c"], by_channel: Callable, by_position: Callable, *, merge: Callable = jnp.add
) -> Float[Array, "*b h w c"]:
    """M = sigmoid(merge(M_c, M_s)), in (0, 1), one for each position and channel.

    Args:
        x: maps.
        by_channel: mean_hw(x) -> M_c, any callable on (*b, c).
        by_position: x -> M_s, any callable from (*b, h, w, c) to (*b, h, w, 1).
        merge: the sum, or the product of the authors' code.
    """
    return jax.nn.sigmoid(merge(by_channel(ops.average(x))[..., None, None, :], by_position(x)))


def bam(
    x: Float[Array, "*b h w c"], by_channel: Callable, by_position: Callable, *, merge: Callable = jnp.add
) -> Float[Array, "*b h w c"]:
    """y = x + x · M, with the M of `bam_weights`.

    >>> bam(jnp.array([[[2.0, -4.0]]]), lambda z: 0 * z, lambda x: 0 * x[..., :1])
    Array([[[ 3., -6.]]], dtype=float32)
    """
    return x + x * bam_weights(x, by_channel, by_position, merge=merge)


class Bam(nnx.Module):
    """Bottleneck attention of maps of any size.

    Parameters, with m = ⌊c/r⌋ and at least 1: 3c·m + 3c + 18m² + 5m + 3; with norm_hidden 3c·m + c + 18m² + 13m + 1.
    Multiply-adds: 2c·m, and c·m + 18m² + m for each position.

    Args:
        channels: c.
        reduction: r.
        dilation: d.
        norm_hidden: a batch norm after each hidden layer, as in the authors' code, and none at the branches' ends.
        merge: "sum" (the paper) or "product" (the authors' code).
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
        reduction: int = 16,
        dilation: int = 4,
        norm_hidden: bool = False,
        merge: Merge = "sum",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        check(dilation >= 1, f"dilation must be at least 1, got {dilation}.")
        check(merge in get_args(Merge), f"merge must be 'sum' or 'product', got {merge!r}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def norm(features, *, is_hidden):
            placed = is_hidden is norm_hidden
            norms = [BatchNorm(features, **layer)]
            return norms if placed else []

        def hidden_layer(linear):
            return [linear, *norm(hidden, is_hidden=True), jax.nn.relu]

        def dilated():
            return nnx.Conv(hidden, hidden, (3, 3), kernel_dilation=(dilation, dilation), **layer)

        self.channel = nnx.Sequential(
            *hidden_layer(nnx.Linear(channels, hidden, **layer)),
            nnx.Linear(hidden, channels, **layer),
            *norm(channels, is_hidden=False),
        )
        self.spatial = nnx.Sequential(
            *hidden_layer(nnx.Linear(channels, hidden, **layer)),
            *hidden_layer(dilated()),
            *hidden_layer(dilated()),
            nnx.Linear(hidden, 1, **layer),
            *norm(1, is_hidden=False),
        )
        self.merge = jnp.add if merge == "sum" else jnp.multiply
        self.norm_hidden = norm_hidden

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """M, in the layout of x."""
        return bam_weights(self._map(x), self.channel, self.spatial, merge=self.merge)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return bam(self._map(x), self.channel, self.spatial, merge=self.merge)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        m = self._reduce.out_features
        weights = 3 * c * m + 18 * m * m + m
        biases = 4 * m + c + 1
        norms = 2 * 4 * m if self.norm_hidden else 2 * (c + 1)
        return Cost(weights + biases + norms, 2 * c * m + h * w * (c * m + 18 * m * m + m))

    @property
    def _reduce(self):
        return self.channel.layers[0]

    def _map(self, x):
        check_map(x, self._reduce.in_features)
        return promote(x, self._reduce)
