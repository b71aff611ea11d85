"""Selective kernel.

    U_m = relu(norm_m(conv_m(x)))
    s = mean_hw(Σ_m U_m)
    z = relu(norm(W_1 s))
    a_m = softmax_m(W_2m z)
    y = Σ_m a_m · U_m

with conv_m in g groups and of growing reach, W_1 from c to max(c/r, L) features, and every W_2m back to c. Each channel
chooses softly between the reaches, by what all channels see with all of them, and chooses the same at all positions.
The whole stands in the place of a convolution, and so may be from other channels to c, and at steps of s positions.

Differs from the paper: nothing. The convolutions are 3×3 with dilation (k - 1)/2 where k×k is meant; `dilated=False`
makes them k×k. Where 32 groups do not divide the channels their greatest common divisor is the default. timm's
form is `groups=1`, with a `hidden` of c/16 rounded to a multiple of 8, and with `split_input` its default, in which
every branch sees its own part of the channels.

Errors elsewhere: timm splits the input between the branches by default and has no floor L = 32, so that 64 channels are
squeezed into 8; PytorchInsight has no floor either and pairs a 3×3 convolution without groups with one in groups;
External-Attention-pytorch has kernels of 1, 3, 5 and 7 without groups, and neither norm nor relu before the softmax.

Source: Li, Wang, Hu and Yang, "Selective Kernel Networks" (2019), arXiv:1903.06586; compared with the network
definition of its authors.
"""

import math
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
from attn_flax.mechanisms.layout import check_map, hidden_width, promote
from attn_flax.ops.branches import branch_softmax, fuse_branches, grouped_conv


def sk_weights(branches: Sequence[Float[Array, "*b h w c"]], select: Callable) -> Float[Array, "*b m c"]:
    """a = softmax_m(select(mean_hw(Σ_m U_m))), for each channel a weight of each of the m branches.

    Args:
        branches: the maps U_m.
        select: s -> W_2 relu(norm(W_1 s)), any callable from (*b, c) to (*b, m·c), those of a branch in a row.
    """
    scores = select(ops.average(sum(branches)))
    return branch_softmax(scores.reshape(*scores.shape[:-1], len(branches), -1))


def sk(branches: Sequence[Float[Array, "*b h w c"]], select: Callable) -> Float[Array, "*b h w c"]:
    """y = Σ_m a_m · U_m, with the a of `sk_weights`.

    >>> near, far = jnp.array([[[2.0, -4.0]]]), jnp.array([[[0.0, 8.0]]])
    >>> sk([near, far], lambda s: jnp.zeros(4))  # no branch stands out: their mean
    Array([[[1., 2.]]], dtype=float32)
    """
    return fuse_branches(branches, sk_weights(branches, select))


class SelectiveKernel(nnx.Module):
    """Selective kernels on maps of any size.

    Parameters, of M branches: Σ k²·c_in·c/g of the convolutions, c·hidden·(1 + M), and 2c·M + 2·hidden of the norms;
    with `split_input` the convolutions have an M-th of theirs. Multiply-adds: those of the convolutions at each
    position of y, and c·hidden·(1 + M).

    Args:
        channels: c, of y.
        in_channels: c_in, of x, by default c.
        stride: s.
        kernel_sizes: the size k of each branch's window, odd.
        dilated: whether a larger window than 3×3 is a dilated one of 3×3.
        groups: g of each convolution; by default the greatest common divisor of 32, c and the channels it sees.
        reduction: r.
        hidden: the features in the middle, by default max(⌊c/r⌋, L) with L = 32.
        split_input: whether each branch sees only its part of the channels.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window, no branch, channels that branches or groups do not divide, at
            construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        in_channels: int | None = None,
        stride: int = 1,
        kernel_sizes: Sequence[int] = (3, 5),
        dilated: bool = True,
        groups: int | None = None,
        reduction: int = 16,
        hidden: int | None = None,
        split_input: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        in_channels = channels if in_channels is None else in_channels
        for name, size in (("channels", channels), ("in_channels", in_channels), ("stride", stride)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        hidden = hidden_width(channels, reduction, hidden, at_least=32)
        check(
            len(kernel_sizes) >= 1 and all(k >= 1 and k % 2 for k in kernel_sizes),
            f"kernel_sizes must be odd, one for each branch, got {tuple(kernel_sizes)}.",
        )
        self.parts = len(kernel_sizes) if split_input else 1
        check(
            in_channels % self.parts == 0,
            f"the {self.parts} branches must divide in_channels to split the input, got {in_channels}.",
        )
        seen = in_channels // self.parts
        groups = math.gcd(32, channels, seen) if groups is None else groups
        check(
            groups >= 1 and channels % groups == seen % groups == 0,
            f"groups must be at least 1 and divide the {seen} channels that a branch sees and the {channels} of y, "
            f"got {groups}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def conv(k):
            size, dilation = (3, (k - 1) // 2) if dilated and k > 3 else (k, 1)
            return nnx.Conv(
                seen,
                channels,
                (size, size),
                stride,
                padding=dilation * (size // 2),
                kernel_dilation=dilation,
                feature_group_count=groups,
                use_bias=False,
                conv_general_dilated=grouped_conv,
                **layer,
            )

        self.convs = nnx.List([conv(k) for k in kernel_sizes])
        self.norms = nnx.List([BatchNorm(channels, **layer) for _ in kernel_sizes])
        self.reduce = nnx.Linear(channels, hidden, use_bias=False, **layer)
        self.norm = BatchNorm(hidden, **layer)
        self.expand = nnx.Linear(hidden, len(kernel_sizes) * channels, use_bias=False, **layer)
        self.in_channels = in_channels
        self.stride = stride

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b m d"]:
        """a, for each channel a weight of each branch."""
        return sk_weights(self._branches(x), self._select)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y, in the layout of x, of ⌈h/s⌉·⌈w/s⌉ positions."""
        return sk(self._branches(x), self._select)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c_in)."""
        h, w = (-(-size // self.stride) for size in shape[:2])
        c, hidden, branches = self.reduce.in_features, self.reduce.out_features, len(self.convs)
        convolutions = sum(math.prod(conv.kernel_size) * conv.kernel_shape[-2] * c for conv in self.convs)
        layers = c * hidden * (1 + branches)
        return Cost(convolutions + layers + 2 * (c * branches + hidden), h * w * convolutions + layers)

    def _branches(self, x):
        check_map(x, self.in_channels)
        inputs = jnp.split(promote(x, self.reduce), self.parts, -1) * (len(self.convs) // self.parts)
        parts = zip(inputs, self.convs, self.norms, strict=True)
        return [jax.nn.relu(norm(conv(u))) for u, conv, norm in parts]

    def _select(self, s):
        return self.expand(jax.nn.relu(self.norm(self.reduce(s))))
