"""Split attention.

    U = relu(norm_0(conv(x))),    U = (U_1, ..., U_R)
    s = mean_hw(Σ_r U_r)
    z = relu(norm_1(W_1 s + b_1))
    a_r = softmax_r(W_2r z + b_2r)
    y = Σ_r a_r · U_r

for a radix R, with conv from c to R·c channels in K·R groups, W_1 from c to max(c·R/4, 32) features and every W_2r back
to c, both in K groups: the cardinality K says how many parts of the channels attend by themselves. Of each channel
there are R versions, the splits, from as many parts of the input, and it weighs them by the means of all channels of
its part. With R = 1 the weight is a sigmoid instead.

Differs from the paper: nothing; the splits lie in the order of its implementation, the radix before the cardinality.
timm makes both norms optional (`use_norm=False`, its default) and rounds the features in the middle to a multiple
of 8 (`hidden`).

Errors elsewhere: the authors' first version and some copies take the softmax over wrong features when K > 1, since the
features of W_2 lie by cardinality first. The features in the middle are derived from the channels of the input, not of
the output; here both are c.

Source: Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li and Smola, "ResNeSt: Split-Attention Networks"
(2020), arXiv:2004.08955; compared with the code of its authors.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote, reduced
from attn_flax.ops.branches import branch_softmax, fuse_branches, grouped_conv


def split_attention_weights(splits: Sequence[Float[Array, "*b h w c"]], excite: Callable) -> Float[Array, "*b r c"]:
    """a = softmax_r(excite(mean_hw(Σ_r U_r))), for each channel a weight of each of the r splits; a sigmoid if r = 1.

    Args:
        splits: the maps U_r.
        excite: s -> W_2 relu(norm(W_1 s)), any callable from (*b, c) to (*b, r, c).
    """
    normalize = branch_softmax if len(splits) > 1 else jax.nn.sigmoid
    return normalize(excite(ops.average(sum(splits))))


def split_attention(splits: Sequence[Float[Array, "*b h w c"]], excite: Callable) -> Float[Array, "*b h w c"]:
    """y = Σ_r a_r · U_r, with the a of `split_attention_weights`.

    >>> one, other = jnp.array([[[2.0, -4.0]]]), jnp.array([[[0.0, 8.0]]])
    >>> split_attention([one, other], lambda s: jnp.zeros((2, 2)))
    Array([[[1., 2.]]], dtype=float32)
    >>> split_attention([one], lambda s: jnp.zeros((1, 2)))
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return fuse_branches(splits, split_attention_weights(splits, excite))


class SplitAttention(nnx.Module):
    """Split attention on maps of any size.

    Parameters: k²·c²/K + (1 + R)·c·hidden/K + hidden + R·c, and 2·(R·c + hidden) with norms. Multiply-adds: k²·c²/K at
    each position, and (1 + R)·c·hidden/K.

    Args:
        channels: c, which groups·radix must divide.
        kernel_size: k of the convolution, odd.
        radix: R.
        groups: K, the cardinality.
        reduction: by which the middle is narrower than the R·c channels.
        minimum: features below which the middle does not go.
        hidden: these features, which K must divide, by default max(⌊R·c/reduction⌋, minimum).
        use_norm: whether there are the two norms.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window, channels or features that do not fit the groups, at construction;
            an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        radix: int = 2,
        groups: int = 1,
        reduction: int = 4,
        minimum: int = 32,
        hidden: int | None = None,
        use_norm: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            min(radix, groups) >= 1 and channels % (radix * groups) == 0,
            f"radix and groups must be at least 1 and their product divide channels, got radix={radix}, "
            f"groups={groups}, channels={channels}.",
        )
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd, got {kernel_size}.")
        hidden = reduced(channels * radix, reduction, at_least=minimum) if hidden is None else hidden
        check(
            hidden >= 1 and hidden % groups == 0,
            f"hidden must be at least 1 and a multiple of groups={groups}, got {hidden}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def linear(c_in, c_out):
            sizes = (groups, c_in // groups, c_out // groups)
            initialize = nnx.initializers.lecun_normal(batch_axis=0)
            return nnx.Einsum("...gi,gio->...go", sizes, (groups, c_out // groups), kernel_init=initialize, **layer)

        self.conv = nnx.Conv(
            channels,
            radix * channels,
            (kernel_size, kernel_size),
            feature_group_count=groups * radix,
            use_bias=False,
            conv_general_dilated=grouped_conv,
            **layer,
        )
        self.conv_norm = nnx.data(BatchNorm(radix * channels, **layer) if use_norm else None)
        self.reduce = linear(channels, hidden)
        self.norm = nnx.data(BatchNorm(hidden, **layer) if use_norm else None)
        self.expand = linear(hidden, radix * channels)
        self.radix = radix
        self.groups = groups

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b r c"]:
        """a, for each channel a weight of each split."""
        return split_attention_weights(self._splits(x), self._excite)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return split_attention(self._splits(x), self._excite)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        _, _, of_group = self.reduce.kernel_shape
        hidden, splits = of_group * self.groups, self.radix * c
        convolution = self.conv.kernel_size[0] ** 2 * c * c // self.groups
        layers = (c + splits) * of_group
        norms = 0 if self.norm is None else 2 * (splits + hidden)
        return Cost(convolution + layers + hidden + splits + norms, h * w * convolution + layers)

    def _splits(self, x):
        check_map(x, self.conv.in_features)
        u = self.conv(promote(x, self.conv))
        return jnp.split(jax.nn.relu(u if self.conv_norm is None else self.conv_norm(u)), self.radix, -1)

    def _excite(self, s):
        *batch, c = s.shape
        z = self.reduce(s.reshape(*batch, self.groups, -1)).reshape(*batch, -1)
        z = jax.nn.relu(z if self.norm is None else self.norm(z))
        scores = self.expand(z.reshape(*batch, self.groups, -1))
        by_radix = jnp.swapaxes(scores.reshape(*batch, self.groups, self.radix, -1), -3, -2)
        return by_radix.reshape(*batch, self.radix, c)
