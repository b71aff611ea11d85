"""Efficient channel attention.

    z = mean_hw(x)
    s_i = sigmoid(Σ_j w_j z_{i+j}),   j from -⌊k/2⌋ to ⌊k/2⌋
    y = x · s

    k = |(log₂ c + b) / γ|_odd

with one window w of k weights for all channels i, zeros beyond the first and the last channel, and |t|_odd the odd
number nearest to t. A channel's weight depends on the means of its k - 1 neighbours alone, so the block costs a handful
of parameters; the window grows with the logarithm of the width.

Differs from the paper: nothing. `circular` takes the last channels as the neighbours of the first. `use_mlp` lifts
every mean to r features, u_i = relu(a z_i + a'), before a window over channels and features with a bias,
s_i = sigmoid(Σ_j w_jᵀ u_{i+j} + w'). Both are timm's experiments, CecaModule and EcaModule(use_mlp=True).

Errors elsewhere: External-Attention-pytorch gives the window a bias and fixes k = 3; Awesome-Vision-Attentions fixes
k = 3. The authors' checkpoint of ResNet-50 has windows of 3, 5, 5 and 7 by stage where the formula says 5, 5, 5 and 7,
and their code's default is 3 everywhere. timm takes at least 3, which differs from the formula below 8 channels.

Source: Wang, Wu, Zhu, Li, Zuo and Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks"
(2020), arXiv:1910.03151; compared with the authors' code, BangguWu/ECANet.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def eca_weights(
    x: Float[Array, "*b h w c"],
    kernel: Float[Array, "k f"],
    *,
    lift: Callable = lambda z: z,
    bias: Float[Array, ""] | float = 0.0,
    circular: bool = False,
) -> Float[Array, "*b c"]:
    """s_i = sigmoid(Σ_j w_jᵀ u_{i+j} + bias), u_i = lift(z_i), z = mean_hw(x): in (0, 1), one for each channel.

    Args:
        x: maps.
        kernel: w, a row for each of k neighbours, k odd; of one column without a lift, which is the paper's form.
        lift: z_i -> u_i, any callable from (*b, c, 1) to (*b, c, f).
        bias: a number.
        circular: whether the channels form a ring, or zeros lie beyond them.

    Raises:
        InputError: a window of an even size.

    Source: the paper's equation 7.
    """
    k = kernel.shape[0]
    check(k % 2 == 1, f"kernel must have an odd number of rows, got shape {kernel.shape}.")
    u = lift(ops.average(x)[..., None])
    if circular:
        ring = [(0, 0)] * (u.ndim - 2) + [(k // 2, k // 2), (0, 0)]
        mixed = ops.depthwise_conv(jnp.pad(u, ring, mode="wrap"), kernel, padding="VALID")
    else:
        mixed = ops.depthwise_conv(u, kernel)
    return jax.nn.sigmoid(mixed.sum(-1) + bias)


def eca(
    x: Float[Array, "*b h w c"],
    kernel: Float[Array, "k f"],
    *,
    lift: Callable = lambda z: z,
    bias: Float[Array, ""] | float = 0.0,
    circular: bool = False,
) -> Float[Array, "*b h w c"]:
    """y = x · s, with the s of `eca_weights` of the same arguments.

    >>> before = jnp.array([[-9.0], [0.0], [0.0]])  # each channel sees the one before it
    >>> eca(jnp.array([[[2.0, -4.0]]]), before).round(3)
    Array([[[ 1., -0.]]], dtype=float32)
    """
    return x * eca_weights(x, kernel, lift=lift, bias=bias, circular=circular)[..., None, None, :]


class EfficientChannel(nnx.Module):
    """Efficient channel attention of maps of any size.

    Parameters: k, and with `use_mlp` k·r + 1 for the window and 2r for the lift. Multiply-adds: c·k, and c·r·(k + 1).

    Args:
        channels: c.
        kernel_size: k, by default that of the formula.
        gamma: γ of the formula.
        b: b of the formula.
        circular: whether the channels form a ring.
        use_mlp: whether the means are lifted to r features, which also gives the window a bias.
        reduction: c/r.
        hidden: r, by default ⌊c/reduction⌋ and at least 1; timm rounds it to a multiple of 8.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: an even window, or a size or γ that is not positive, at construction; an input that is no map of
            these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float = 2.0,
        b: float = 1.0,
        circular: bool = False,
        use_mlp: bool = False,
        reduction: int = 8,
        hidden: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        check(gamma > 0, f"gamma must be positive, got {gamma}.")
        k = nearest_odd(abs(math.log2(channels) + b) / gamma) if kernel_size is None else kernel_size
        check(k >= 1 and k % 2 == 1, f"kernel_size must be odd and at least 1, got {k}.")
        shape = (k, hidden if use_mlp else 1)
        initialize = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=())
        self.kernel = nnx.Param(initialize(rngs.params(), shape, param_dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros((), param_dtype)) if use_mlp else None)
        self.lift = nnx.data(
            nnx.Linear(1, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs) if use_mlp else None
        )
        self.channels = channels
        self.circular = circular
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """s, a weight for each channel."""
        x = self._map(x)
        return eca_weights(x, **self._learned(x.dtype))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return eca(x, **self._learned(x.dtype))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        k, r = self.kernel.shape
        c = self.channels
        return Cost(k, c * k) if self.lift is None else Cost(k * r + 1 + 2 * r, c * r * (k + 1))

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self)

    def _learned(self, dtype):
        learned = {"kernel": self.kernel[...].astype(dtype), "circular": self.circular}
        if self.lift is None:
            return learned
        return {**learned, "lift": lambda z: jax.nn.relu(self.lift(z)), "bias": self.bias[...].astype(dtype)}


def nearest_odd(t: float) -> int:
    """|t|_odd, the odd number nearest to t, and of two the larger.

    >>> nearest_odd(3.9), nearest_odd(4.0)
    (3, 5)
    """
    return 2 * math.floor(t / 2) + 1
