"""Layers that several mechanisms are made of."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import promote

BatchNorm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
"""As PyTorch has it by default, where the momentum is that of the new value: 0.1."""


class _LayerNorm(nnx.LayerNorm):
    """On a CPU the input is computed once; XLA would compute it anew for every sum over it, in the derivative, too."""

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """x normalised."""
        return super().__call__(jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x)


LayerNorm = functools.partial(_LayerNorm, epsilon=1e-6, use_fast_variance=False)
"""Over the channels of each position."""


def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x Φ(x) = x (1 + erf(x / √2)) / 2, computed in float32 or wider.

    As PyTorch computes it: its error is small beside x. `jax.nn.gelu(x, approximate=False)` takes erfc, whose error is
    small beside Φ(x) even where that is nearly zero; on a CPU this takes twice the time.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)" (2016), arXiv:1606.08415.
    """
    wide = x.astype(ops.at_least_float32(x.dtype))
    return (wide * (1 + jax.lax.erf(wide * math.sqrt(0.5))) / 2).astype(x.dtype)


class DepthwiseConv(nnx.Module):
    """A depthwise convolution by `ops.depthwise_conv`: a window for each channel.

    Parameters: the window's size times c, and c with a bias.

    Args:
        channels: c.
        window: its sizes, one for each spatial axis.
        dilation: steps between its taps, one for each axis; 1 by default.
        use_bias: whether a bias is added.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        window: tuple[int, ...],
        *,
        dilation: tuple[int, ...] | None = None,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        initialize = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=range(len(window)), out_axis=(), batch_axis=(-1,)
        )
        self.kernel = nnx.Param(initialize(rngs.params(), (*window, channels), param_dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros(channels, param_dtype)) if use_bias else None)
        self.dilation = dilation
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """The map of the same size, zeros around it."""
        x = promote(x, self)
        y = ops.depthwise_conv(x, self.kernel[...].astype(x.dtype), dilation=self.dilation)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def cost(self, n: int) -> Cost:
        """For n positions."""
        *window, channels = self.kernel.shape
        taps = math.prod(window)
        return Cost(taps * channels + (0 if self.bias is None else channels), n * taps * channels)


def depthwise_at_stride(
    x: Float[Array, "*b h w c"],
    conv: DepthwiseConv,
    stride: int,
    *,
    padding: str | Sequence[tuple[int, int]] | None = None,
) -> Float[Array, "*b p q c"]:
    """The convolution at every s-th row and column from the first on, with zeros around the map; p = ⌈h/s⌉.

    Args:
        x: maps.
        conv: with a window of odd sizes.
        stride: s.
        padding: the zeros, as `ops.depthwise_conv` takes them; by default alike on all sides.
    """
    padding = [(size // 2, size // 2) for size in conv.kernel.shape[:-1]] if padding is None else padding
    y = ops.depthwise_conv(x, conv.kernel[...].astype(x.dtype), strides=(stride, stride), padding=padding)
    return y if conv.bias is None else y + conv.bias[...].astype(x.dtype)


class ConvNormRelu(nnx.Module):
    """relu(BN(W x)), with a 3×3 convolution W without a bias.

    Parameters: 9c_in·c_out + 2c_out.

    Args:
        in_features: c_in.
        out_features: c_out.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = nnx.Conv(in_features, out_features, (3, 3), use_bias=False, **layer)
        self.norm = BatchNorm(out_features, **layer)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """The map transformed."""
        return jax.nn.relu(self.norm(self.conv(x)))

    def cost(self, n: int) -> Cost:
        """For n positions."""
        c_in, c_out = self.conv.in_features, self.conv.out_features
        return Cost(9 * c_in * c_out + 2 * c_out, 9 * n * c_in * c_out)


class GroupNorm(nnx.Module):
    """`ops.group_normalize`, scaled and shifted by channel; unlike nnx.GroupNorm for any batch axes.

    Parameters: 2c.

    Args:
        channels: c.
        groups: into which the channels are divided.
        epsilon: added to the variance.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: taken as by all layers; nothing is random here.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.groups = groups
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map normalised."""
        x = promote(x, self)
        normalized = ops.group_normalize(x, self.groups, epsilon=self.epsilon)
        return normalized * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Perceptron(nnx.Module):
    """W_2 f(W_1 x + b_1) + b_2, on vectors or as two 1×1 convolutions.

    Parameters: hidden·(c_in + c_out), and hidden + c_out with biases.

    Args:
        in_features: c_in.
        hidden: the features between the layers.
        out_features: c_out, by default c_in.
        activation: f.
        use_bias: whether the layers have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int | None = None,
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.reduce = nnx.Linear(in_features, hidden, **layer)
        self.expand = nnx.Linear(hidden, in_features if out_features is None else out_features, **layer)
        self.activation = activation

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s d"]:
        """The features on the last axis mapped."""
        return self.expand(self.activation(self.reduce(x)))

    def cost(self, n: int) -> Cost:
        """For n vectors."""
        c_in, hidden, c_out = self.reduce.in_features, self.reduce.out_features, self.expand.out_features
        biases = hidden + c_out if self.reduce.use_bias else 0
        return Cost(hidden * (c_in + c_out) + biases, n * hidden * (c_in + c_out))
