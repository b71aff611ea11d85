"""Multi-spectral channel attention.

    z_c = Σ_ij x̄_ijc cos(π u (i + ½) / p) cos(π v (j + ½) / q) · n_u n_v
    s = sigmoid(W_2 relu(W_1 z))
    y = x · s

where x̄ is x averaged over a grid of p × q bins, n_u is √(1/p) for u = 0 and √(2/p) otherwise, n_v likewise with q, and
(u, v) one of K frequencies of the discrete cosine transform: the first c/K channels take the first, the next c/K the
second, and so on. W_1 goes from c to c/r features and W_2 back. Squeeze-and-excitation knows the means of the channels,
that is their lowest frequency alone; here some channels are summed up by finer patterns.

Differs from the paper: nothing. Frequencies are stated on a 7 × 7 grid, and on a larger one multiplied by ⌊p/7⌋ and
⌊q/7⌋, as the authors do, who also choose the grid by the map, 56 × 56 to 7 × 7, and average over it where the map is
not of its size. Here it is 7 × 7 unless another is given.

Errors elsewhere: the authors' code takes grids below 7 × 7, on which every frequency becomes zero; here they are
refused.

Source: Qin, Zhang, Wu and Li, "FcaNet: Frequency Channel Attention Networks" (2020), arXiv:2012.11879; confirmed with
the authors' code.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, promote, reduced

UNIT = 7
TOP_FREQUENCIES = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0), (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3),
    (3, 5), (2, 2), (4, 6), (6, 3), (3, 3), (5, 3), (5, 5), (2, 1), (6, 1), (5, 2), (5, 4), (3, 2), (3, 1), (4, 1),
    (2, 3), (2, 0), (6, 5), (1, 3),
)  # fmt: skip
"""The frequencies (u, v) on a 7 × 7 grid, best first, as the authors found them each alone on ImageNet."""


def cosine_basis(
    size: tuple[int, int], frequencies: Sequence[tuple[int, int]], channels: int
) -> Float[np.ndarray, "p q c"]:
    """What each channel is summed with: the cosines of its frequency (u, v) over p × q bins, of norm one.

    >>> cosine_basis((1, 2), [(0, 0), (0, 1)], 2).round(2)
    array([[[ 0.71,  0.71],
            [ 0.71, -0.71]]])
    """
    u, v = np.repeat(np.array(frequencies), channels // len(frequencies), axis=0).T
    rows, columns = _cosines(size[0], u), _cosines(size[1], v)
    return rows[:, None] * columns[None]


def _cosines(size, frequency):
    position = np.arange(size)[:, None] + 0.5
    return np.cos(np.pi * frequency * position / size) * np.sqrt(np.where(frequency == 0, 1, 2) / size)


def fca_weights(x: Float[Array, "*b h w c"], basis: Float[Array, "p q c"], excite: Callable) -> Float[Array, "*b c"]:
    """s = sigmoid(excite(z)), in (0, 1), one for each channel, with z the sum of basis · x̄ over the p × q bins.

    Args:
        x: maps.
        basis: a pattern for each channel, such as `cosine_basis`.
        excite: z -> W_2 relu(W_1 z), any callable on (*b, c).
    """
    pooled = ops.adaptive_average_pool(x, basis.shape[:2])
    z = (pooled * basis.astype(ops.at_least_float32(x.dtype))).sum((-3, -2))
    return jax.nn.sigmoid(excite(z.astype(x.dtype)))


def fca(x: Float[Array, "*b h w c"], basis: Float[Array, "p q c"], excite: Callable) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `fca_weights`.

    >>> fca(jnp.array([[[2.0, -4.0]]]), jnp.ones((1, 1, 2)), lambda z: 0 * z)
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return x * fca_weights(x, basis, excite)[..., None, None, :]


class Fca(nnx.Module):
    """Multi-spectral channel attention of maps of any size.

    Parameters: 2c·hidden with hidden = ⌊c/r⌋, at least 1. Multiply-adds: 2c·hidden, and those of averaging over the
    grid where the map is not of its size.

    Args:
        channels: c; as many frequencies as there are must divide it.
        reduction: r.
        size: p and q, at least 7.
        frequencies: K pairs (u, v) of 0 … 6; the authors' best 16 by default, more are in `TOP_FREQUENCIES`.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size or reduction out of range, frequencies out of range or of a number that does not divide the
            channels, at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        size: tuple[int, int] = (UNIT, UNIT),
        frequencies: Sequence[tuple[int, int]] = TOP_FREQUENCIES[:16],
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        check(min(size) >= UNIT, f"size must be at least (7, 7), got {tuple(size)}.")
        check(
            len(frequencies) >= 1 and channels % len(frequencies) == 0,
            f"the number of frequencies must divide channels, got {len(frequencies)} frequencies, channels={channels}.",
        )
        for frequency in frequencies:
            check(
                len(frequency) == 2 and set(frequency) <= set(range(UNIT)),
                f"frequencies must be pairs of 0 to 6, got {frequency}.",
            )
        self.excite = Perceptron(channels, hidden, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.size = tuple(size)
        self.frequencies = tuple((u * (size[0] // UNIT), v * (size[1] // UNIT)) for u, v in frequencies)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel."""
        return fca_weights(self._map(x), self._basis(x), self.excite)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return fca(self._map(x), self._basis(x), self.excite)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        (h, w, c), (p, q) = shape, self.size
        pooling = 0 if (h, w) == (p, q) else c * min(p * h * w + p * w * q, q * h * w + p * h * q)
        layers = self.excite.cost(1)
        return Cost(layers.parameters, pooling + layers.multiply_adds)

    def _basis(self, x):
        basis = cosine_basis(self.size, self.frequencies, x.shape[-1])
        return jnp.asarray(basis, ops.at_least_float32(x.dtype))

    def _map(self, x):
        check_map(x, self.excite.reduce.in_features)
        return promote(x, self.excite.reduce)
