"""Gather-excite.

    z = gather_e(x)
    s = sigmoid(interp(f(z)))
    y = x · s

where gather_e summarises a neighbourhood of each channel, one for each e-th position (all of the map if e = 0), interp
brings the summaries back to the size of the map and f maps their channels, or is left out. Every value is scaled by
what is around it, at a distance that the extent e sets: from a few positions to the whole map. The paper's pairs:

- θ⁻: gather is the mean over windows of 2e-1 positions, e apart; no f, no parameter (the default);
- θ: gather is log₂ e depthwise 3×3 convolutions of stride 2 with batch norm, relu between them, or one convolution as
  large as the map if e = 0; no f (`parametric`);
- θ⁺: the gather of θ and relu, and f = W_2 relu(W_1 z + b_1) + b_2 with c/r features between (`use_mlp`).

The mean with f and e = 0 is squeeze-and-excitation with biases.

Differs from the paper: nothing. What it leaves open is as in timm: a mean counts the positions inside the map alone,
and interp takes the nearest summary as torch does, ⌊i·p/h⌋ of p for position i of h.

Errors elsewhere: timm 1.0.31 runs with neither parametric gather nor f, the latter its default: it passes its options
as positional arguments and ends in a TypeError. Torch computes i·p/h in float32, which falls below the integer at some
sizes (h = 122 with e = 8).

Source: Hu, Shen, Albanie, Sun and Vedaldi, "Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks"
(2018), arXiv:1810.12348; θ and θ⁺ of the global extent compared with the authors' networks, hujie-frank/GENet.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv, Perceptron
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def gather_averages(x: Float[Array, "*b h w c"], extent: int) -> Float[Array, "*b p q c"]:
    """The gather of θ⁻: means over windows of 2e-1 positions, e apart, cut at the border; of the whole map if e = 0.

    >>> gather_averages(jnp.arange(5.0).reshape(5, 1, 1), 2).squeeze()
    Array([0.5, 2. , 3.5], dtype=float32)
    """
    check(extent >= 0, f"extent must be at least 0, got {extent}.")
    if extent == 0:
        return ops.average(x)[..., None, None, :]
    wide = ops.at_least_float32(x.dtype)
    rows, columns = (jnp.asarray(_windows(size, extent), wide) for size in x.shape[-3:-1])
    precise = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": wide}
    by_rows = jnp.einsum("...hwc,ph->...pwc", x, rows, **precise)
    return jnp.einsum("...pwc,qw->...pqc", by_rows, columns, **precise).astype(x.dtype)


def ge_weights(
    x: Float[Array, "*b h w c"], gather: Callable, excite: Callable | None = None
) -> Float[Array, "*b h w c"]:
    """s = sigmoid(interp(excite(gather(x)))), in (0, 1), one for each value.

    All but interp acts on each summary alone, so interp comes last here.

    Args:
        x: maps.
        gather: x -> z, any callable from (*b, h, w, c) to (*b, p, q, c).
        excite: f, any callable on (*b, p, q, c); none by default.
    """
    z = gather(x)
    gates = jax.nn.sigmoid(z if excite is None else excite(z))
    return ops.resize_nearest(gates, x.shape[-3:-1])


def ge(x: Float[Array, "*b h w c"], gather: Callable, excite: Callable | None = None) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `ge_weights`.

    >>> ge(jnp.array([[[2.0], [-4.0]]]), lambda x: 0 * x).squeeze()
    Array([ 1., -2.], dtype=float32)
    """
    return x * ge_weights(x, gather, excite)


