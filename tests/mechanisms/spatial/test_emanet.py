"""Expectation-maximisation attention against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.emanet import ExpectationMaximizationAttention, emanet_attention
from tests.mechanisms import against_oracle

SHAPE, BASES = (7, 5, 6), 4
CREATE = {
    "as the authors": partial(ExpectationMaximizationAttention, 6, num_bases=BASES),
    "differentiable": partial(ExpectationMaximizationAttention, 6, num_bases=BASES, differentiable=True),
}


def unit(mu):
    return np.array([mu_k / (1e-6 + np.sqrt(sum(mu_k**2))) for mu_k in mu])


def steps(u, mu, *, number=3, over_bases=True, unit=unit, mean=True):
    for _ in range(number):
        e = np.exp(np.array([[u_n @ mu_k for mu_k in mu] for u_n in u]))
        z = e / e.sum(1, keepdims=True) if over_bases else e / e.sum(0)
        shares = z / (1e-6 + z.sum(0)) if mean else z
        mu = unit(np.array([sum(shares[n, k] * u[n] for n in range(len(u))) for k in range(len(mu))]))
    return z, mu


def embedded(x, p):
    return (x @ p["embed.kernel"] + p["embed.bias"]).reshape(-1, x.shape[-1])


def weights(x, p):
    return steps(embedded(x, p), p["bases"])[0]


def norm(y, p):
    return (y - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]


def oracle(x, p, *, residual=1, act=lambda u: np.maximum(u, 0), norm=norm, **kinds):
    z, mu = steps(embedded(x, p), p["bases"], **kinds)
    rebuilt = act((z @ mu).reshape(x.shape))
    return np.maximum(residual * x + norm(rebuilt @ p["project.kernel"], p), 0)


def test_it_is_the_paper():
    against_oracle.assert_equal(CREATE["differentiable"], oracle, SHAPE)
    against_oracle.assert_equal(CREATE["as the authors"], oracle, SHAPE, gradient=False)
    against_oracle.assert_equal(CREATE["as the authors"], weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "a step less": partial(oracle, number=2),
    "a step more": partial(oracle, number=4),
    "a softmax over the positions": partial(oracle, over_bases=False),
    "bases of any length": partial(oracle, unit=lambda mu: mu),
    "no residual": partial(oracle, residual=0),
    "no relu before the second layer": partial(oracle, act=lambda u: u),
    "no norm": partial(oracle, norm=lambda y, p: y),
    "no relu at the end": lambda x, p: np.where(oracle(x, p) > 0, oracle(x, p), -1),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["as the authors"], MUTANTS[mutant], SHAPE)


def trained(create, batch):
    """The module after a call in training mode, and its numbers before it."""
    module = against_oracle.build(create)
    before = against_oracle.numbers(module)
    module.train()
    module(jnp.asarray(batch))
    return module, before


@pytest.mark.parametrize("momentum", [0.9, 0.25])
def test_training_moves_the_bases_towards_the_mean_of_the_batch(momentum):
    batch = np.random.default_rng(5).normal(size=(3, *SHAPE))
    with jax.enable_x64():
        module, p = trained(partial(CREATE["as the authors"], momentum=momentum), batch)
        mean = np.mean([steps(embedded(x, p), p["bases"])[1] for x in batch], 0)
        moved = np.asarray(module.bases[...])
    np.testing.assert_allclose(moved, momentum * p["bases"] + (1 - momentum) * mean, rtol=1e-9)
    mmsegs = unit(moved)
    the_other_end = (1 - momentum) * p["bases"] + momentum * mean
    for mistake in (p["bases"], mean, mmsegs, the_other_end):
        assert np.abs(moved - mistake).max() > 1e-3


def test_a_call_in_evaluation_moves_nothing():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["as the authors"])
        before = np.asarray(module.bases[...])
        module(jnp.ones(SHAPE))
        np.testing.assert_array_equal(module.bases[...], before)


def test_the_bases_are_no_parameters_and_start_at_unit_length():
    module = ExpectationMaximizationAttention(6, rngs=nnx.Rngs(0))
    assert "bases" not in nnx.state(module, nnx.Param)
    np.testing.assert_allclose(jnp.linalg.norm(module.bases[...], axis=-1), np.ones(64), rtol=1e-4)


def test_the_authors_first_layer_never_learns():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["as the authors"])
        x = jnp.asarray(np.random.default_rng(6).normal(size=SHAPE))
        gradients = nnx.grad(lambda module: module(x).sum())(module)
    assert not gradients.embed.kernel[...].any()
    assert gradients.project.kernel[...].any()


def test_the_derivative_is_finite_for_a_map_of_zeros():
    u, bases = jnp.zeros((5, 3)), jnp.eye(3)
    assert jnp.isfinite(jax.grad(lambda u: emanet_attention(u, bases).sum())(u)).all()


def test_permuted_positions_give_permuted_positions():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["as the authors"])
        x = np.random.default_rng(7).normal(size=(35, 6))
        order = np.random.default_rng(8).permutation(35)
        y, of_permuted = (module(jnp.asarray(a.reshape(SHAPE))).reshape(35, 6) for a in (x, x[order]))
        np.testing.assert_allclose(of_permuted, y[order], atol=1e-12)
