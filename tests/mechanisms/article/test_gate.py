"""The article's gate against its naive derivation, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import functional as F
from attn_flax.nn import ArticleGate
from tests import oracles

N, C, INNER = 7, 6, 3


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(N, C), (INNER, C), (INNER,), (C, INNER), (C,)]
    return [rng.normal(size=shape) for shape in shapes]


def gate(x, w1, b1, w2, b2):
    return F.article_gate(x, lambda x: x @ w1.T + b1, lambda s: s @ w2.T + b2)


def test_the_oracles_gradients_are_those_of_its_output():
    arguments, rng = inputs(), np.random.default_rng(1)
    dy, direction = rng.normal(size=(N, C)), [rng.normal(size=p.shape) for p in arguments]
    gradients = oracles.article_gate_gradients(*arguments, dy)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    numeric = oracles.central_difference(lambda *p: (oracles.article_gate(*p) * dy).sum(), arguments, direction)
    assert slope == pytest.approx(numeric, 1e-6)


def test_function_and_gradients_are_the_oracles():
    arguments, dy = inputs(), np.random.default_rng(1).normal(size=(N, C))
    with jax.enable_x64():
        y, pullback = jax.vjp(gate, *map(jnp.array, arguments))
        np.testing.assert_allclose(y, oracles.article_gate(*arguments), rtol=1e-12)
        expected = oracles.article_gate_gradients(*arguments, dy)
        for gradient, oracle in zip(pullback(jnp.array(dy)), expected, strict=True):
            np.testing.assert_allclose(gradient, oracle, rtol=1e-10, atol=1e-12)


def test_the_module_is_the_oracle_on_any_map():
    _, w1, b1, w2, b2 = inputs(2)
    x = np.random.default_rng(3).normal(size=(3, 2, 5, 4, C))
    with jax.enable_x64():
        module = ArticleGate(C, reduction=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        for linear, w, b in ((module.reduce, w1, b1), (module.expand, w2, b2)):
            linear.kernel.set_value(jnp.array(w.T))
            linear.bias.set_value(jnp.array(b))
        for ours, oracle in ((module, oracles.article_gate), (module.attention_map, oracles.article_gate_values)):
            expected = oracle(x.reshape(-1, C), w1, b1, w2, b2).reshape(x.shape)
            np.testing.assert_allclose(ours(jnp.array(x)), expected, rtol=1e-12)


def relu(x):
    return np.maximum(x, 0)


MUTANTS = {
    "activations swapped": lambda x, w1, b1, w2, b2: x * oracles.sigmoid(relu(x @ w1.T + b1) @ w2.T + b2),
    "no activation inside": lambda x, w1, b1, w2, b2: x * relu((x @ w1.T + b1) @ w2.T + b2),
    "no activation outside": lambda x, w1, b1, w2, b2: x * (oracles.sigmoid(x @ w1.T + b1) @ w2.T + b2),
    "the gate alone": oracles.article_gate_values,
    "one gate for all positions": lambda x, *p: x * oracles.article_gate_values(x, *p).mean(0),
    "a residual": lambda x, *p: x + oracles.article_gate(x, *p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    arguments = inputs(4)
    with jax.enable_x64():
        assert np.abs(MUTANTS[mutant](*arguments) - gate(*map(jnp.array, arguments))).max() > 0.1


def test_the_listing_cannot_run():
    """Its second convolution expects c/8 channels and is given c."""
    x, w1, b1, w2, b2 = inputs(5)
    with pytest.raises(ValueError, match="mismatch"):
        relu(oracles.sigmoid(x @ w1.T + b1) * (x @ w2.T + b2))
