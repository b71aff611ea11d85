"""Expectation-maximisation attention.

    u = W_1 x + b_1
    Z = softmax_k(u μᵀ),   μ_k = Σ_n Z_nk u_n / Σ_n Z_nk,   μ_k ← μ_k / ‖μ_k‖      T times
    y = relu(x + BN(W_2 relu(Z μ)))

with 1×1 convolutions W_1 and W_2 from c to c channels, and k bases μ of c features which start from the same values
for every picture. The positions are clustered by T steps of expectation-maximisation and each is rebuilt from the k
centres, so that no two positions are compared and the cost is linear in their number.

Differs from the paper: nothing in its equations. In training the initial bases move towards the mean of the batch's
final ones, μ ← m·μ + (1 - m)·mean(μ), here in the Module, as batch norm's statistics do; in the authors' code the
training loop does it. Their code takes no derivative of the steps, Z and μ being constants, so that W_1 never learns;
`differentiable` takes it.

Errors elsewhere: the authors' module does not move its bases by itself, so it is wrong in another training loop; mmseg
moves them inside, counts the momentum from the other end (0.1 on the new value) and normalises the average.

Source: Li, Zhong, Wu, Yang, Lin and Liu, "Expectation-Maximization Attention Networks for Semantic Segmentation"
(2019), arXiv:1907.13426; compared with the authors' code.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote

EPSILON = 1e-6
SMALLEST_SQUARE = 1e-24


def expectation_maximization(
    u: Float[Array, "*b n c"], bases: Float[Array, "k c"], *, steps: int
) -> tuple[Float[Array, "*b n k"], Float[Array, "*b k c"]]:
    """Z and μ after T steps, in float32 or wider; the sums and norms in the denominators have 1e-6 added.

    Args:
        u: the features of the positions.
        bases: the μ to start from.
        steps: T, at least 1.
    """
    wide = ops.at_least_float32(u.dtype)
    u, bases = u.astype(wide), bases.astype(wide)
    for _ in range(steps):
        weights = ops.softmax(jnp.einsum("...nc,...kc->...nk", u, bases))
        shares = weights / (EPSILON + weights.sum(-2, keepdims=True))
        bases = unit_bases(jnp.einsum("...nk,...nc->...kc", shares, u))
    return weights, bases


def emanet_attention_weights(
    u: Float[Array, "*b n c"], bases: Float[Array, "k c"], *, steps: int = 3
) -> Float[Array, "*b n k"]:
    """Z of the last step: the share that each basis has in a position; rows sum to one."""
    weights, _ = expectation_maximization(u, bases, steps=steps)
    return weights.astype(u.dtype)


def emanet_attention(
    u: Float[Array, "*b n c"], bases: Float[Array, "k c"], *, steps: int = 3
) -> Float[Array, "*b n c"]:
    """Z μ, every position rebuilt from the bases.

    >>> emanet_attention(jnp.array([[3.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0]])).round(3)
    Array([[1., 0.],
           [1., 0.]], dtype=float32)
    """
    return ops.attend(*expectation_maximization(u, bases, steps=steps)).astype(u.dtype)


def unit_bases(bases: Float[Array, "*b k c"]) -> Float[Array, "*b k c"]:
    """μ_k / (1e-6 + ‖μ_k‖); zeros stay zeros, and their derivative is finite."""
    squares = jnp.square(bases).sum(-1, keepdims=True)
    return bases / (EPSILON + jnp.sqrt(jnp.maximum(squares, SMALLEST_SQUARE)))


class ExpectationMaximizationAttention(nnx.Module):
    """Expectation-maximisation attention of maps of any size.

    Parameters: 2c² + 3c, and k·c running numbers, the bases. Multiply-adds: 2c² + (2T + 1)·c·k for each position.

    Args:
        channels: c.
        num_bases: k.
        steps: T.
        momentum: m, of the running bases.
        differentiable: whether the derivative takes the steps into account.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters and bases.

    Raises:
        InputError: a size below 1 or a momentum outside [0, 1] at construction; an input that is no map of these
            channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_bases: int = 64,
        steps: int = 3,
        momentum: float = 0.9,
        differentiable: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("channels", channels), ("num_bases", num_bases), ("steps", steps)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(0 <= momentum <= 1, f"momentum must be in [0, 1], got {momentum}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embed = nnx.Linear(channels, channels, **layer)
        self.project = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.norm = BatchNorm(channels, **layer)
        self.bases = nnx.BatchStat(unit_bases(jax.random.normal(rngs.params(), (num_bases, channels), param_dtype)))
        self.steps = steps
        self.momentum = momentum
        self.differentiable = differentiable
        self.use_running_average = False

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n k"]:
        """Z, a row for each position in row-major order and a column for each basis."""
        return emanet_attention_weights(self._embedded(self._map(x)), self.bases[...], steps=self.steps)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x; in training the running bases are moved, too."""
        x = self._map(x)
        u = self._embedded(x)
        u = u if self.differentiable else jax.lax.stop_gradient(u)
        weights, bases = expectation_maximization(u, self.bases[...], steps=self.steps)
        if not self.use_running_average:
            self._move_bases(bases)
        rebuilt = ops.attend(weights, bases).astype(x.dtype).reshape(x.shape)
        return jax.nn.relu(x + self.norm(self.project(jax.nn.relu(rebuilt))))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        num_bases, _ = self.bases.shape
        return Cost(2 * c * c + 3 * c, h * w * (2 * c * c + (2 * self.steps + 1) * c * num_bases))

    def _embedded(self, x):
        return flatten_positions(self.embed(x), 2)

    def _move_bases(self, bases):
        mean = jax.lax.stop_gradient(bases.mean(range(bases.ndim - 2)))
        running = self.bases[...]
        self.bases[...] = (self.momentum * running + (1 - self.momentum) * mean).astype(running.dtype)

    def _map(self, x):
        check_map(x, self.embed.in_features)
        return promote(x, self.embed)
