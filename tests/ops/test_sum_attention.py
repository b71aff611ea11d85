"""Both associations against the oracle, the error bound that the docstring states, and when no map is built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.ops.sum_attention import _reassociated
from tests import oracles
from tests.compiled import with_gradients

EPSILON = 0.01


def quadratic(q, k, v):
    return ops.attend(ops.sum_normalize(ops.dot_product_scores(q, k), epsilon=EPSILON), v)


def linear(q, k, v):
    return _reassociated(q, k, v, epsilon=EPSILON)


def random(seed, n=9, m=34, d=12, e=4):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in [(n, d), (m, d), (m, e)])


def cancelling(seed, **sizes):
    """Keys that come in pairs of almost opposite ones, so that all sums cancel to a few hundredths."""
    q, k, v = random(seed, **sizes)
    k[1::2] = -k[:-1:2] * (1 + 0.03 * np.abs(k[1::2]))
    v[1::2] = v[:-1:2]
    order = np.random.default_rng(seed).permutation(len(k))
    return q, k[order], v[order]


def exact_and_bound(q, k, v):
    """o in float64, and the bound of sum_attention's docstring with u = 2⁻²⁴."""
    q, k, v = map(np.float64, (q, k, v))
    e = q @ k.T
    d = e.sum(-1, keepdims=True)
    g, slope = d / (d**2 + EPSILON**2), (EPSILON**2 - d**2) / (d**2 + EPSILON**2) ** 2
    gamma = 2 * (k.shape[0] + 2 * k.shape[1]) * 2.0**-24
    magnitude = np.abs(q) @ np.abs(k).T
    bound = gamma * (np.abs(g) * (magnitude @ np.abs(v)) + np.abs(slope * (e @ v)) * magnitude.sum(-1, keepdims=True))
    # The bound is of first order: it asks that the error of a denominator is small beside |d| or ε.
    applies = gamma * magnitude.sum(-1, keepdims=True) < 0.1 * np.hypot(d, EPSILON)
    return g * (e @ v), bound, np.broadcast_to(applies, bound.shape)


@pytest.mark.parametrize(("n", "m", "d", "e"), [(9, 34, 12, 4), (35, 33, 3, 5), (7, 5, 16, 16)])
def test_both_associations_are_the_oracles(n, m, d, e):
    q, k, v = map(np.float64, random(0, n, m, d, e))
    values = oracles.sum_values(oracles.scores(q, k), EPSILON)
    expected = oracles.weighted_sums(values, v)
    magnitude = oracles.weighted_sums(np.abs(values), np.abs(v))
    with jax.enable_x64():
        arrays = [jnp.array(x) for x in (q, k, v)]
        forms = {
            "quadratic": quadratic(*arrays),
            "linear": linear(*arrays),
            "chosen": ops.sum_attention(*arrays, epsilon=EPSILON),
        }
    for name, out in forms.items():
        assert np.all(np.abs(np.array(out) - expected) <= 1e-10 * magnitude), name


@pytest.mark.parametrize("make", [random, cancelling])
def test_float32_error_is_within_the_stated_bound(make):
    tightness, checked = [], 0
    for seed in range(50):
        inputs = make(seed)
        exact, bound, applies = exact_and_bound(*inputs)
        one, other = (np.float64(form(*map(jnp.array, inputs))) for form in (quadratic, linear))
        for error in (one - other, one - exact, other - exact):
            assert np.all(np.abs(error)[applies] <= bound[applies])
        tightness.append(np.max((np.abs(one - other) / bound)[applies]))
        checked += applies.sum()
    assert checked > 0.9 * 50 * exact.size
    assert np.max(tightness) > 1e-3  # not vacuous: at most a thousand times what happens


def test_errors_grow_with_cancellation_as_the_bound_says():
    def typical(make):
        errors = []
        for seed in range(20):
            exact, _, _ = exact_and_bound(*make(seed))
            errors.append(np.abs(np.float64(linear(*map(jnp.array, make(seed)))) - exact) / np.abs(exact))
        return np.median(errors)

    assert typical(cancelling) > 10 * typical(random)


def sizes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes_in(getattr(inner, "jaxpr", inner))


def largest_intermediate(n, m, d, e, *, of_gradient):
    def loss(q, k, v):
        return ops.sum_attention(q, k, v).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(n, d), (m, d), (m, e)]]
    f = jax.grad(loss, argnums=(0, 1, 2)) if of_gradient else ops.sum_attention
    return max(sizes_in(jax.make_jaxpr(jax.jit(f))(*shapes).jaxpr))


@pytest.mark.parametrize("of_gradient", [False, True])
def test_the_cheaper_association_is_chosen_by_shape(of_gradient):
    many_tokens = largest_intermediate(n=70, m=50, d=6, e=4, of_gradient=of_gradient)
    assert many_tokens <= 70 * 6  # as q; the map would be of 70·50
    many_features = largest_intermediate(n=6, m=5, d=60, e=70, of_gradient=of_gradient)
    assert many_features <= 6 * 70  # as the output; Σ_j v_j k_jᵀ would be of 60·70


def test_a_zero_denominator_gives_zeros_and_finite_gradients():
    k = jnp.array([[1.0, 2.0], [-1.0, -2.0], [0.5, 1.5], [0.5, 0.5]])
    q, v = jnp.array([[2.0, -1.0]] * 9), jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(linear(q, k, v), np.zeros((9, 2)))
    _, *gradients = with_gradients(linear, (q, k, v), jnp.ones((9, 2)))
    assert all(jnp.isfinite(g).all() for g in gradients)
    assert all(jnp.abs(g).max() > 0 for g in gradients[:2])  # v has a weight of zero
