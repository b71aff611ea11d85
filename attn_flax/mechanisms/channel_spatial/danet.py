"""Dual attention.

    p = conv(PAM(conv x))
    a = conv(CAM(conv x))
    y = W (p + a)

    PAM(u)_i = u_i + γ Σ_j softmax_j(q_iᵀ k_j) v_j                for positions i and j
    CAM(u)^i = u^i + β Σ_j softmax_j(max_j E_ij - E_ij) u^j,   E_ij = u^iᵀ u^j   for channels i and j

with 3×3 convolutions, each followed by a batch norm and relu: the first ones from c to c/4 channels, the second ones
among those; learned numbers γ and β, zero at first, and a 1×1 convolution W back to c channels. One half lets positions
gather from positions, the other channels from channels, and both are summed.

Differs from the paper: W gives c channels, so that the block fits anywhere; in the paper's network it gives the scores
of the classes, after dropout, beside which p and a have classifiers of their own. The maximum that E_ij is taken from
is the same for all j, so that softmax_j(-E_ij) is meant and computed.

Errors elsewhere: the code of the survey by Guo et al. takes the softmax of E instead of max E - E, the other way round;
External-Attention-pytorch's DAModule ignores its sizes, runs for 512 channels and maps of 7×7 only, and adds up weights
without γ and u.

Source: Fu, Liu, Tian, Li, Bao, Fang and Lu, "Dual Attention Network for Scene Segmentation" (2019), arXiv:1809.02983.
Confirmed with the authors' code.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import ConvNormRelu
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote, reduced
from attn_flax.mechanisms.spatial.sagan import SaganAttention


def danet_channel_weights(u: Float[Array, "*b h w c"]) -> Float[Array, "*b c c"]:
    """softmax_j(-E_ij), a row for each channel: the less two of them resemble each other, the larger."""
    x = flatten_positions(u, 2)
    products = jnp.einsum("...nc,...nd->...cd", x, x, preferred_element_type=ops.at_least_float32(x.dtype))
    return ops.softmax(-products).astype(u.dtype)


def danet_channel(u: Float[Array, "*b h w c"], *, beta: Float[Array, ""] | float) -> Float[Array, "*b h w c"]:
    """CAM(u), by the weights of `danet_channel_weights`.

    >>> danet_channel(jnp.array([[[1.0, -1.0]]]), beta=1.0).round(2)
    Array([[[ 0.24, -0.24]]], dtype=float32)
    """
    return u + beta * jnp.einsum("...cd,...hwd->...hwc", danet_channel_weights(u), u)


class DualAttention(nnx.Module):
    """Dual attention on maps of any size.

    Parameters, with m = ⌊c/r⌋ and d = ⌊m/r_q⌋: 18m·(c + m) + 8m + 2(m·d + d) + m² + m + 2 + m·c + c. Multiply-adds:
    n·m·(18c + 18m + c) + n·m·(2d + m) + n²·(d + m) + 2n·m².

    Args:
        channels: c.
        reduction: r, of the channels that are attended to.
        query_reduction: r_q, of the queries and keys of positions.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; at the call, an input that is no map of these channels, or for
            `attention_map` a map of more than 1 GiB per example.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        query_reduction: int = 8,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        m = reduced(channels, reduction)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.position_before = ConvNormRelu(channels, m, **layer)
        self.position = SaganAttention(m, reduction=query_reduction, **layer)
        self.position_after = ConvNormRelu(m, m, **layer)
        self.channel_before = ConvNormRelu(channels, m, **layer)
        self.beta = nnx.Param(jnp.zeros((), param_dtype))
        self.channel_after = ConvNormRelu(m, m, **layer)
        self.project = nnx.Linear(m, channels, **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """The weights of PAM, "position", (*b, n, n), and of CAM, "channel", (*b, m, m)."""
        x = self._map(x)
        return {
            "position": self.position.attention_map(self.position_before(x)),
            "channel": danet_channel_weights(self.channel_before(x)),
        }

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        p = self.position_after(self.position(self.position_before(x)))
        a = self.channel_after(danet_channel(self.channel_before(x), beta=self.beta[...].astype(x.dtype)))
        return self.project(p + a)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *positions, c = shape
        n, m = math.prod(positions), self.project.in_features
        convs = [self.position_before, self.position_after, self.channel_before, self.channel_after]
        costs = [conv.cost(n) for conv in convs] + [self.position.cost((*positions, m))]
        return Cost(
            sum(cost.parameters for cost in costs) + 1 + m * c + c,
            sum(cost.multiply_adds for cost in costs) + 2 * n * m * m + n * m * c,
        )

    def _map(self, x):
        check_map(x, self.project.out_features)
        return promote(x, self.project)