class DepthwiseGather(nnx.Module):
    """The gather of θ: depthwise convolutions, batch norm after each and relu between them.

    Parameters: 11c for each of log₂ e convolutions; h·w·c + 2c for the one of the global extent.

    Args:
        channels: c.
        extent: e, a power of two, or 0.
        feature_size: (h, w) of the maps where e = 0.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        extent: int,
        feature_size: tuple[int, int] | None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        windows = [(3, 3)] * (extent.bit_length() - 1) if extent else [feature_size]
        self.convolutions = nnx.List([DepthwiseConv(channels, window, use_bias=False, **layer) for window in windows])
        self.norms = nnx.List([BatchNorm(channels, **layer) for _ in windows])
        self.strides, self.padding = ((2, 2), ((1, 1), (1, 1))) if extent else ((1, 1), "VALID")

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """z, smaller by e in both directions, rounded up; a single summary if e = 0."""
        first, *others = zip(self.convolutions, self.norms, strict=True)
        z = self._step(x, *first)
        for convolution, norm in others:
            z = self._step(jax.nn.relu(z), convolution, norm)
        return z

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        costs = []
        for convolution in self.convolutions:
            h, w = (1, 1) if self.padding == "VALID" else (-(-h // 2), -(-w // 2))
            costs.append(convolution.cost(h * w))
        return Cost(sum(cost.parameters + 2 * c for cost in costs), sum(cost.multiply_adds for cost in costs))

    def _step(self, x, convolution, norm):
        kernel = convolution.kernel[...].astype(x.dtype)
        return norm(ops.depthwise_conv(x, kernel, strides=self.strides, padding=self.padding))


class GatherExcite(nnx.Module):
    """Gather-excite of maps of any size, or with the parametric gather of the global extent of one size.

    Parameters: none; with `parametric` those of `DepthwiseGather`, with `use_mlp` 2c·hidden + hidden + c.
    Multiply-adds, with p × q summaries: p·h·w·c + p·q·w·c for windows, and 2p·q·c·hidden for f.

    Args:
        channels: c.
        extent: e; 0 is the whole map.
        parametric: whether the gather is learned, θ and θ⁺.
        feature_size: (h, w) of the maps, for the parametric gather of the whole map.
        use_mlp: whether f is there.
        reduction: r.
        hidden: the features between the layers of f, by default ⌊c/r⌋ and at least 1.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size out of range, or a parametric gather whose extent is no power of two or whose size is not
            known, at construction; an input that is no map of these channels, or not of that size, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        extent: int = 0,
        parametric: bool = False,
        feature_size: tuple[int, int] | None = None,
        use_mlp: bool = False,
        reduction: int = 16,
        hidden: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        check(extent >= 0, f"extent must be at least 0, got {extent}.")
        is_sized = parametric and extent == 0
        if is_sized:
            check(
                feature_size is not None and len(feature_size) == 2 and min(feature_size) >= 1,
                "feature_size must be two sizes of at least 1 for a parametric gather of the whole map, "
                f"got {feature_size}.",
            )
        else:
            check(
                feature_size is None, f"feature_size must be None unless a whole map is convolved, got {feature_size}."
            )
            check(
                not parametric or (extent > 1 and extent.bit_count() == 1),
                f"extent must be 0 or a power of two above 1 for a parametric gather, got {extent}.",
            )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.learned = nnx.data(DepthwiseGather(channels, extent, feature_size, **layer) if parametric else None)
        self.excite = nnx.data(Perceptron(channels, hidden, **layer) if use_mlp else None)
        self.channels = channels
        self.extent = extent
        self.feature_size = tuple(feature_size) if is_sized else None
        self.dtype = dtype
        self.param_dtype = param_dtype

    def gather(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """z, and relu of it where the learned gather is followed by f."""
        if self.learned is None:
            return gather_averages(x, self.extent)
        z = self.learned(x)
        return z if self.excite is None else jax.nn.relu(z)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """s, a weight for each value."""
        return ge_weights(self._map(x), self.gather, self.excite)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return ge(self._map(x), self.gather, self.excite)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        p, q = (math.ceil(size / self.extent) if self.extent else 1 for size in (h, w))
        averages = Cost(0, p * h * w * c + p * q * w * c if self.extent else 0)
        gather = averages if self.learned is None else self.learned.cost(shape)
        excite = Cost(0, 0) if self.excite is None else self.excite.cost(p * q)
        return Cost(gather.parameters + excite.parameters, gather.multiply_adds + excite.multiply_adds)

    def _map(self, x):
        check_map(x, self.channels)
        if self.feature_size is not None:
            check(
                x.shape[-3:-1] == self.feature_size,
                f"x must be a map of {self.feature_size}, as feature_size says, got shape {x.shape}.",
            )
        return promote(x, self)


def _windows(size, extent):
    """The weights of the means, a row for each window."""
    centre, position = np.arange(0, size, extent)[:, None], np.arange(size)
    inside = abs(position - centre) < extent
    return inside / inside.sum(1, keepdims=True)
