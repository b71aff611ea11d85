"""Branches: maps weighed against each other, kernels mixed for each example, convolutions in groups.

A convolution whose kernel differs by example, or that runs in groups, is what branches cost. XLA's own, with as many
groups as examples or many groups of few channels, is slow on CPU, above all its derivatives. Here they are sums of few
dense or depthwise convolutions, or of one product for each tap of the window.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops.convolution import conv_general_dilated
from attn_flax.ops.depthwise import depthwise_conv
from attn_flax.ops.normalizers import softmax
from attn_flax.ops.platforms import by_platform
from attn_flax.ops.precision import at_least_float32

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
# Up to how many inputs of a group a depthwise convolution for each is faster on CPU than a dense one for each group.
FEW_INPUTS = 4


def branch_softmax(scores: Float[Array, "*b m c"]) -> Float[Array, "*b m c"]:
    """a_mc = exp(e_mc) / Σ_m exp(e_mc): for each channel, weights of m branches that sum to one.

    >>> branch_softmax(jnp.array([[0.0, 5.0], [0.0, 5.0]]))
    Array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    return jnp.swapaxes(softmax(jnp.swapaxes(scores, -1, -2)), -1, -2)


def fuse_branches(
    branches: Sequence[Float[Array, "*b h w c"]], weights: Float[Array, "*b m c"]
) -> Float[Array, "*b h w c"]:
    """y = Σ_m a_m ∘ U_m, a weight for each branch and channel, the same at all positions.

    Raises:
        InputError: other numbers of branches and of weights.

    >>> fuse_branches([jnp.ones((1, 1, 2)), 3 * jnp.ones((1, 1, 2))], jnp.array([[1.0, 0.5], [0.0, 0.5]]))
    Array([[[1., 2.]]], dtype=float32)
    """
    check(
        len(branches) == weights.shape[-2],
        f"weights must be of {len(branches)} branches, got shape {weights.shape}.",
    )
    return sum(u * weights[..., m, None, None, :] for m, u in enumerate(branches))


def mix(weights: Float[Array, "*b k"], experts: Float[Array, "k ..."]) -> Float[Array, "..."]:
    """W = Σ_k α_k W_k for each example, in the type of the experts; summed in float32 or wider.

    >>> mix(jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([[2.0, 4.0], [0.0, 2.0]]))
    Array([[2., 4.],
           [1., 3.]], dtype=float32)
    """
    wide = at_least_float32(experts.dtype)
    mixed = jnp.tensordot(weights.astype(experts.dtype), experts, 1, preferred_element_type=wide)
    return mixed.astype(experts.dtype)


def conv_by_experts(
    x: Float[Array, "*b h w c"],
    weights: Float[Array, "*b k"],
    experts: Float[Array, "k p q i o"],
    biases: Float[Array, "k o"] | None = None,
    *,
    groups: int = 1,
) -> Float[Array, "*b h w o"]:
    """y = (Σ_k α_k W_k) * x + Σ_k α_k b_k: the convolution that each example mixes from the experts'.

    >>> x, experts = jnp.array([[[1.0]]]), jnp.array([2.0, 3.0]).reshape(2, 1, 1, 1, 1)
    >>> conv_by_experts(x, jnp.array([1.0, 10.0]), experts)
    Array([[[32.]]], dtype=float32)
    """
    y = conv_by_example(x, mix(weights, experts), groups=groups)
    return y if biases is None else y + mix(weights, biases)[..., None, None, :]


def conv_by_example(
    x: Float[Array, "*b h w c"], kernels: Float[Array, "*b p q i o"], *, groups: int = 1
) -> Float[Array, "*b h w o"]:
    """W_b * x_b, zeros around the map: every example b is convolved with a kernel of its own.

    A product for each tap of the window, batched over the examples; where a group has few inputs, a depthwise
    convolution for each of them. Examples never meet, so a sharded batch stays so.

    Args:
        x: maps.
        kernels: one for each, of a window of odd sizes, i = c/groups inputs and o outputs, those of a group in a row.
        groups: into which inputs and outputs are divided.

    Raises:
        InputError: a window of an even size; channels that do not fit kernel and groups.

    >>> x = jnp.ones((2, 1, 3, 1))
    >>> kernels = jnp.array([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]).reshape(2, 1, 3, 1, 1)
    >>> conv_by_example(x, kernels).squeeze()
    Array([[1., 1., 1.],
           [2., 3., 2.]], dtype=float32)
    """
    *batch, p, q, i, o = kernels.shape
    check(p % 2 == 1 and q % 2 == 1, f"kernels must be of odd windows, got {(p, q)}.")
    check(
        x.shape[-1] == i * groups and o % groups == 0,
        f"kernels must have c/groups inputs and a multiple of groups as outputs, got kernels {kernels.shape} for maps "
        f"{x.shape} and {groups} groups.",
    )
    if i > FEW_INPUTS:
        return _sum_over_taps(x, kernels, groups)
    of_one = functools.partial(_sum_over_inputs, groups=groups)
    y = jax.vmap(of_one)(*(a.reshape(math.prod(batch), *a.shape[len(batch) :]) for a in (x, kernels)))
    return y.reshape(*batch, *y.shape[1:])


