"""The non-local block against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.non_local import NonLocal
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (5, 3, 8)
PAPER = {"scale": 1.0, "window": 1}
FORMS = {
    "the paper's": ({}, PAPER),
    "the authors' code": ({"scale": "hidden", "subsample": 2}, {"scale": 4**-0.5, "window": 2}),
    "timm's": ({"scale": "channels", "hidden": 3}, {"scale": 8**-0.5, "window": 1}),
    "without norm": ({"norm": False}, PAPER),
}
create = partial(partial, NonLocal, 8)


def layer(x, p, name):
    return np.array([x_i @ p[f"{name}.kernel"] + p[f"{name}.bias"] for x_i in x.reshape(-1, x.shape[-1])])


def pooled(x, window):
    rows, columns = (range(0, s - s % window, window) for s in x.shape[:2])
    return np.array([[x[i : i + window, j : j + window].max((0, 1)) for j in columns] for i in rows])


def weights(x, p, *, scale, window):
    return softmax_values(scale * scores(layer(x, p, "query"), layer(pooled(x, window), p, "key")))


def oracle(x, p, *, residual=True, norm=True, attend=weights, **form):
    o = weighted_sums(attend(x, p, **form), layer(pooled(x, form["window"]), p, "value"))
    z = layer(o, p, "project")
    if norm and "norm.scale" in p:
        z = (z - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]
    return z.reshape(x.shape) + x * residual


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments, derivation = FORMS[form]
    against_oracle.assert_equal(create(**arguments), partial(oracle, **derivation), SHAPE)
    against_oracle.assert_equal(
        create(**arguments), partial(weights, **derivation), SHAPE, method="attention_map", gradient=False
    )


def over_queries(x, p, *, scale, window):
    return softmax_values(scale * scores(layer(x, p, "key"), layer(x, p, "query"))).T


MUTANTS = {
    "scaled by the features inside": partial(oracle, scale=4**-0.5, window=1),
    "scaled by the channels": partial(oracle, scale=8**-0.5, window=1),
    "pooled": partial(oracle, scale=1.0, window=2),
    "no residual": partial(oracle, residual=False, **PAPER),
    "no norm": partial(oracle, norm=False, **PAPER),
    "a softmax over the queries": partial(oracle, attend=over_queries, **PAPER),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(), MUTANTS[mutant], SHAPE)


def test_scaling_by_the_channels_is_not_scaling_by_the_features_inside():
    mutant = partial(oracle, scale=4**-0.5, window=1)
    against_oracle.assert_different(create(scale="channels"), mutant, SHAPE)


@pytest.mark.parametrize("norm", [True, False])
def test_it_begins_as_the_identity(norm):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.float32)
    np.testing.assert_array_equal(NonLocal(8, norm=norm, rngs=nnx.Rngs(0))(x), x)


def test_it_has_as_many_parameters_as_timm():
    module = nnx.eval_shape(lambda: NonLocal(64, reduction=8, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 2264
