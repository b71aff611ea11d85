"""Global second-order pooling.

    z_i = relu(BN(W_r relu(x_i) + b_r))
    Σ = mean_i (z_i - μ)(z_i - μ)ᵀ, μ = mean_i z_i
    v_jk = Σ_l K_jlk BN(Σ)_jl + b_jk,  k = 1 … 4
    s = sigmoid(W v + b)
    y = x · s

over the positions i, with W_r from c to d channels, the second BN a batch norm of each of the d rows of Σ, four numbers
v for each row by a convolution of its own, as long as the row, and W from these 4d features to c. Every channel is
scaled by a number in (0, 1) that depends on how d mixtures of the channels vary together over the map.

Differs from the paper: nothing; this is the block over channels, the authors' default, and not the one over positions
that they combine it with in some networks. `stride` takes z at every second position, as they do in their first stage.

Errors elsewhere: the authors' code compares the names of its modes by identity, which holds only while equal strings
happen to be one object.

Source: Gao, Xie, Wang and Li, "Global Second-order Pooling Convolutional Networks" (2019), arXiv:1811.12006; confirmed
with the authors' code.
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
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote

RATIO = 4


def gsop_weights(
    x: Float[Array, "*b h w c"], reduce: Callable, normalize: Callable, convolve_rows: Callable, excite: Callable
) -> Float[Array, "*b c"]:
    """s = sigmoid(excite(v)), in (0, 1), one for each channel.

    Args:
        x: maps.
        reduce: relu(x) -> BN(W_r relu(x) + b_r), any callable from (*b, h, w, c) to (*b, p, q, d).
        normalize: the batch norm of the rows, any callable on (*b, d, d).
        convolve_rows: BN(Σ) -> v, any callable from (*b, d, d) to (*b, d, k).
        excite: v -> W v + b, any callable from (*b, d·k) to (*b, c).
    """
    z = jax.nn.relu(reduce(jax.nn.relu(x)))
    v = convolve_rows(normalize(ops.covariance(z).astype(z.dtype)))
    return jax.nn.sigmoid(excite(v.reshape(*v.shape[:-2], -1)))


def gsop(
    x: Float[Array, "*b h w c"], reduce: Callable, normalize: Callable, convolve_rows: Callable, excite: Callable
) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `gsop_weights`.

    >>> same = lambda a: a
    >>> gsop(jnp.array([[[2.0, -4.0]]]), same, same, lambda rows: rows[..., :1], same)
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return x * gsop_weights(x, reduce, normalize, convolve_rows, excite)[..., None, None, :]


class Gsop(nnx.Module):
    """Global second-order pooling of maps of any size.

    Parameters: 5c·d + 4d² + 9d + c. Multiply-adds: c·d + d² for each position that the stride leaves, then 4d² + 4d·c.

    Args:
        channels: c.
        hidden: d, the channels whose covariance is taken.
        stride: the steps between the positions it is taken over.
        dtype: the type to compute in, the covariance in float32 or wider; by default that of input and parameters
            together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 128,
        stride: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(hidden >= 1, f"hidden must be at least 1, got {hidden}.")
        check(stride >= 1, f"stride must be at least 1, got {stride}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        of_row = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=2, batch_axis=0
        )
        self.reduce = nnx.Linear(channels, hidden, **layer)
        self.norm = BatchNorm(hidden, **layer)
        self.row_norm = BatchNorm(hidden, axis=-2, **layer)
        self.convolve_rows = nnx.Einsum(
            "...jl,jlk->...jk", (hidden, hidden, RATIO), (hidden, RATIO), kernel_init=of_row, **layer
        )
        self.excite = nnx.Linear(RATIO * hidden, channels, **layer)
        self.stride = stride

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel."""
        return gsop_weights(self._map(x), self._reduce, self.row_norm, self.convolve_rows, self.excite)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return gsop(self._map(x), self._reduce, self.row_norm, self.convolve_rows, self.excite)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        d = self.reduce.out_features
        positions = -(-h // self.stride) * -(-w // self.stride)
        parameters = 5 * c * d + 4 * d * d + 9 * d + c
        return Cost(parameters, positions * (c * d + d * d) + RATIO * (d * d + d * c))

    def _reduce(self, x):
        return self.norm(self.reduce(x[..., :: self.stride, :: self.stride, :]))

    def _map(self, x):
        check_map(x, self.reduce.in_features)
        return promote(x, self.reduce)
