"""Global context against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.gcnet import GlobalContext
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
FORMS = {
    "the paper's": {"reduction": 2},
    "timm's gate": {"hidden": 4, "fuse_add": False, "fuse_scale": True, "epsilon": 1e-6},
    "both": {"hidden": 4, "fuse_scale": True},
    "the mean": {"hidden": 4, "use_attention": False},
}
create = partial(partial, GlobalContext, 6)


def weights(x, p):
    h, w, _ = x.shape
    if "score.kernel" not in p:
        return np.full((h, w), 1 / (h * w))
    e = np.array([[x[i, j] @ p["score.kernel"][:, 0] + p["score.bias"][0] for j in range(w)] for i in range(h)])
    return np.exp(e - e.max()) / np.exp(e - e.max()).sum()


def transform(z, p, part, *, norm=True, epsilon=1e-5):
    u = z @ p[f"{part}.reduce.kernel"] + p[f"{part}.reduce.bias"]
    if norm:
        mean = sum(u) / len(u)
        variance = sum((u - mean) ** 2) / len(u)
        u = (u - mean) / np.sqrt(variance + epsilon) * p[f"{part}.norm.scale"] + p[f"{part}.norm.bias"]
    return np.maximum(u, 0) @ p[f"{part}.expand.kernel"] + p[f"{part}.expand.bias"]


def oracle(x, p, *, attend=weights, **kinds):
    h, w, _ = x.shape
    alpha = attend(x, p)
    z = sum(alpha[i, j] * x[i, j] for i in range(h) for j in range(w))
    if "scale.reduce.kernel" in p:
        x = x * sigmoid(transform(z, p, "scale", **kinds))
    return x + transform(z, p, "add", **kinds) if "add.reduce.kernel" in p else x


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments = FORMS[form]
    against_oracle.assert_equal(create(**arguments), partial(oracle, epsilon=arguments.get("epsilon", 1e-5)), SHAPE)
    against_oracle.assert_equal(create(**arguments), weights, SHAPE, method="attention_map", gradient=False)


def gate(x, p):
    return oracle(x, {name.replace("add.", "scale."): value for name, value in p.items()})


MUTANTS = {
    "timm's default, the gate, for the sum": gate,
    "no residual": lambda x, p: oracle(x, p) - x,
    "no norm": partial(oracle, norm=False),
    "the mean for the attention": partial(oracle, attend=lambda x, p: weights(x, {})),
    "a softmax by column": partial(oracle, attend=lambda x, p: weights(x, p) / weights(x, p).sum(0) / x.shape[1]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(**FORMS["the paper's"]), MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(("fuse_scale", "expected"), [(False, 1.0), (True, 0.5)])
def test_it_begins_as_the_identity_or_half_of_it(fuse_scale, expected):
    module = GlobalContext(6, fuse_add=not fuse_scale, fuse_scale=fuse_scale, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_array_equal(module(x), expected * x)


def test_it_has_as_many_parameters_as_timm():
    module = nnx.eval_shape(lambda: GlobalContext(64, reduction=8, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 1177
