"""The equations are functions: the same numbers and gradients from plain JAX, Flax NNX, Flax Linen and Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from attn_flax import functional as F
from tests.compiled import with_gradients

N, C, INNER = 7, 6, 3


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


KERNELS = [
    (random(1, C, INNER), random(2, INNER)),
    (random(3, INNER, C), random(4, C)),
    (random(5, C, C), random(6, C)),
]


def plain(kernel, bias):
    return lambda x: x @ kernel + bias


def of_nnx(kernel, bias):
    linear = nnx.Linear(*kernel.shape, rngs=nnx.Rngs(0))
    linear.kernel.set_value(kernel)
    linear.bias.set_value(bias)
    return linear


def of_linen(kernel, bias):
    return linen.Dense(kernel.shape[1]).bind({"params": {"kernel": kernel, "bias": bias}})


def of_equinox(kernel, bias):
    linear = eqx.nn.Linear(*kernel.shape, key=jax.random.key(0))
    linear = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (kernel.T, bias))
    return jax.vmap(linear)


def gate(make, kernels, x):
    return F.article_gate(x, make(*kernels[0]), make(*kernels[1]))


def attention(make, kernels, x):
    return F.article_attention(x, make(*kernels[2]), residual=True)


def sum_attention(make, kernels, x):
    return F.article_sum_attention(x, make(*kernels[2]), epsilon=1.0)


@pytest.mark.parametrize("make", [of_nnx, of_linen, of_equinox])
@pytest.mark.parametrize("equation", [gate, attention, sum_attention])
def test_numbers_and_gradients_are_those_of_plain_jax(make, equation):
    x, cotangent = random(7, N, C), random(8, N, C)
    results = []
    for maker in (plain, make):
        outputs = with_gradients(lambda kernels, x, maker=maker: equation(maker, kernels, x), (KERNELS, x), cotangent)
        results.append(jax.tree.leaves(outputs))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert jnp.abs(results[0][0]).max() > 0.1