def _sum_over_taps(x, kernels, groups):
    *_, p, q, i, o = kernels.shape
    h, w = x.shape[-3:-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(p // 2,) * 2, (q // 2,) * 2, (0, 0)])
    # An axis of one group would cost XLA on CPU a factor of three.
    of_group, equation = ((groups,), "...hwgi,...igo->...hwgo") if groups > 1 else ((), "...hwi,...io->...hwo")

    def product(row, column):
        met = padded[..., row : row + h, column : column + w, :]
        kernel = kernels[..., row, column, :, :]
        return jnp.einsum(
            equation,
            met.reshape(*met.shape[:-1], *of_group, i),
            kernel.reshape(*kernel.shape[:-1], *of_group, o // groups),
            preferred_element_type=at_least_float32(x.dtype),
        )

    y = sum(itertools.starmap(product, itertools.product(range(p), range(q))))
    return y.reshape(*x.shape[:-1], o).astype(x.dtype)


def _sum_over_inputs(x, kernel, *, groups, **geometry):
    """The m-th input of every group meets all outputs of its group in one depthwise convolution."""
    *_, i, o = kernel.shape
    wide = at_least_float32(x.dtype)
    each = (jnp.repeat(x[..., m::i].astype(wide), o // groups, -1) for m in range(i))
    each = map(lax.optimization_barrier, each)  # or derivatives would be computed anew for each of the repeated
    return sum(depthwise_conv(u, kernel[..., m, :], **geometry) for m, u in enumerate(each)).astype(x.dtype)


def grouped_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "p q i o"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int,
    rhs_dilation: Sequence[int] | None = None,
    **others: Any,
) -> Float[Array, "b s t o"]:
    """`jax.lax.conv_general_dilated` of maps with channels last, fast on CPU in any number of groups.

    A single group is `conv_general_dilated`'s.

    For `flax.nnx.Conv(..., conv_general_dilated=grouped_conv)`. Reverse-mode derivatives of any order.

    Args:
        x: maps.
        kernel: of i = c/groups inputs and o outputs, those of a group in a row.
        strides: steps of the output positions.
        padding: "SAME", "VALID" or the zeros to add before and after each axis.
        feature_group_count: the groups.
        rhs_dilation: steps between the taps; one by default.
        **others: further arguments of `jax.lax.conv_general_dilated`, where there is one group; of no effect else,
            maps being neither of another layout nor dilated themselves.

    >>> x, kernel = jnp.array([[[[1.0, 2.0, 3.0, 4.0]]]]), jnp.ones((1, 1, 2, 2))
    >>> grouped_conv(x, kernel, (1, 1), "SAME", feature_group_count=2).squeeze()
    Array([3., 7.], dtype=float32)
    """
    if feature_group_count == 1:
        others.setdefault("dimension_numbers", CHANNELS_LAST)
        return conv_general_dilated(x, kernel, strides, padding, rhs_dilation=rhs_dilation, **others)
    dilation = (1, 1) if rhs_dilation is None else tuple(rhs_dilation)
    padding = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    geometry = (feature_group_count, tuple(strides), padding, dilation)
    cpu, default = (functools.partial(form, geometry=geometry) for form in (_in_few_parts, _at_once))
    return by_platform(cpu, default)(x, kernel)


def _in_few_parts(x, kernel, geometry):
    """A depthwise convolution for each input of a group where these are few, else a dense one for each group."""
    groups, strides, padding, dilation = geometry
    if kernel.shape[-2] <= FEW_INPUTS:
        return _sum_over_inputs(x, kernel, groups=groups, strides=strides, padding=padding, dilation=dilation)
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([_at_once(u, w, (1, strides, padding, dilation)) for u, w in parts], -1)


def _at_once(x, kernel, geometry):
    groups, strides, padding, dilation = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=CHANNELS_LAST,
        feature_group_count=groups,
    )
