"""Global-local temporal representation.

    d_r = D_r * x                                       for each dilation r of the pyramid
    z = [x, d_1, d_2, d_3]
    α = softmax(θ(z)ᵀ φ(z))
    y = mean_t(z + norm(W (α g(z))))

with x the t feature vectors of a video's frames, D_r a convolution over three frames that lie r apart, θ, φ and g
linear maps to half of z's width, W the one back, and norm a batch normalisation. The pyramid sees what changes between
near frames; the attention that follows relates far ones; the mean makes one vector of the video.

Differs from the paper: nothing. What the text leaves open is as in the authors' code: the pyramid has neither biases
nor activations, scores are not scaled, and the norm's scale starts at zero, so that at first y = mean_t(z). Initial
kernels are Flax's, the code draws the pyramid's with a deviation of 0.001.

Errors elsewhere: in the collection of attention mechanisms "Awesome-Attention-Mechanism-in-cv" gltr.py is empty.

Source: Li, Wang, Tian, Gao and Zhang, "Global-Local Temporal Representations For Video Person Re-Identification"
(2019), arXiv:1908.10049. Confirmed with the authors' code.
"""

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_channels, promote


def gltr_pyramid(x: Float[Array, "*b t c"], pyramid: Iterable[Callable]) -> Float[Array, "*b t d"]:
    """z = [x, d_1, d_2, …].

    Args:
        x: a feature vector for each frame.
        pyramid: the maps x -> D_r * x, any callables on (*b, t, c).
    """
    return jnp.concatenate([x, *(convolve(x) for convolve in pyramid)], -1)


def gltr_weights(z: Float[Array, "*b t d"], theta: Callable, phi: Callable) -> Float[Array, "*b t t"]:
    """α = softmax(θ(z)ᵀ φ(z)), a row for each frame.

    Args:
        z: that of `gltr_pyramid`.
        theta: queries, any callable on (*b, t, d).
        phi: keys, likewise.
    """
    q, k = (a[..., None, :] for a in (theta(z), phi(z)))
    return ops.dot_product_attention_weights(q, k, scale=1.0)[..., 0, :, :]


def gltr(
    z: Float[Array, "*b t d"], theta: Callable, phi: Callable, g: Callable, restore: Callable
) -> Float[Array, "*b d"]:
    """y = mean_t(z + restore(α g(z))), with the α of `gltr_weights`.

    Args:
        z: that of `gltr_pyramid`.
        theta: queries, any callable on (*b, t, d).
        phi: keys, likewise.
        g: values, likewise.
        restore: o -> norm(W o), back to d features.

    >>> z = jnp.array([[1.0, 0.0], [3.0, 2.0]])
    >>> gltr(z, lambda z: 0 * z, lambda z: z, lambda z: z, lambda o: 10 * o)
    Array([22., 11.], dtype=float32)
    """
    q, k, v = (a[..., None, :] for a in (theta(z), phi(z), g(z)))
    related = z + restore(ops.dot_product_attention(q, k, v, scale=1.0)[..., 0, :])
    return related.mean(-2, dtype=ops.at_least_float32(related.dtype)).astype(related.dtype)


class GlobalLocalTemporal(nnx.Module):
    """The global-local temporal representation: from a feature vector for each frame to one for the video.

    With p = 1 + the number of dilations, the output has p·c features.

    Parameters: K·(p - 1)·c² + 4p·c·hidden + 3hidden + 3p·c (41c² + 18c by default).
    Multiply-adds: t·(K·(p - 1)·c² + 4p·c·hidden) + 2t²·hidden.

    Args:
        channels: c.
        dilations: steps between the frames that a convolution of the pyramid sees, one for each of them.
        kernel_size: K, how many frames that are; odd.
        hidden: the features of queries, keys and values, by default half of p·c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size or dilation below 1, no dilation or an even kernel_size at construction; an input that is
            not (*b, t, c) at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        dilations: Sequence[int] = (1, 2, 3),
        kernel_size: int = 3,
        hidden: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            len(dilations) >= 1 and min(dilations) >= 1,
            f"dilations must be one or more numbers of at least 1, got {tuple(dilations)}.",
        )
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and at least 1, got {kernel_size}.")
        features = channels * (1 + len(dilations))
        hidden = features // 2 if hidden is None else hidden
        check(hidden >= 1, f"hidden must be at least 1, got {hidden}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.pyramid = nnx.List(
            nnx.Conv(channels, channels, (kernel_size,), kernel_dilation=r, use_bias=False, **types) for r in dilations
        )
        self.query = nnx.Linear(features, hidden, **types)
        self.key = nnx.Linear(features, hidden, **types)
        self.value = nnx.Linear(features, hidden, **types)
        self.project = nnx.Linear(hidden, features, **types)
        self.norm = BatchNorm(
            features,
            momentum=0.9,
            epsilon=1e-5,
            scale_init=nnx.initializers.zeros,
            use_fast_variance=False,
            **types,
        )

    def attention_map(self, x: Float[Array, "*b t c"]) -> Float[Array, "*b t t"]:
        """α, a row of weights for each frame."""
        return gltr_weights(self._pyramid(x), self.query, self.key)

    def __call__(self, x: Float[Array, "*b t c"]) -> Float[Array, "*b d"]:
        """y, one vector for each video."""
        restore = lambda o: self.norm(self.project(o))  # noqa: E731
        return gltr(self._pyramid(x), self.query, self.key, self.value, restore)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (t, c)."""
        t, c = shape
        features, hidden = self.query.in_features, self.query.out_features
        maps = sum(conv.kernel_size[0] for conv in self.pyramid) * c * c + 4 * features * hidden
        return Cost(maps + 3 * hidden + 3 * features, t * maps + 2 * t * t * hidden)

    def _pyramid(self, x):
        channels = self.pyramid[0].in_features
        check_channels(x, channels)
        check(
            x.ndim >= 2 and x.shape[-2] >= 1,
            f"x must be the frames' features (*b, t, {channels}), got shape {x.shape}.",
        )
        return gltr_pyramid(promote(x, self.query), self.pyramid)
