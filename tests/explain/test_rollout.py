"""Attention rollout against its derivation in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.explain import attention_maps, attention_rollout
from attn_flax.nn import Article


def random_weights(*shape, seed=0):
    powers = np.exp(np.random.default_rng(seed).normal(size=shape))
    return powers / powers.sum(-1, keepdims=True)


MAPS = [random_weights(2, 3, 5, 5, seed=seed) for seed in range(3)]


def rollout(maps, fuse=np.mean, residual=0.5, normalize=True):
    """Of one example's maps (k, n, n)."""
    n = maps[0].shape[-1]
    total = np.eye(n)
    for heads in maps:
        mixed = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                mixed[i, j] = (1 - residual) * fuse([head[i, j] for head in heads]) + residual * (i == j)
            mixed[i] /= sum(mixed[i]) if normalize else 1
        total = np.array([[sum(mixed[i, m] * total[m, j] for m in range(n)) for j in range(n)] for i in range(n)])
    return total


@pytest.mark.parametrize("fuse", ["mean", "max", "min"])
def test_it_is_the_paper(fuse):
    got = attention_rollout([jnp.asarray(a, jnp.float32) for a in MAPS], fuse=fuse)
    expected = [rollout([a[i] for a in MAPS], getattr(np, fuse)) for i in range(2)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


MUTANTS = {
    "the layers in the other order": lambda maps: rollout(maps[::-1]),
    "no residual": lambda maps: rollout(maps, residual=0),
    "the first head": lambda maps: rollout(maps, fuse=lambda heads: heads[0]),
    "transposed": lambda maps: rollout([a.swapaxes(1, 2) for a in maps]),
    "rows not normalised": lambda maps: rollout(maps, np.max, normalize=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    fuse = "max" if mutant == "rows not normalised" else "mean"
    got = attention_rollout([jnp.asarray(a, jnp.float32) for a in MAPS], fuse=fuse)
    assert np.abs(got[0] - MUTANTS[mutant]([a[0] for a in MAPS])).max() > 1e-2


def test_maps_without_heads_and_with_other_batch_axes():
    maps = [jnp.asarray(a, jnp.float32) for a in MAPS]
    expected = attention_rollout(maps)
    np.testing.assert_allclose(attention_rollout([a.mean(1) for a in maps]), expected, rtol=1e-5)
    np.testing.assert_allclose(attention_rollout([maps[0], *(a.mean(1) for a in maps[1:])]), expected, rtol=1e-5)
    np.testing.assert_allclose(attention_rollout([a[0] for a in maps], num_batch_dims=0), expected[0], rtol=1e-5)
    stacked = attention_rollout([a[:, None] for a in maps], num_batch_dims=2)
    np.testing.assert_allclose(stacked, expected[:, None], rtol=1e-5)


def test_a_query_that_sees_no_key_keeps_itself():
    weights = jnp.array([[[0.0, 0.0], [0.5, 0.5]]])
    np.testing.assert_allclose(attention_rollout([weights]), [[[1, 0], [0.25, 0.75]]])


def test_of_the_maps_of_a_network():
    module = Article(4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 4)), jnp.float32)
    weights = np.asarray(module.attention_map(x), np.float64)
    expected = [rollout([a[None]]) for a in weights]
    np.testing.assert_allclose(attention_rollout(attention_maps(module, x).values()), expected, rtol=1e-4)


REFUSALS = {
    "no map": ([], {}, "maps must hold at least one map"),
    "a gate": ([np.ones((2, 7, 5, 6))], {}, r"maps must be .* with 1 batch axes, got shape \(2, 7, 5, 6\)"),
    "axes": ([np.ones((5, 5))], {}, r"maps must be .*, got shape \(5, 5\)"),
    "sizes": ([MAPS[0], np.ones((2, 4, 4))], {}, r"same batch and tokens, got \[\(2, 5, 5\), \(2, 4, 4\)\]"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    maps, arguments, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        attention_rollout([jnp.asarray(a, jnp.float32) for a in maps], **arguments)
