"""Recursive gated convolution.

    [p_0, q_0, …, q_{n-1}] = W_in x
    p_1 = p_0 ∘ s·f_0(q_0)
    p_{k+1} = W_k p_k ∘ s·f_k(q_k),   k = 1 … n-1
    y = W_out p_n

with p_k and q_k of c/2ⁿ⁻¹⁻ᵏ channels (p_0 as many as q_0), f_k depthwise convolutions with biases and zeros beyond the
border, and W 1×1 convolutions with biases. Each of the n steps multiplies what came before with features of a window,
so that the output holds products of up to n+1 linear functions of the input; the early steps are narrow, so that all of
them cost little more than the last.

Differs from the paper: nothing. The paper divides by α, here the s is 1/α; its networks have s = 1/3. Its other choice
of f, a filter of global range, is left out.

Source: Rao, Zhao, Tang, Zhou, Lim and Lu, "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
Convolutions" (2022), arXiv:2207.14284; compared with the authors' code.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import DepthwiseConv
from attn_flax.mechanisms.layout import check_map, promote


def gnconv(
    p: Float[Array, "*b h w d"], gates: Sequence[Float[Array, "*b h w _"]], lift: Sequence[Callable]
) -> Float[Array, "*b h w c"]:
    """p_n, from p_0 and the gates s·f_k(q_k).

    Args:
        p: p_0.
        gates: n of them, each twice as wide as the one before.
        lift: W_1 … W_{n-1}, any callables from the width of a gate to that of the next.

    >>> p, gates = jnp.full((1, 1, 1), 2.0), [jnp.full((1, 1, 1), 3.0), jnp.array([[[1.0, 10.0]]])]
    >>> gnconv(p, gates, [lambda p: jnp.repeat(p, 2, axis=-1)])
    Array([[[ 6., 60.]]], dtype=float32)
    """
    first, *rest = gates
    p = p * first
    for w, gate in zip(lift, rest, strict=True):
        p = w(p) * gate
    return p


class RecursiveGatedConv(nnx.Module):
    """Recursive gated convolution of maps of any size.

    Parameters, with d_k = c/2ⁿ⁻¹⁻ᵏ and windows of K×K: 3c² + 3c + (K² + 1)·Σ d_k + Σ (d_k·d_{k+1} + d_{k+1}).
    Multiply-adds for each position: 3c² + K²·Σ d_k + Σ d_k·d_{k+1}.

    Args:
        channels: c, which 2ⁿ⁻¹ must divide.
        order: n.
        kernel_size: K, odd.
        scale: s.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window, or channels that cannot be halved n-1 times, at construction; an
            input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        order: int = 5,
        kernel_size: int = 7,
        scale: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            order >= 1 and channels % 2 ** (order - 1) == 0,
            f"order must be at least 1 and 2^(order-1) divide channels, got order={order}, channels={channels}.",
        )
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths = [channels // 2**k for k in reversed(range(order))]
        self.split = nnx.Linear(channels, 2 * channels, **layer)
        self.window = DepthwiseConv(sum(widths), (kernel_size, kernel_size), **layer)
        self.lift = nnx.List([nnx.Linear(d, 2 * d, **layer) for d in widths[:-1]])
        self.project = nnx.Linear(channels, channels, **layer)
        self.widths = tuple(widths)
        self.scale = scale

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """The gates s·f_k(q_k), side by side from the narrowest to that of c channels."""
        _, gates = self._read(x)
        return gates

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        p, gates = self._read(x)
        return self.project(gnconv(p, jnp.split(gates, np.cumsum(self.widths)[:-1], axis=-1), self.lift))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        lifts = sum(d * 2 * d for d in self.widths[:-1])
        window = self.window.cost(h * w)
        biases = 3 * c + sum(self.widths[1:])
        return Cost(3 * c * c + lifts + biases + window.parameters, h * w * (3 * c * c + lifts) + window.multiply_adds)

    def _read(self, x):
        check_map(x, self.split.in_features)
        p, q = jnp.split(self.split(promote(x, self.split)), self.widths[:1], axis=-1)
        return p, self.scale * self.window(q)
