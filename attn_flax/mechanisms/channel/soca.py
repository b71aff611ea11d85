"""Second-order channel attention.

    Σ = mean_i (x_i - μ)(x_i - μ)ᵀ, μ = mean_i x_i
    z = mean of the rows of √Σ
    s = sigmoid(W_2 relu(W_1 z + b_1) + b_2)
    y = x · s

over the h·w positions i, with W_1 from c to c/r features and W_2 back. Every channel is scaled by a number in (0, 1)
that depends on how the channels vary together over the map, not on their means. The square root is that of N steps of
Newton and Schulz, each of three products of matrices, fewer in the first and the last,

    Y_0 = Σ / tr Σ,  Z_0 = I,  T_k = (3I - Z_k Y_k) / 2,  Y_k+1 = Y_k T_k,  Z_k+1 = T_k Z_k,  √Σ = √(tr Σ) · Y_N

Differs from the paper: the authors' code takes the covariance of the middle 1000×1000 of larger maps, here it is that
of the whole map. Where no channel varies, as on a map of 1×1, √Σ is zero.

Errors elsewhere: a collection has T_k = (3I - Z_k) Y_k / 2, which is wrong from the second step on. In the authors'
code the gradient of a single step uses a name that does not exist, and a map of exactly 1000 rows or columns is taken
for one that is larger in both.

Source: Dai, Cai, Zhang, Xia and Zhang, "Second-order Attention Network for Single Image Super-Resolution" (2019), CVPR;
confirmed with the authors' code.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, promote, reduced

HIGHEST = jax.lax.Precision.HIGHEST


def matrix_sqrt(a: Float[Array, "*b c c"], *, iterations: int) -> Float[Array, "*b c c"]:
    """√a of positive semidefinite matrices by N iterations of Newton and Schulz on a / tr a; zero for zero.

    >>> matrix_sqrt(jnp.array([[4.0, 0.0], [0.0, 9.0]]), iterations=9).round(4)
    Array([[2., 0.],
           [0., 3.]], dtype=float32)
    """
    trace = jnp.trace(a, axis1=-2, axis2=-1)[..., None, None]
    trace = jnp.where(trace > jnp.finfo(a.dtype).tiny, trace, 1)
    product = partial(jnp.matmul, precision=HIGHEST)
    y = a / trace
    z = _step(y)
    y = product(y, z)
    for _ in range(iterations - 2):
        t = _step(product(z, y))
        y, z = product(y, t), product(t, z)
    return jnp.sqrt(trace) * product(y, _step(product(z, y)))


def _step(zy):
    return (3 * jnp.eye(zy.shape[-1], dtype=zy.dtype) - zy) / 2


def soca_weights(x: Float[Array, "*b h w c"], excite: Callable, *, iterations: int = 5) -> Float[Array, "*b c"]:
    """s = sigmoid(excite(mean of the rows of √Σ)), in (0, 1), one for each channel.

    Args:
        x: maps.
        excite: z -> W_2 relu(W_1 z + b_1) + b_2, any callable on (*b, c).
        iterations: N, at least 2.
    """
    root = matrix_sqrt(ops.covariance(x), iterations=iterations)
    return jax.nn.sigmoid(excite(root.mean(-2).astype(x.dtype)))


def soca(x: Float[Array, "*b h w c"], excite: Callable, *, iterations: int = 5) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `soca_weights`.

    >>> soca(jnp.array([[[2.0, -4.0]]]), lambda z: 0 * z)
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return x * soca_weights(x, excite, iterations=iterations)[..., None, None, :]


class Soca(nnx.Module):
    """Second-order channel attention of maps of any size.

    Parameters: 2c·hidden + hidden + c with hidden = ⌊c/r⌋, at least 1. Multiply-adds: c² for each position, then
    3(N - 1)·c³ + 2c·hidden.

    Args:
        channels: c.
        reduction: r.
        iterations: N, the steps of the square root.
        dtype: the type to compute in, covariance and root in float32 or wider; by default that of input and parameters
            together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or fewer than 2 iterations at construction; an input that is no map of these channels
            at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        iterations: int = 5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        check(iterations >= 2, f"iterations must be at least 2, got {iterations}.")
        self.excite = Perceptron(channels, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.iterations = iterations

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel."""
        return soca_weights(self._map(x), self.excite, iterations=self.iterations)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return soca(self._map(x), self.excite, iterations=self.iterations)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        layers = self.excite.cost(1)
        root = 3 * (self.iterations - 1) * c**3
        return Cost(layers.parameters, h * w * c * c + root + layers.multiply_adds)

    def _map(self, x):
        check_map(x, self.excite.reduce.in_features)
        return promote(x, self.excite.reduce)
