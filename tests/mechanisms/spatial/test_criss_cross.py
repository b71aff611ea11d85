"""Criss-cross attention against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.criss_cross import CrissCrossAttention
from tests.mechanisms import against_oracle

SHAPE = (5, 3, 6)
create = partial(partial, CrissCrossAttention, 6, reduction=3)


def layer(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def cross(i, j, h, w):
    """The positions in the column and in the row of (i, j), itself once."""
    return [(g, j) for g in range(h) if g != i] + [(i, u) for u in range(w)]


def attended(x, p, *, seen):
    """For each position, a dict from those it sees to their weights."""
    h, w, _ = x.shape
    q, k = layer(x, p, "query"), layer(x, p, "key")
    for i in range(h):
        for j in range(w):
            positions = seen(i, j, h, w)
            e = np.array([q[i, j] @ k[at] for at in positions])
            yield i, j, positions, np.exp(e - e.max()) / np.exp(e - e.max()).sum()


def one_pass(x, p, *, seen=cross, residual=True, gamma=None):
    v, y = layer(x, p, "value"), x * residual
    for i, j, positions, alpha in attended(x, p, seen=seen):
        o = sum(a * v[at] for a, at in zip(alpha, positions, strict=True))
        y[i, j] += (p["gamma"] if gamma is None else gamma) * o
    return y


def oracle(x, p, *, recurrence=2, **kinds):
    for _ in range(recurrence):
        x = one_pass(x, p, **kinds)
    return x


def weights(x, p, *, recurrence=2):
    h, w, _ = x.shape
    alpha = np.zeros((recurrence, h, w, h + w))
    for r in range(recurrence):
        for i, j, positions, values in attended(x, p, seen=cross):
            for (g, u), value in zip(positions, values, strict=True):
                alpha[r, i, j, h + u if g == i else g] = value
        x = one_pass(x, p)
    return alpha


@pytest.mark.parametrize("recurrence", [1, 2])
def test_it_is_the_paper(recurrence):
    against_oracle.assert_equal(create(recurrence=recurrence), partial(oracle, recurrence=recurrence), SHAPE)
    of_weights = partial(weights, recurrence=recurrence)
    against_oracle.assert_equal(
        create(recurrence=recurrence), of_weights, SHAPE, method="attention_map", gradient=False
    )


MUTANTS = {
    "a single pass": partial(oracle, recurrence=1),
    "itself counted twice": partial(oracle, seen=lambda i, j, h, w: [*cross(i, j, h, w), (i, j)]),
    "not itself": partial(oracle, seen=lambda i, j, h, w: [at for at in cross(i, j, h, w) if at != (i, j)]),
    "everywhere": partial(oracle, seen=lambda i, j, h, w: [(g, u) for g in range(h) for u in range(w)]),
    "the row alone": partial(oracle, seen=lambda i, j, h, w: [(i, u) for u in range(w)]),
    "no residual": partial(oracle, residual=False),
    "no γ": partial(oracle, gamma=1.0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(), MUTANTS[mutant], SHAPE)


def test_it_begins_as_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.float32)
    np.testing.assert_array_equal(CrissCrossAttention(6, rngs=nnx.Rngs(0))(x), x)


@pytest.mark.parametrize("recurrence", [1, 2])
def test_two_passes_reach_the_whole_map(recurrence):
    module = against_oracle.build(create(recurrence=recurrence))
    with jax.enable_x64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
        reached = np.abs(jax.jacobian(lambda x: module(x)[1, 1].sum())(x)).max(-1) > 0
    in_cross = (np.arange(5)[:, None] == 1) | (np.arange(3) == 1)
    np.testing.assert_array_equal(reached, in_cross if recurrence == 1 else True)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_no_score_is_so_large_that_its_mask_gives_nan(dtype):
    module = CrissCrossAttention(6, reduction=3, dtype=dtype, rngs=nnx.Rngs(0))
    module.gamma[...] = jnp.ones(())
    x = 100 * jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), dtype)
    value, slope = jax.value_and_grad(lambda x: module(x).astype(jnp.float32).mean())(x)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_it_has_as_many_parameters_as_one_pass():
    module = nnx.eval_shape(lambda: CrissCrossAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 2 * (64 * 8 + 8) + 64**2 + 64 + 1
