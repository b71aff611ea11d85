"""Double attention against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.double_attention import DoubleAttention
from tests.mechanisms import against_oracle
from tests.oracles import softmax_values

SHAPE = (5, 3, 8)
FORMS = {"the paper's": {"c_m": 3, "c_n": 4}, "quarters": {}, "with a residual": {"c_m": 3, "c_n": 4, "residual": True}}
create = partial(partial, DoubleAttention, 8)


def layer(x, p, name):
    return np.array([x_i @ p[f"{name}.kernel"] + p[f"{name}.bias"] for x_i in x])


def weights(x, p):
    x = x.reshape(-1, 8)
    return {
        "gather": softmax_values(layer(x, p, "gather").T),
        "distribute": softmax_values(layer(x, p, "distribute")),
    }


def oracle(x, p, *, attend=weights, residual=False, project=True):
    a, alpha = layer(x.reshape(-1, 8), p, "feature"), attend(x, p)
    g = np.array([sum(alpha_j * a_j for alpha_j, a_j in zip(row, a, strict=True)) for row in alpha["gather"]])
    z = np.array([sum(v_n * g_n for v_n, g_n in zip(row, g, strict=True)) for row in alpha["distribute"]])
    y = layer(z, p, "project") if project else z
    y = y.reshape(*x.shape[:2], -1)
    return x + y if residual else y


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments = FORMS[form]
    against_oracle.assert_equal(create(**arguments), partial(oracle, residual="residual" in arguments), SHAPE)
    against_oracle.assert_equal(create(**arguments), weights, SHAPE, method="attention_map", gradient=False)


def distributed_over_positions(x, p):
    return {**weights(x, p), "distribute": softmax_values(layer(x.reshape(-1, 8), p, "distribute").T).T}


def gathered_over_maps(x, p):
    return {**weights(x, p), "gather": softmax_values(layer(x.reshape(-1, 8), p, "gather")).T}


def mean_for_sum(x, p):
    return {**weights(x, p), "gather": weights(x, p)["gather"] / 15}


MUTANTS = {
    "the softmax of V over the positions": partial(oracle, attend=distributed_over_positions),
    "the softmax of B over the maps": partial(oracle, attend=gathered_over_maps),
    "means for sums": partial(oracle, attend=mean_for_sum),
    "no output convolution": partial(oracle, project=False),
    "a residual": partial(oracle, residual=True),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(**FORMS["the paper's"]), MUTANTS[mutant], SHAPE)


def test_a_softmax_over_the_batch_differs():
    module = against_oracle.build(create(**FORMS["the paper's"]))
    p, (x,) = against_oracle.numbers(module), against_oracle.draw([SHAPE], 1)
    scores = np.array([layer(x_i.reshape(-1, 8), p, "gather").T for x_i in x])
    over_batch = np.exp(scores) / np.exp(scores).sum(0)
    with jax.enable_x64():
        assert np.abs(over_batch - module.attention_map(jnp.asarray(x))["gather"]).max() > 1e-3


def test_it_has_as_many_parameters_as_its_four_convolutions():
    module = nnx.eval_shape(lambda: DoubleAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == (64 + 1) * (16 + 2 * 16) + (16 + 1) * 64
