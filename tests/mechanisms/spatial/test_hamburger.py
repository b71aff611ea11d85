"""Hamburger against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.hamburger import Hamburger
from tests.mechanisms import against_oracle

SHAPE = (7, 5, 6)
SMALL = partial(Hamburger, 6, hidden=5, rank=3, steps=4)
CREATE = {
    "as the paper": SMALL,
    "with cheese": partial(SMALL, cheese=True),
    "with other steps in evaluation": partial(SMALL, steps=9, eval_steps=4),
}


def relu(x):
    return np.maximum(x, 0)


def lower(x, p, *, act=relu):
    """X, features by positions."""
    return act(x @ p["lower.kernel"] + p["lower.bias"]).reshape(-1, p["lower.bias"].size).T


def factors(X, D, *, steps=4, temperature=1, C=None, bases_first=False):
    """The bases D, features by rank, and the coefficients C, rank by positions, before the last update."""
    if C is None:
        e = np.exp(temperature * D.T @ X)
        C = e / e.sum(0)
    for _ in range(steps):
        if bases_first:
            D = D * (X @ C.T) / (D @ C @ C.T + 1e-6)
            C = C * (D.T @ X) / (D.T @ D @ C + 1e-6)
        else:
            C = C * (D.T @ X) / (D.T @ D @ C + 1e-6)
            D = D * (X @ C.T) / (D @ C @ C.T + 1e-6)
    return D, C


def last_update(X, D, C):
    return C * (D.T @ X) / (D.T @ D @ C + 1e-6)


def weights(x, p):
    X = lower(x, p)
    return last_update(X, *factors(X, p["bases"].T)).T


def norm(y, p, name):
    return (y - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def upper(x, rebuilt, p, *, norm=norm, end=relu):
    y = rebuilt.T.reshape(*x.shape[:2], -1)
    if "cheese.kernel" in p:
        y = relu(norm(y @ p["cheese.kernel"], p, "cheese_norm"))
    return end(x + norm(y @ p["upper.kernel"], p, "norm"))


def oracle(x, p, *, act=relu, last=last_update, frozen=None, bread=upper, **kinds):
    X = lower(x, p, act=act)
    D, C = frozen or factors(X, p["bases"].T, **kinds)
    return bread(x, D @ last(X, D, C), p)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE, gradient=False)
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, method="attention_map", gradient=False)


@pytest.mark.parametrize("form", ["as the paper", "with cheese"])
def test_through_all_steps_the_derivative_is_that_of_the_output(form):
    against_oracle.assert_equal(partial(CREATE[form], one_step_gradient=False), oracle, SHAPE)


def test_the_one_step_gradient_is_that_of_the_last_update():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["as the paper"])
        p = against_oracle.numbers(module)
        rng = np.random.default_rng(3)
        x, direction, cotangent = (rng.normal(size=SHAPE) for _ in range(3))
        slope = (jax.grad(lambda x: (module(x) * cotangent).sum())(jnp.asarray(x)) * direction).sum()
    frozen = factors(lower(x, p), p["bases"].T)
    ahead, behind = (oracle(x + h * direction, p, frozen=frozen) for h in (1e-6, -1e-6))
    numeric = ((ahead - behind) / 2e-6 * cotangent).sum()
    np.testing.assert_allclose(slope, numeric, rtol=1e-6)


MUTANTS = {
    "coefficients of a fixed size": lambda x, p: oracle(
        x, p, C=np.random.default_rng(0).uniform(size=(3, x.shape[0] * x.shape[1]))
    ),
    "no batch norm": partial(oracle, bread=partial(upper, norm=lambda y, p, name: y)),
    "no relu at the end": partial(oracle, bread=partial(upper, end=lambda y: y)),
    "no relu before": partial(oracle, act=np.abs),
    "no last update": partial(oracle, last=lambda X, D, C: C),
    "bases first": partial(oracle, bases_first=True),
    "a step less": partial(oracle, steps=3),
    "a low temperature": partial(oracle, temperature=10),
    "no residual": partial(oracle, bread=lambda x, rebuilt, p: upper(0 * x, rebuilt, p)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["as the paper"], MUTANTS[mutant], SHAPE)


def test_evaluation_is_deterministic_and_training_draws_bases_for_every_example_and_call():
    module = SMALL(rngs=nnx.Rngs(0))
    x = jnp.stack([jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)] * 2)
    module.eval()
    first, second = module.attention_map(x), module.attention_map(x)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[0], first[1], rtol=1e-5)
    module.train()
    first, second = module.attention_map(x), module.attention_map(x)
    assert jnp.abs(first - second).max() > 1e-3
    assert jnp.abs(first[0] - first[1]).max() > 1e-3


def test_training_takes_its_own_steps():
    outputs = []
    for steps, eval_steps in ((1, 4), (4, 4), (4, 1)):
        module = SMALL(steps=steps, eval_steps=eval_steps, rngs=nnx.Rngs(0))
        outputs.append(module.attention_map(jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)))
    np.testing.assert_array_equal(outputs[1], outputs[2])
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_bases_are_drawn_at_least_zero_and_of_unit_length():
    bases = SMALL(rngs=nnx.Rngs(0)).bases[...]
    assert bases.min() >= 0
    np.testing.assert_allclose(jnp.linalg.norm(bases, axis=-1), np.ones(3), rtol=1e-6)
    assert np.linalg.matrix_rank(bases) == 3


def test_permuted_positions_give_permuted_positions():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["with cheese"])
        x = np.random.default_rng(7).normal(size=(35, 6))
        order = np.random.default_rng(8).permutation(35)
        y, of_permuted = (module(jnp.asarray(a.reshape(SHAPE))).reshape(35, 6) for a in (x, x[order]))
        np.testing.assert_allclose(of_permuted, y[order], atol=1e-12)


@pytest.mark.parametrize("cheese", [False, True])
def test_its_forms_have_as_many_parameters_as_the_authors(cheese):
    module = Hamburger(64, hidden=48, cheese=cheese, rngs=nnx.Rngs(0))
    counted = sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    of_authors = 2 * 64 * 48 + 48 + 2 * 64 + (48 * 48 + 2 * 48 if cheese else 0)
    assert counted == module.cost((8, 8, 64)).parameters == of_authors
