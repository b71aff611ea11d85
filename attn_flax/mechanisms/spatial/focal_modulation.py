"""Focal modulation.

    [q, z_0, g] = W_in x
    z_l = gelu(f_l z_{l-1}),   l = 1 … L
    z_{L+1} = gelu(mean_hw(z_L))
    m = h(Σ_l g_l · z_l)
    y = W_out(q ∘ m)

with q and z_0 of c channels, L+1 gates g of one channel each, f_l depthwise convolutions of k_l×k_l without biases and
zeros beyond the border, k_l = k_1 + (l-1)·s, and h a 1×1 convolution. Instead of comparing a query with keys, every
position gathers its surroundings at L growing ranges and from the whole map, weighs the ranges by gates of its own, and
multiplies the query with what came of it.

Differs from the paper: nothing. The authors' code can divide the sum by L+1 (`normalize_modulator`) and apply a layer
norm before W_out (`post_norm`), which its larger networks do; both are off as in the paper's equations.

Source: Yang, Li, Dai, Yuan and Gao, "Focal Modulation Networks" (2022), arXiv:2203.11926; compared with the authors'
code and with timm's.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import DepthwiseConv, LayerNorm, gelu
from attn_flax.mechanisms.layout import check_map, promote


def focal_modulation_weights(
    z: Float[Array, "*b h w c"], gates: Float[Array, "*b h w levels"], focus: Sequence[Callable], mix: Callable
) -> Float[Array, "*b h w c"]:
    """m = mix(Σ_l g_l · z_l), the modulator, of any sign and size, one for each position and channel.

    Args:
        z: z_0.
        gates: g, one more than `focus` has callables; the last is that of the mean.
        focus: f_l, any callables on maps.
        mix: h, likewise.
    """
    contexts = []
    for f in focus:
        z = gelu(f(z))
        contexts.append(z)
    contexts.append(gelu(ops.average(z))[..., None, None, :])
    return mix(sum(gates[..., i, None] * context for i, context in enumerate(contexts)))


def focal_modulation(
    q: Float[Array, "*b h w c"],
    z: Float[Array, "*b h w c"],
    gates: Float[Array, "*b h w levels"],
    focus: Sequence[Callable],
    mix: Callable,
) -> Float[Array, "*b h w c"]:
    """q ∘ m, with the m of `focal_modulation_weights` of the other arguments.

    >>> q, z, gates = jnp.full((1, 1, 2), 3.0), jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 2))
    >>> focal_modulation(q, z, gates, [lambda z: z], lambda m: m + 2)
    Array([[[6., 6.]]], dtype=float32)
    """
    return q * focal_modulation_weights(z, gates, focus, mix)


class FocalModulation(nnx.Module):
    """Focal modulation of maps of any size.

    Parameters: 4c² + (L+5)·c + L+1 + c·Σ k_l²; without `use_bias` 3c + L+1 fewer, with `post_norm` 2c more.
    Multiply-adds for each position: 4c² + (L+1)·c + c·Σ k_l².

    Args:
        channels: c.
        focal_window: k_1, odd.
        focal_level: L.
        focal_factor: s, by which the windows grow, even.
        use_bias: whether W_in and h have biases; W_out always has one.
        normalize_modulator: whether the sum is divided by L+1.
        post_norm: whether q ∘ m is normalised over its channels.
        epsilon: added to that norm's variance; timm has 10⁻⁶.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window or an odd factor at construction; an input that is no map of these
            channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        focal_window: int = 3,
        focal_level: int = 2,
        focal_factor: int = 2,
        use_bias: bool = True,
        normalize_modulator: bool = False,
        post_norm: bool = False,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            focal_window >= 1 and focal_window % 2 == 1, f"focal_window must be odd and positive, got {focal_window}."
        )
        check(focal_level >= 1, f"focal_level must be at least 1, got {focal_level}.")
        check(
            focal_factor >= 0 and focal_factor % 2 == 0,
            f"focal_factor must be even and not negative, got {focal_factor}.",
        )
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        windows = [focal_window + focal_factor * level for level in range(focal_level)]
        self.read = nnx.Linear(channels, 2 * channels + focal_level + 1, use_bias=use_bias, **layer)
        self.focus = nnx.List([DepthwiseConv(channels, (k, k), use_bias=False, **layer) for k in windows])
        self.mix = nnx.Linear(channels, channels, use_bias=use_bias, **layer)
        self.norm = nnx.data(LayerNorm(channels, epsilon=epsilon, **layer) if post_norm else None)
        self.project = nnx.Linear(channels, channels, **layer)
        self.normalize_modulator = normalize_modulator

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """m, in the layout of x."""
        _, z, gates = self._split(x)
        return focal_modulation_weights(z, gates, self.focus, self._mix)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        modulated = focal_modulation(*self._split(x), self.focus, self._mix)
        return self.project(modulated if self.norm is None else self.norm(modulated))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        gates = len(self.focus) + 1
        linear = 4 * c * c + gates * c
        windows = [f.cost(h * w) for f in self.focus]
        biases = c + (3 * c + gates if self.read.use_bias else 0)
        norm = 0 if self.norm is None else 2 * c
        return Cost(
            linear + biases + norm + sum(window.parameters for window in windows),
            h * w * linear + sum(window.multiply_adds for window in windows),
        )

    def _split(self, x):
        c = self.read.in_features
        check_map(x, c)
        return jnp.split(self.read(promote(x, self.read)), [c, 2 * c], axis=-1)

    def _mix(self, summed):
        return self.mix(summed / (len(self.focus) + 1) if self.normalize_modulator else summed)
