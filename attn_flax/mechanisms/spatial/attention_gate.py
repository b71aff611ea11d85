"""Attention gate.

    q = ψ relu(W_x x + up(W_g g + b_g)) + b_ψ
    α = up(sigmoid(q))
    y = x · α

x is a map of c channels, g the gating signal, a coarser map of c_g channels; W_x is a convolution with windows of s×s
in steps of s, W_g and ψ are 1×1 convolutions to f features and to one, and `up` is bilinear interpolation to the size
of W_x x, then of x. Deep features that know what the picture shows decide which positions of a shallow map pass on.

Differs from the paper: nothing in its equations. The paper leaves open how x is brought to the resolution of the signal
and what `up` does at the border: here, as in the authors' code, the strided windows s = 2, which drop a last odd row or
column, and interpolation between the middles of pixels. `project` adds the authors' output layer y = BN(W (x · α) + b).

Errors elsewhere: the authors' code has a convolution and batch norm after the gate that the equations have not.

Source: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas" (2018), arXiv:1804.03999; compared with
the authors' code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote, reduced


def attention_gate_weights(
    x: Float[Array, "*b h w c"],
    signal: Float[Array, "*b h_g w_g c_g"],
    of_map: Callable,
    of_signal: Callable,
    score: Callable,
) -> Float[Array, "*b h w"]:
    """α = up(sigmoid(score(relu(of_map(x) + up(of_signal(signal)))))), in (0, 1), one for each position.

    Args:
        x: the maps to be gated.
        signal: the gating signal g.
        of_map: x -> W_x x, to f features at this or a lower resolution.
        of_signal: g -> W_g g + b_g, to f features.
        score: q -> ψ q + b_ψ, to one feature.
    """
    features = of_map(x)
    joint = jax.nn.relu(features + _interpolate(of_signal(signal), features.shape[-3:-1]))
    return _interpolate(jax.nn.sigmoid(score(joint)), x.shape[-3:-1])[..., 0]


def attention_gate(
    x: Float[Array, "*b h w c"],
    signal: Float[Array, "*b h_g w_g c_g"],
    of_map: Callable,
    of_signal: Callable,
    score: Callable,
) -> Float[Array, "*b h w c"]:
    """y = x · α, with the α of `attention_gate_weights`.

    >>> attention_gate(jnp.array([[[2.0, -4.0]]]), jnp.ones((1, 1, 3)), *[lambda x: 0 * x[..., :1]] * 3)
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return x * attention_gate_weights(x, signal, of_map, of_signal, score)[..., None]


def _interpolate(x, size):
    return jax.image.resize(x, (*x.shape[:-3], *size, x.shape[-1]), "bilinear", antialias=False)


class AttentionGate(nnx.Module):
    """Attention gate of maps by a coarser signal.

    Parameters: s²·c·f + c_g·f + 2f + 1, and c² + 3c with the output layer. Multiply-adds, for a signal as large as
    W_x x, h'×w' with h' = ⌊h/s⌋: h'·w'·(s²·c·f + c_g·f + f), those of the interpolation of α, and h·w·c² with the
    output layer.

    Args:
        channels: c.
        gating_channels: c_g, the channels of the signal.
        hidden: f, by default ⌊c/2⌋ and at least 1; the authors' U-Net has c.
        stride: s.
        project: whether a 1×1 convolution and batch norm follow.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; at the call, an input or a signal that is no map of its channels, a
            signal of other batch axes, or a map smaller than the stride.
    """

    def __init__(
        self,
        channels: int,
        *,
        gating_channels: int,
        hidden: int | None = None,
        stride: int = 2,
        project: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, 2) if hidden is None else hidden
        for name, size in (("gating_channels", gating_channels), ("hidden", hidden), ("stride", stride)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        window = (stride, stride)
        self.of_map = nnx.Conv(channels, hidden, window, window, padding="VALID", use_bias=False, **layer)
        self.of_signal = nnx.Linear(gating_channels, hidden, **layer)
        self.score = nnx.Linear(hidden, 1, **layer)
        self.project = nnx.data(nnx.Linear(channels, channels, **layer) if project else None)
        self.norm = nnx.data(BatchNorm(channels, **layer) if project else None)
        self.channels = channels
        self.stride = stride

    def attention_map(
        self, x: Float[Array, "*b h w c"], signal: Float[Array, "*b h_g w_g c_g"]
    ) -> Float[Array, "*b h w"]:
        """α, a weight for each position."""
        return attention_gate_weights(*self._maps(x, signal), self.of_map, self.of_signal, self.score)

    def __call__(self, x: Float[Array, "*b h w c"], signal: Float[Array, "*b h_g w_g c_g"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        y = attention_gate(*self._maps(x, signal), self.of_map, self.of_signal, self.score)
        return y if self.project is None else self.norm(self.project(y))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c) and a signal as large as W_x x."""
        h, w, c = shape
        s, f, c_g = self.stride, self.score.in_features, self.of_signal.in_features
        projecting = self.project is not None
        parameters = s * s * c * f + c_g * f + 2 * f + 1 + (c * c + 3 * c if projecting else 0)
        rows, columns = h // s, w // s
        interpolation = 0 if s == 1 else min(h * columns * (rows + w), w * rows * (columns + h))
        gate = rows * columns * (s * s * c * f + c_g * f + f)
        return Cost(parameters, gate + interpolation + (h * w * c * c if projecting else 0))

    def _maps(self, x, signal):
        check_map(x, self.channels)
        channels = self.of_signal.in_features
        check(
            signal.ndim == x.ndim and signal.shape[:-3] == x.shape[:-3] and signal.shape[-1] == channels,
            f"signal must be a map (*b, h, w, {channels}) with the batch axes of x, "
            f"got shapes {signal.shape} and {x.shape}.",
        )
        check(
            min(x.shape[-3:-1]) >= self.stride,
            f"x must be a map of at least {self.stride}×{self.stride}, the stride, got shape {x.shape}.",
        )
        return promote(x, self.of_map), promote(signal, self.of_signal)
