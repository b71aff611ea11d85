"""Pyramid split attention.

    U_i = f_i x,   i = 1 … S
    a = softmax_i(sigmoid(W_2 relu(W_1 mean_hw(U_i))))
    y = [a_1 · U_1, …, a_S · U_S]

with f_i convolutions of k_i×k_i in g_i groups, without biases, each to c/S channels, and W_1 to c/(S·r) features and
W_2 back, with biases, the same for all i. Every feature is seen in S windows, and the windows compete for it: the
weights of its S versions, which depend on the whole map, sum to one.

Differs from the paper: nothing. The authors' code lays the parts of y out from the last to the first, which is what
this does with `kernel_sizes` and `groups` in reverse.

Errors elsewhere: External-Attention-pytorch keeps the convolutions in a plain list, so that they are never trained,
overwrites its input, so that the backward pass fails, and has no groups.

Source: Zhang, Zu, Lu, Zou and Meng, "EPSANet: An Efficient Pyramid Squeeze Attention Block on Convolutional Neural
Network" (2021), arXiv:2105.14447, whose first version speaks of split attention; compared with the authors' code.
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
from attn_flax.mechanisms.layout import check_map, promote, reduced


def psa_pyramid_weights(u: Float[Array, "*b h w c"], excite: Callable, *, splits: int) -> Float[Array, "*b s d"]:
    """a = softmax_i(sigmoid(excite(mean_hw(U_i)))), one for each part and channel of a part.

    Args:
        u: the parts U_i, side by side.
        excite: z -> W_2 relu(W_1 z), any callable on (*b, S, c/S).
        splits: S.
    """
    means = ops.average(u)
    strengths = jax.nn.sigmoid(excite(means.reshape(*means.shape[:-1], splits, -1)))
    return jnp.swapaxes(ops.softmax(jnp.swapaxes(strengths, -2, -1)), -2, -1)


def psa_pyramid(u: Float[Array, "*b h w c"], excite: Callable, *, splits: int) -> Float[Array, "*b h w c"]:
    """y = [a_1 · U_1, …, a_S · U_S], with the a of `psa_pyramid_weights`.

    >>> psa_pyramid(jnp.array([[[2.0, 6.0]]]), lambda z: 0 * z, splits=2)
    Array([[[1., 3.]]], dtype=float32)
    """
    weights = psa_pyramid_weights(u, excite, splits=splits)
    return u * weights.reshape(*weights.shape[:-2], 1, 1, -1)


class PyramidSplitAttention(nnx.Module):
    """Pyramid split attention over maps of any size.

    Parameters, with d = c/S and m = ⌊d/r⌋ or 1: c·d·Σ k_i²/g_i + 2dm + d + m. Multiply-adds: c·d·Σ k_i²/g_i for each
    position, and 2S·dm.

    Args:
        channels: c.
        kernel_sizes: k, all odd; S is their number and must divide c.
        groups: g, each of which must divide d.
        reduction: r.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, even windows, or numbers that do not divide the channels, at construction; an input
            that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_sizes: tuple[int, ...] = (3, 5, 7, 9),
        groups: tuple[int, ...] = (1, 4, 8, 16),
        reduction: int = 16,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        splits = len(kernel_sizes)
        check(
            splits >= 1 and all(k >= 1 and k % 2 == 1 for k in kernel_sizes),
            f"kernel_sizes must be odd and positive, got {kernel_sizes}.",
        )
        check(
            channels % splits == 0,
            f"the number of kernel_sizes must divide channels, got {splits} for channels={channels}.",
        )
        width = channels // splits
        check(
            len(groups) == splits and all(g >= 1 and width % g == 0 for g in groups),
            f"groups must be {splits} numbers of at least 1 that divide the {width} channels of a part, got {groups}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.convs = nnx.List(
            [
                nnx.Conv(
                    channels,
                    width,
                    (k, k),
                    feature_group_count=g,
                    conv_general_dilated=ops.grouped_conv,
                    use_bias=False,
                    **layer,
                )
                for k, g in zip(kernel_sizes, groups, strict=True)
            ]
        )
        self.excite = Perceptron(width, reduced(width, reduction), **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b s d"]:
        """a, for each part a weight for each of its channels."""
        return psa_pyramid_weights(self._parts(x), self.excite, splits=len(self.convs))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return psa_pyramid(self._parts(x), self.excite, splits=len(self.convs))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        splits = len(self.convs)
        windows = sum(
            c // conv.feature_group_count * (c // splits) * conv.kernel_size[0] * conv.kernel_size[1]
            for conv in self.convs
        )
        excite = self.excite.cost(splits)
        return Cost(windows + excite.parameters, h * w * windows + excite.multiply_adds)

    def _parts(self, x):
        check_map(x, self.convs[0].in_features)
        x = promote(x, self.convs[0])
        return jnp.concatenate([conv(x) for conv in self.convs], axis=-1)
