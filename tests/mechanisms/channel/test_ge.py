"""Gather-excite against its derivation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.ge import GatherExcite
from tests import costs
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
FORMS = {
    "θ⁻": {},
    "θ⁻, e = 2": {"extent": 2},
    "θ⁻, e = 3": {"extent": 3},
    "θ⁻, e = 8": {"extent": 8},
    "θ⁻ with f, e = 4": {"extent": 4, "use_mlp": True, "reduction": 2},
    "θ": {"parametric": True, "feature_size": (7, 5)},
    "θ, e = 4": {"parametric": True, "extent": 4},
    "θ⁺": {"parametric": True, "feature_size": (7, 5), "use_mlp": True, "hidden": 3},
}


def create(form):
    return partial(GatherExcite, SHAPE[-1], **FORMS[form])


def build(form):
    module = create(form)(rngs=nnx.Rngs(0))
    module.eval()
    return module


def average(x, extent, *, count_zeros=False):
    """u at (i, j) is the mean of x over the positions of the map within e - 1 of (e·i, e·j)."""
    h, w, c = x.shape
    if extent == 0:
        return x.reshape(-1, c).mean(0).reshape(1, 1, c)
    out = np.zeros((math.ceil(h / extent), math.ceil(w / extent), c))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            inside = [
                x[y, z]
                for y in range(h)
                for z in range(w)
                if abs(y - extent * i) <= extent - 1 and abs(z - extent * j) <= extent - 1
            ]
            out[i, j] = sum(inside) / ((2 * extent - 1) ** 2 if count_zeros else len(inside))
    return out


def depthwise(x, kernel, stride, pad):
    (h, w, c), (k, m, _) = x.shape, kernel.shape
    padded = np.zeros((h + 2 * pad, w + 2 * pad, c))
    padded[pad : pad + h, pad : pad + w] = x
    out = np.zeros(((h + 2 * pad - k) // stride + 1, (w + 2 * pad - m) // stride + 1, c))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = (padded[i * stride : i * stride + k, j * stride : j * stride + m] * kernel).sum((0, 1))
    return out


def batch_norm(x, p, i):
    scale, bias, mean, var = (p[f"learned.norms.{i}.{name}"] for name in ("scale", "bias", "mean", "var"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def convolve(x, p, extent, *, is_activated=True):
    if extent == 0:
        return batch_norm(depthwise(x, p["learned.convolutions.0.kernel"], 1, 0), p, 0)
    for i in range(int(math.log2(extent))):
        x = np.maximum(x, 0) if i and is_activated else x
        x = batch_norm(depthwise(x, p[f"learned.convolutions.{i}.kernel"], 2, 1), p, i)
    return x


def weights(x, p, *, extent=0, parametric=False, use_mlp=False, gate=sigmoid, is_activated=True, nearest=None, **other):
    z = convolve(x, p, extent, is_activated=is_activated) if parametric else average(x, extent)
    if use_mlp:
        z = np.maximum(z, 0) if parametric and is_activated else z
        u = np.maximum(z @ p["excite.reduce.kernel"] + p["excite.reduce.bias"], 0)
        z = u @ p["excite.expand.kernel"] + p["excite.expand.bias"]
    (h, w, _), (r, q, _) = x.shape, z.shape
    nearest = nearest or (lambda i, few, many: math.floor(i * few / many))
    return gate(np.array([[z[nearest(y, r, h), nearest(v, q, w)] for v in range(w)] for y in range(h)]))


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(create(form), partial(oracle, **FORMS[form]), SHAPE)
    map_of_it = partial(weights, **FORMS[form])
    against_oracle.assert_equal(create(form), map_of_it, SHAPE, method="attention_map", gradient=False)


def blocks(x, e):
    """Means over blocks that do not overlap."""
    h, w, _ = x.shape
    rows = [[x[i : i + e, j : j + e].mean((0, 1)) for j in range(0, w, e)] for i in range(0, h, e)]
    return np.array(rows)[np.arange(h) // e][:, np.arange(w) // e]


MUTANTS = {
    "the gate alone": ("θ⁻", lambda x, p, **a: weights(x, p, **a)),
    "a residual": ("θ⁻", lambda x, p, **a: x + oracle(x, p, **a)),
    "no gate": ("θ⁻", lambda x, p, **a: oracle(x, p, gate=lambda u: u, **a)),
    "the maximum for the mean": ("θ⁻", lambda x, p, **a: x * sigmoid(x.max((0, 1)))),
    "windows of e": ("θ⁻, e = 2", lambda x, p, **a: x * sigmoid(blocks(x, 2))),
    "zeros counted": (
        "θ⁻, e = 8",
        lambda x, p, **a: x * sigmoid(average(x, 8, count_zeros=True)),
    ),
    "the summary of the nearest centre": (
        "θ⁻, e = 3",
        lambda x, p, **a: oracle(x, p, nearest=lambda i, few, many: min(round(i / 3), few - 1), **a),
    ),
    "no relu between convolutions": ("θ, e = 4", lambda x, p, **a: oracle(x, p, is_activated=False, **a)),
    "no relu before f": ("θ⁺", lambda x, p, **a: oracle(x, p, is_activated=False, **a)),
    "no f": ("θ⁺", lambda x, p, **a: oracle(x, p, **{**a, "use_mlp": False})),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    form, wrong = MUTANTS[mutant]
    against_oracle.assert_different(create(form), partial(wrong, **FORMS[form]), SHAPE)


@pytest.mark.parametrize("form", FORMS)
def test_the_cost_of_every_form_is_as_it_says(form):
    module = build(form)
    cost = module.cost(SHAPE)
    assert cost.parameters == sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert cost.multiply_adds == costs.multiply_adds(module, jnp.ones(SHAPE))


@pytest.mark.parametrize("form", ["θ⁻, e = 2", "θ⁺"])
def test_forms_take_any_batch_axes(form):
    call = jax.jit(build(form))
    x = jax.random.normal(jax.random.key(0), (3, 2, *SHAPE))
    each = jnp.stack([call(example) for example in x.reshape(6, *SHAPE)])
    np.testing.assert_allclose(call(x), each.reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["θ⁻, e = 8", "θ, e = 4"])
def test_a_single_position_is_a_map(form):
    assert np.isfinite(build(form)(jnp.ones((1, 1, 6)))).all()


def test_training_normalises_with_the_batch():
    module = create("θ, e = 4")(rngs=nnx.Rngs(0))
    module.train()
    x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    z = module.gather(x)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-3)
