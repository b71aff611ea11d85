"""Dense-and-implicit attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.dia import Dia
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPES = ((7, 5, 6), (6,), (6,))


class Unpacked(Dia):
    """With the parts of the state as arguments of their own."""

    def step(self, x, h, c):
        return self(x, (h, c))

    def gate(self, x, h, c):
        return self.attention_map(x, (h, c))


CREATE = partial(Unpacked, 6, reduction=2)


def layers(z, p, name):
    hidden = np.maximum(z @ p[f"{name}.reduce.kernel"] + p[f"{name}.reduce.bias"], 0)
    return hidden @ p[f"{name}.expand.kernel"] + p[f"{name}.expand.bias"]


def step(x, h, c, p, *, order=(0, 1, 2, 3), end=sigmoid, candidate=np.tanh):
    mean = np.array([x[:, :, k].sum() / x[:, :, k].size for k in range(x.shape[-1])])
    gates = np.split(layers(mean, p, "read") + layers(h, p, "recall"), 4)
    i, f, g, o = (gates[k] for k in order)
    c = sigmoid(f) * c + sigmoid(i) * candidate(g)
    h = sigmoid(o) * end(c)
    return x * h, (h, c)


def test_it_is_the_paper():
    against_oracle.assert_equal(CREATE, step, *SHAPES, method="step")
    weights = lambda x, h, c, p: step(x, h, c, p)[1][0]  # noqa: E731
    against_oracle.assert_equal(CREATE, weights, *SHAPES, method="gate", gradient=False)


MUTANTS = {
    "no state": lambda x, h, c, p: step(x, 0 * h, 0 * c, p),
    "tanh at the end": partial(step, end=np.tanh),
    "a sigmoid in the middle": partial(step, candidate=sigmoid),
    "the gates in another order": partial(step, order=(1, 0, 2, 3)),
    "a residual": lambda x, h, c, p: (x + step(x, h, c, p)[0], (h, c)),
    "the last gate": lambda x, h, c, p: (x * h, (h, c)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], *SHAPES, method="step")


def test_the_state_runs_from_block_to_block_of_one_cell():
    module = CREATE(rngs=nnx.Rngs(0))
    p = against_oracle.numbers(module)
    maps = np.random.default_rng(0).normal(size=(3, 7, 5, 6)).astype("float32")
    state = module.zero_state(jnp.asarray(maps[0]))
    h = c = np.zeros(6)
    for x in maps:
        y, state = module(jnp.asarray(x), state)
        expected, (h, c) = step(x, h, c, p)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_the_zero_state_has_the_batch_axes_and_the_type_of_the_map():
    module = Dia(6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    h, c = module.zero_state(jnp.ones((2, 3, 7, 5, 6)))
    assert (h.shape, c.shape, h.dtype, c.dtype) == ((2, 3, 6), (2, 3, 6), jnp.bfloat16, jnp.bfloat16)
    assert not h.any()
    assert not c.any()


def test_its_width_is_that_of_the_authors():
    assert Dia(64, rngs=nnx.Rngs(0)).cost((7, 5, 64)).parameters == 2.5 * 64**2 + 8.5 * 64
