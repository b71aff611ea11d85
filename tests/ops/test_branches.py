"""Branches: weights, mixtures and convolutions in groups or by example, against sums and XLA's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from attn_flax.checks import InputError
from attn_flax.ops import branches


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(actual, desired, rtol=2e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=2e-5), actual, desired)


def xla_conv(x, kernel, *, groups, strides=(1, 1), padding="SAME", dilation=(1, 1)):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# (channels, outputs, groups): one group, groups of one input, of few, of many inputs, more and fewer outputs.
GROUPS = [(6, 4, 1), (6, 6, 6), (6, 12, 6), (6, 3, 3), (8, 16, 2), (12, 4, 2), (1, 3, 1)]


@pytest.mark.parametrize(("c", "o", "groups"), GROUPS)
def test_kernels_by_example_are_those_of_each_example_alone(c, o, groups):
    x, kernels = random(3, 2, 7, 5, c), random(3, 2, 3, 5, c // groups, o, seed=1)
    each = [xla_conv(x[i, j][None], kernels[i, j], groups=groups)[0] for i in range(3) for j in range(2)]
    by_example = jax.jit(functools.partial(branches.conv_by_example, groups=groups))
    assert_close(by_example(x, kernels), jnp.stack(each).reshape(3, 2, 7, 5, o))
    assert_close(by_example(x[0, 0], kernels[0, 0]), each[0])


PLAIN = ((1, 1), "SAME", (1, 1))
CASES = [
    *((sizes, PLAIN) for sizes in GROUPS),
    ((6, 12, 6), ((2, 1), "SAME", (1, 1))),
    ((8, 16, 2), ((2, 1), "VALID", (1, 1))),
    ((6, 3, 3), ((1, 1), ((1, 1), (2, 3)), (1, 2))),
    ((8, 16, 2), ((1, 1), ((1, 1), (2, 3)), (1, 2))),
]


@pytest.mark.parametrize(("sizes", "geometry"), CASES)
def test_convolution_in_groups_is_that_of_xla(sizes, geometry):
    (c, o, groups), (strides, padding, dilation) = sizes, geometry
    x, kernel = random(2, 7, 9, c), random(3, 3, c // groups, o, seed=1)
    given = {"strides": strides, "padding": padding}
    ours = functools.partial(branches.grouped_conv, feature_group_count=groups, rhs_dilation=dilation, **given)
    theirs = functools.partial(xla_conv, groups=groups, dilation=dilation, **given)

    def value_and_gradients(conv):
        y, pullback = jax.vjp(conv, x, kernel)
        return y, pullback(random(*y.shape, seed=2))

    actual, expected = (jax.jit(functools.partial(value_and_gradients, conv))() for conv in (ours, theirs))
    assert_close(actual, expected, rtol=1e-4)


def test_the_second_derivative_of_a_convolution_in_groups_is_that_of_xla():
    x, kernel = random(1, 3, 3, 4), random(3, 3, 2, 4, seed=1)

    def slope(conv):
        return jax.grad(lambda x, kernel: (jax.grad(lambda x: (conv(x, kernel) ** 3).sum())(x) ** 2).sum(), (0, 1))

    ours = functools.partial(branches.grouped_conv, strides=(1, 1), padding="SAME", feature_group_count=2)
    expected = jax.jit(slope(functools.partial(xla_conv, groups=2)))(x, kernel)
    scale = max(float(jnp.abs(g).max()) for g in expected)
    assert_close(*(jax.tree.map(lambda g: g / scale, g) for g in (jax.jit(slope(ours))(x, kernel), expected)))


@pytest.mark.parametrize("groups", [2, 4])
def test_narrow_numbers_are_summed_in_wide_ones(groups):
    x, kernels = random(2, 5, 3, 8), random(2, 3, 3, 8 // groups, 8, seed=1)
    narrow = branches.conv_by_example(x.astype(jnp.bfloat16), kernels.astype(jnp.bfloat16), groups=groups)
    rounded = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, kernels))
    assert narrow.dtype == jnp.bfloat16
    assert_close(narrow.astype(jnp.float32), branches.conv_by_example(*rounded, groups=groups), rtol=2**-8)


def test_experts_mix_their_kernels_and_biases():
    x, weights, experts, biases = random(2, 7, 5, 4), random(2, 3), random(3, 3, 3, 4, 6), random(3, 6)
    each = [xla_conv(x, w, groups=1) + b for w, b in zip(experts, biases, strict=True)]
    expected = sum(weights[:, k, None, None, None] * y for k, y in enumerate(each))
    assert_close(branches.conv_by_experts(x, weights, experts, biases), expected, rtol=1e-4)


def test_branches_are_fused_by_channel():
    maps, scores = [random(2, 7, 5, 4, seed=m) for m in range(3)], random(2, 3, 4)
    weights = branches.branch_softmax(scores)
    exponentials = np.exp(scores)
    assert_close(weights, exponentials / exponentials.sum(-2, keepdims=True))
    expected = np.einsum("mbhwc,bmc->bhwc", np.stack(maps), weights)
    assert_close(branches.fuse_branches(maps, weights), expected)


def test_misfits_are_refused():
    x = random(2, 7, 5, 4)
    with pytest.raises(InputError, match=r"odd windows, got \(2, 3\)"):
        branches.conv_by_example(x, random(2, 2, 3, 4, 4))
    with pytest.raises(InputError, match="c/groups inputs"):
        branches.conv_by_example(x, random(2, 3, 3, 4, 4), groups=2)
    with pytest.raises(InputError, match="must be of 1 branches"):
        branches.fuse_branches([x], random(2, 2, 4))
