"""Highway layers against their derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.branch.highway import Highway
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {
    "paper": partial(Highway, 6),
    "one layer of tanh": partial(Highway, 6, layers=1, activation=jnp.tanh),
    "learned carry": partial(Highway, 6, learned_carry=True),
}
ACTIVATIONS = {"one layer of tanh": np.tanh}


def relu(u):
    return np.maximum(u, 0)


def affine(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def run(x, p, *, act=relu, gate=sigmoid, carry=None):
    """The output, and the gates of each layer."""
    gates = []
    for layer in range(sum(name.startswith("gates") for name in p) // 2):
        t = gate(affine(x, p, f"gates.{layer}"))
        learned = affine(x, p, f"carries.{layer}") if f"carries.{layer}.kernel" in p else x
        carried = (1 - t) * learned if carry is None else carry(t, x)
        x = t * act(affine(x, p, f"transforms.{layer}")) + carried
        gates.append(t)
    return x, np.stack(gates, -2)


def oracle(x, p, **kinds):
    return run(x, p, **kinds)[0]


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    act = ACTIVATIONS.get(form, relu)
    against_oracle.assert_equal(CREATE[form], partial(oracle, act=act), SHAPE)
    gates = lambda x, p: run(x, p, act=act)[1]  # noqa: E731
    against_oracle.assert_equal(CREATE[form], gates, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "a learned carry": partial(oracle, carry=lambda t, x: (1 - t) * (x @ np.roll(np.eye(6), 1, 0))),
    "a residual": partial(oracle, carry=lambda t, x: x),
    "nothing carried": partial(oracle, carry=lambda t, x: 0 * x),
    "the gate carries": lambda x, p: oracle(x, p, gate=lambda e: sigmoid(-e)),
    "no activation": partial(oracle, act=lambda u: u),
    "no sigmoid": partial(oracle, gate=lambda e: e),
    "one layer": lambda x, p: oracle(x, {name: value for name, value in p.items() if ".1." not in name}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["paper"], MUTANTS[mutant], SHAPE)


def test_a_learned_carry_is_not_the_paper():
    against_oracle.assert_different(CREATE["learned carry"], partial(oracle, carry=lambda t, x: (1 - t) * x), SHAPE)


def test_a_very_negative_gate_carries_its_input_through():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(Highway(6, gate_bias=-40.0, rngs=nnx.Rngs(0))(x), x, rtol=1e-6)


@pytest.mark.parametrize(("learned_carry", "maps"), [(False, 2), (True, 3)])
def test_parameters_of_a_layer(learned_carry, maps):
    module = Highway(6, layers=1, learned_carry=learned_carry, rngs=nnx.Rngs(0))
    assert module.cost(SHAPE).parameters == maps * (6 * 6 + 6)
