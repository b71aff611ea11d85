"""The context encoding module.

    z_i = relu(BN(W x_i))
    α_ik = softmax_k(s_k ‖z_i - d_k‖²)
    e_k = Σ_i α_ik (z_i - d_k)
    e = mean_k relu(BN(e_k))
    γ = sigmoid(W_γ e + b_γ)
    y = relu(x + x · γ)

over the positions i and K learned codewords d_k with smoothing factors s_k, the second BN a batch norm of each code. W,
without a bias, and W_γ keep the c channels. Every position is shared out among the codewords near to it, what it
differs from them by is summed over the map, and from these differences a number in (0, 1) is made for each channel.

Differs from the paper: it sums over the codes, where the authors' code takes the mean as here, the same with K times
the W_γ. The batch norm and relu around W and the relu around x + x · γ are of the authors' code; `residual=False` gives
the x · γ of the paper. The linear layer that predicts from e which classes are present belongs to the loss and is not
here.

Errors elsewhere: a collection gives W a bias and neither batch norm nor relu, and has x · γ alone.

Source: Zhang, Dana, Shi, Zhang, Wang, Tyagi and Agrawal, "Context Encoding for Semantic Segmentation" (2018),
arXiv:1803.08904; confirmed with the authors' code, the paper's sum and product with notes on the paper.
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
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote

HIGHEST = jax.lax.Precision.HIGHEST


def enc_assignment(
    z: Float[Array, "*b n c"], codewords: Float[Array, "k c"], smoothing: Float[Array, " k"]
) -> Float[Array, "*b n k"]:
    """α_ik = softmax_k(s_k ‖z_i - d_k‖²), every row a position shared out among the codewords.

    ‖z_i - d_k‖² is ‖z_i‖² - 2 z_iᵀd_k + ‖d_k‖², in float32 or wider, so that no array of n·K·c is made.

    Args:
        z: features.
        codewords: d_k.
        smoothing: s_k, negative if the nearest codeword is to weigh most.
    """
    wide = ops.at_least_float32(z.dtype)
    z_wide, d = z.astype(wide), codewords.astype(wide)
    products = jnp.einsum("...nc,kc->...nk", z_wide, d, precision=HIGHEST)
    squares = jnp.square(z_wide).sum(-1, keepdims=True) - 2 * products + jnp.square(d).sum(-1)
    return ops.softmax(smoothing.astype(wide) * squares).astype(z.dtype)


def enc_codes(
    z: Float[Array, "*b n c"], codewords: Float[Array, "k c"], smoothing: Float[Array, " k"]
) -> Float[Array, "*b k c"]:
    """e_k = Σ_i α_ik (z_i - d_k), with the α of `enc_assignment`.

    >>> enc_codes(jnp.array([[3.0], [5.0]]), jnp.array([[1.0], [4.0]]), jnp.zeros(2))
    Array([[3.],
           [0.]], dtype=float32)
    """
    wide = ops.at_least_float32(z.dtype)
    weights = enc_assignment(z, codewords, smoothing).astype(wide)
    sums = jnp.einsum("...nk,...nc->...kc", weights, z.astype(wide), precision=HIGHEST)
    return (sums - weights.sum(-2)[..., None] * codewords.astype(wide)).astype(z.dtype)


def enc_weights(
    x: Float[Array, "*b h w c"], project: Callable, encode: Callable, excite: Callable
) -> Float[Array, "*b c"]:
    """γ = sigmoid(excite(e)), in (0, 1), one for each channel.

    Args:
        x: maps.
        project: x -> z, any callable on (*b, h, w, c).
        encode: z -> relu(BN(e_k)), any callable from (*b, n, c) to (*b, k, c).
        excite: e -> W_γ e + b_γ, any callable on (*b, c).
    """
    codes = encode(flatten_positions(project(x), 2))
    return jax.nn.sigmoid(excite(codes.mean(-2)))


def enc(
    x: Float[Array, "*b h w c"], project: Callable, encode: Callable, excite: Callable, *, residual: bool = True
) -> Float[Array, "*b h w c"]:
    """y = relu(x + x · γ), without `residual` x · γ, with the γ of `enc_weights`.

    >>> enc(jnp.array([[[2.0, -4.0]]]), lambda x: x, lambda z: z, lambda e: 0 * e)
    Array([[[3., 0.]]], dtype=float32)
    """
    scaled = x * enc_weights(x, project, encode, excite)[..., None, None, :]
    return jax.nn.relu(x + scaled) if residual else scaled


class Enc(nnx.Module):
    """The context encoding module for maps of any size.

    Parameters: 2c² + 3c + K·c + 3K. Multiply-adds: c² + 2K·c for each position, and c².

    Args:
        channels: c.
        num_codes: K.
        residual: relu(x + x · γ) (the authors' code) and not x · γ (the paper).
        dtype: the type to compute in, distances and codes in float32 or wider; by default that of input and parameters
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
        num_codes: int = 32,
        residual: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(num_codes >= 1, f"num_codes must be at least 1, got {num_codes}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        bound = (num_codes * channels) ** -0.5
        self.project = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.norm = BatchNorm(channels, **layer)
        self.codewords = nnx.Param(jax.random.uniform(rngs.params(), (num_codes, channels), param_dtype, -bound, bound))
        self.smoothing = nnx.Param(jax.random.uniform(rngs.params(), (num_codes,), param_dtype, -1, 0))
        self.code_norm = BatchNorm(num_codes, axis=-2, **layer)
        self.excite = nnx.Linear(channels, channels, **layer)
        self.residual = residual

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """γ by channel, "channel" (*b, c), and α by position, "assignment" (*b, h, w, K)."""
        x = self._map(x)
        z = self._project(x)
        assignment = enc_assignment(flatten_positions(z, 2), self.codewords[...], self.smoothing[...])
        return {
            "channel": enc_weights(x, self._project, self._encode, self.excite),
            "assignment": assignment.reshape(*x.shape[:-1], -1),
        }

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return enc(self._map(x), self._project, self._encode, self.excite, residual=self.residual)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        k = len(self.smoothing)
        return Cost(2 * c * c + 3 * c + k * c + 3 * k, h * w * (c * c + 2 * k * c) + c * c)

    def _project(self, x):
        return jax.nn.relu(self.norm(self.project(x)))

    def _encode(self, z):
        return jax.nn.relu(self.code_norm(enc_codes(z, self.codewords[...], self.smoothing[...])))

    def _map(self, x):
        check_map(x, self.project.in_features)
        return promote(x, self.project)
