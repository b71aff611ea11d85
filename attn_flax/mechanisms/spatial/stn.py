"""Spatial transformer.

    θ = f_loc(x)
    (x_s, y_s)ᵀ = θ (x_t, y_t, 1)ᵀ
    y_t = Σ_nm x_nm · max(0, 1 - |x_s - m|) · max(0, 1 - |y_s - n|)

with f_loc any network from the map to the 2×3 numbers of an affine map, (x_t, y_t) the positions of the output in
coordinates from -1 to 1 along each axis, (x_s, y_s) where it looks in the input, and m and n the columns and rows, in
the sum in units of pixels. The map is cropped, moved, turned or scaled as a whole, as its own content demands; outside
it there are zeros.

Differs from the paper: nothing. The paper leaves open which localisation network, and whether -1 and 1 are the middles
or the outer edges of the border's pixels. Here the network averages the map over a few bins and has two layers, of
which the last starts with zeros and the identity as its bias; it is always computed in float32 or wider. -1 and 1 are
the middles, unless `align_corners` is False.

Errors elsewhere: the Awesome-Vision-Attentions port scales by size - 2 for size - 1, swaps rows and columns of the
grid, clips the corners before it takes their weights, which then do not sum to one at the border, and has no
localisation network.

Source: Jaderberg, Simonyan, Zisserman and Kavukcuoglu, "Spatial Transformer Networks" (2015), arXiv:1506.02025; stated
from the paper's equations; grid and samples compared with PyTorch's affine_grid and grid_sample, not with the authors'
code.
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
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, promote

IDENTITY = (1, 0, 0, 0, 1, 0)


def stn_grid(
    theta: Float[Array, "*b 2 3"], size: tuple[int, int], *, align_corners: bool = True
) -> Float[Array, "*b h w 2"]:
    """(x_s, y_s) for each position of an output of that size, in coordinates from -1 to 1.

    Args:
        theta: the affine maps.
        size: h and w.
        align_corners: whether -1 and 1 are the middles of the border's pixels, or their outer edges.

    >>> stn_grid(jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]), (1, 3))
    Array([[[-0.5,  0. ],
            [ 0.5,  0. ],
            [ 1.5,  0. ]]], dtype=float32)
    """
    y, x = (_coordinates(n, align_corners) for n in size)
    homogeneous = jnp.stack(jnp.broadcast_arrays(x, y[:, None], jnp.ones(())), -1).astype(theta.dtype)
    return jnp.einsum("...ij,hwj->...hwi", theta, homogeneous, precision=jax.lax.Precision.HIGHEST)


def stn(x: Float[Array, "*b h w c"], localize: Callable, *, align_corners: bool = True) -> Float[Array, "*b h w c"]:
    """The map as large as x that θ = localize(x) takes from it.

    >>> mirror = lambda x: jnp.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> stn(jnp.array([[[1.0], [2.0], [4.0]]]), mirror).squeeze()
    Array([4., 2., 1.], dtype=float32)
    """
    grid = stn_grid(localize(x), x.shape[-3:-1], align_corners=align_corners)
    return ops.bilinear_sample(x, grid, align_corners=align_corners)


def _coordinates(n, align_corners):
    if align_corners:
        return jnp.linspace(-1, 1, n) if n > 1 else jnp.zeros(1)
    return (2 * jnp.arange(n) + 1) / n - 1


class SpatialTransformer(nnx.Module):
    """Spatial transformer of maps of any size, by an affine map; the identity at first.

    θ = W_2 relu(W_1 z + b_1) + b_2, z the means of the map over p×p bins.

    Parameters: p²·c·hidden + 7·hidden + 6. Multiply-adds: those of the bins, p²·c·hidden + 6·hidden, and 6 for each
    position.

    Args:
        channels: c.
        bins: p, along each axis.
        hidden: the features between the layers.
        align_corners: whether -1 and 1 are the middles of the border's pixels, or their outer edges.
        dtype: the type of the output; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        bins: int = 4,
        hidden: int = 32,
        align_corners: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("channels", channels), ("bins", bins), ("hidden", hidden)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        self.localize = Perceptron(bins * bins * channels, hidden, len(IDENTITY), param_dtype=param_dtype, rngs=rngs)
        self.localize.expand.kernel.set_value(jnp.zeros((hidden, len(IDENTITY)), param_dtype))
        self.localize.expand.bias.set_value(jnp.array(IDENTITY, param_dtype))
        self.channels = channels
        self.bins = bins
        self.align_corners = align_corners
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w 2"]:
        """(x_s, y_s), where each position of the output looks, in coordinates from -1 to 1."""
        x = self._map(x)
        return stn_grid(self._theta(x), x.shape[-3:-1], align_corners=self.align_corners)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The transformed map, in the layout of x."""
        return stn(self._map(x), self._theta, align_corners=self.align_corners)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        p = self.bins
        orders = p * c * w * (h + p), p * c * h * (w + p), p * p * h * w * (c + 1)
        pooling = 0 if (h, w) == (p, p) else min(orders)
        parameters, multiply_adds = self.localize.cost(1)
        return Cost(parameters, pooling + multiply_adds + 6 * h * w)

    def _theta(self, x):
        wide = x.astype(ops.at_least_float32(x.dtype))
        bins = ops.adaptive_average_pool(wide, (self.bins, self.bins))
        return self.localize(bins.reshape(*bins.shape[:-3], -1)).reshape(*bins.shape[:-3], 2, 3)

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self)
