"""Temporal adaptive module.

    g = mean_hw(x)
    a = sigmoid(W_2 relu(norm(W_1 * g)))                    importance of each frame and channel
    θ = softmax_K(V_2 relu(norm(V_1 g_c)))                  a kernel of K frames for each channel
    y_t = Σ_k θ_k · (a·x)_{t + k - ⌊K/2⌋}

with W_1 a convolution over K frames from c to c/β channels and W_2 back for each frame, V_1 from the t frames of a
channel to α·t features and V_2 to K. Importance is local and of each place in time, the kernel is global and the same
for all times: every video is filtered in time by kernels made from the whole of it.

Differs from the paper: nothing. Both norms are batch normalisations, as in the authors' code, and no layer has a bias.
K must be odd, so that a video keeps its length. V_1 fixes the number of frames.

Source: Liu, Wang, Wu, Qian and Lu, "TAM: Temporal Adaptive Module for Video Recognition" (2021), arXiv:2005.06803.
Confirmed with the authors' code.
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
from attn_flax.mechanisms.layout import check_video, promote, reduced


def tam_weights(
    x: Float[Array, "*b t h w c"], weigh: Callable, form_kernel: Callable
) -> tuple[Float[Array, "*b t c"], Float[Array, "*b c k"]]:
    """a = sigmoid(weigh(g)), in (0, 1), and θ = softmax(form_kernel(gᵀ)), which sums to one for each channel.

    Args:
        x: videos.
        weigh: g -> W_2 relu(norm(W_1 * g)), any callable on (*b, t, c).
        form_kernel: g_c -> V_2 relu(norm(V_1 g_c)), any callable from (*b, c, t) to (*b, c, k).
    """
    g = ops.average(x)
    return jax.nn.sigmoid(weigh(g)), ops.softmax(form_kernel(g.swapaxes(-1, -2)))


def tam(x: Float[Array, "*b t h w c"], weigh: Callable, form_kernel: Callable) -> Float[Array, "*b t h w c"]:
    """y_t = Σ_k θ_k (a·x)_{t+k-⌊K/2⌋}, zeros before and after the video, with the a and θ of `tam_weights`; K is odd.

    >>> x = jnp.array([3.0, 6.0, 12.0]).reshape(3, 1, 1, 1)
    >>> tam(x, lambda g: 0 * g, lambda g: 0 * g).squeeze().round(1)  # a = 1/2, θ = 1/3
    Array([1.5, 3.5, 3. ], dtype=float32)
    """
    a, theta = tam_weights(x, weigh, form_kernel)
    t, size = x.shape[-4], theta.shape[-1]
    check(size % 2 == 1, f"form_kernel must give an odd number of weights, got {size}.")
    around = [(0, 0)] * (x.ndim - 4) + [(size // 2, size // 2), (0, 0), (0, 0), (0, 0)]
    padded = jnp.pad(x * a[..., None, None, :], around)
    return sum(padded[..., k : k + t, :, :, :] * theta[..., None, None, None, :, k] for k in range(size))


class TemporalAdaptive(nnx.Module):
    """The temporal adaptive module of videos of a fixed number of frames.

    Parameters: (K + 1)·c·⌊c/β⌋ + 2⌊c/β⌋ + α·t·(t + K + 2).
    Multiply-adds: (K + 1)·t·c·⌊c/β⌋ + α·t·c·(t + K).

    Args:
        channels: c.
        num_frames: t.
        kernel_size: K, odd.
        alpha: α, by which the layers that form the kernel are wider than t.
        beta: β, by which the importance's inner layer is narrower than c; at least one channel is left.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an even kernel_size at construction; an input that is no video of these channels
            and frames at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_frames: int,
        kernel_size: int = 3,
        alpha: int = 2,
        beta: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(num_frames >= 1, f"num_frames must be at least 1, got {num_frames}.")
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and at least 1, got {kernel_size}.")
        check(alpha >= 1, f"alpha must be at least 1, got {alpha}.")
        check(beta >= 1, f"beta must be at least 1, got {beta}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        inner, wide = reduced(channels, beta), alpha * num_frames
        self.reduce = nnx.Conv(channels, inner, (kernel_size,), use_bias=False, **types)
        self.reduce_norm = BatchNorm(inner, **types)
        self.expand = nnx.Linear(inner, channels, use_bias=False, **types)
        self.widen = nnx.Linear(num_frames, wide, use_bias=False, **types)
        self.widen_norm = BatchNorm(wide, **types)
        self.form = nnx.Linear(wide, kernel_size, use_bias=False, **types)

    def attention_map(self, x: Float[Array, "*b t h w c"]) -> dict[str, Float[Array, "..."]]:
        """The importance a (*b, t, c) and the kernel θ (*b, c, K)."""
        a, theta = tam_weights(self._video(x), self._weigh, self._form_kernel)
        return {"importance": a, "kernel": theta}

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b t h w c"]:
        """y, in the layout of x."""
        return tam(self._video(x), self._weigh, self._form_kernel)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (t, h, w, c)."""
        t, _, _, c = shape
        (taps,), inner, wide = self.reduce.kernel_size, self.reduce.out_features, self.widen.out_features
        local, of_kernel = (taps + 1) * c * inner, wide * (t + taps)
        return Cost(local + 2 * inner + of_kernel + 2 * wide, t * local + c * of_kernel)

    def _weigh(self, g):
        return self.expand(jax.nn.relu(self.reduce_norm(self.reduce(g))))

    def _form_kernel(self, g):
        return self.form(jax.nn.relu(self.widen_norm(self.widen(g))))

    def _video(self, x):
        check_video(x, self.reduce.in_features)
        frames = self.widen.in_features
        check(x.shape[-4] == frames, f"x must have {frames} frames on its axis -4, got shape {x.shape}.")
        return promote(x, self.reduce)
