"""The attention-free transformer against its derivation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.aft import AttentionFreeTransformer, aft, aft_biased_sum
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

TOKENS, MAP = (7, 6), (5, 4, 6)
create = partial(AttentionFreeTransformer, 6)
tokens = partial(create, num_spatial_dims=1)
LOCAL, CONV = {"form": "local", "window": 2}, {"form": "conv", "size": None, "window": 3, "num_heads": 2}
FORMS = {
    "full, tokens": (partial(tokens, size=(7,)), TOKENS, "full"),
    "full, a map": (partial(create, size=(5, 4)), MAP, "full"),
    "local, tokens": (partial(tokens, size=(7,), **LOCAL), TOKENS, "local"),
    "local, a map": (partial(create, size=(5, 4), **LOCAL), MAP, "local"),
    "simple": (partial(create, form="simple", size=None), MAP, "simple"),
    "conv, tokens": (partial(tokens, **CONV), TOKENS, "conv"),
    "conv, a map": (partial(create, **CONV), MAP, "conv"),
}


def asked(x, p):
    c = x.shape[-1]
    return np.split(x.reshape(-1, c) @ p["qkv.kernel"] + p["qkv.bias"], 3, 1)


def w_of(form, i, j, size, w, channel):
    """w_ij for positions in row-major order."""
    steps = np.subtract(np.unravel_index(j, size), np.unravel_index(i, size))
    if form == "full" or (form == "local" and max(abs(steps)) < 2):
        return w[i, j]
    if form == "conv" and max(abs(steps)) <= 1:
        return w[(*(steps + 1), channel // 3)]
    return 0.0


def flipped(form, i, j, *others):
    return w_of(form, j, i, *others)


def excluded(form, i, j, size, *others):
    steps = np.subtract(np.unravel_index(j, size), np.unravel_index(i, size))
    return w_of(form, i, j, size, *others) if max(abs(steps)) < 2 else -np.inf


def weights(x, p, *, form="full", w=w_of, term=lambda k, w: math.exp(k + w)):
    _, k, _ = asked(x, p)
    n, c = k.shape
    size = x.shape[:-1]
    terms = [
        [[term(k[j, d], w(form, i, j, size, p.get("w"), d)) for j in range(n)] for i in range(n)] for d in range(c)
    ]
    return np.array(terms) / np.sum(terms, -1, keepdims=True)


def oracle(x, p, *, gate=sigmoid, **kinds):
    q, _, v = asked(x, p)
    alpha = weights(x, p, **kinds)
    n, c = v.shape
    y = [[gate(q[i, d]) * sum(alpha[d, i, j] * v[j, d] for j in range(n)) for d in range(c)] for i in range(n)]
    return np.reshape(y, x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape, kind = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, form=kind), shape)
    theirs = partial(weights, form=kind)
    against_oracle.assert_equal(create, theirs, shape, method="attention_map", gradient=False)


def softmax_of_features(x, p):
    q, k, v = asked(x, p)
    alpha = np.exp(k) / np.exp(k).sum(1, keepdims=True)
    return (sigmoid(q) * (np.exp(p["w"]) @ (alpha * v)) / (np.exp(p["w"]) @ alpha)).reshape(x.shape)


MUTANTS = {
    "fast-transformers' product of keys and w": ("full", partial(oracle, term=lambda k, w: math.exp(k * w))),
    "w as a factor": ("full", partial(oracle, term=lambda k, w: math.exp(k) * w)),
    "no w": ("full", partial(oracle, form="simple")),
    "i and j exchanged": ("full", partial(oracle, w=flipped)),
    "a softmax over the features": ("full", softmax_of_features),
    "no sigmoid": ("full", partial(oracle, gate=lambda q: q)),
    "a residual": ("full", lambda x, p: x + oracle(x, p)),
    "all w": ("local", partial(oracle, form="full")),
    "nothing from afar": ("local", partial(oracle, form="local", w=excluded)),
    "a flipped window": ("conv", partial(oracle, form="conv", w=flipped)),
    "a window of what it sees": ("conv", partial(oracle, form="conv", w=excluded)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    form, wrong = MUTANTS[mutant]
    create, shape, _ = FORMS[f"{form}, tokens"]
    against_oracle.assert_different(create, wrong, shape)


@pytest.mark.parametrize("form", ["full, a map", "local, a map", "simple", "conv, a map"])
def test_keys_and_numbers_of_any_height_change_nothing(form):
    create, shape, kind = FORMS[form]
    module = create(rngs=nnx.Rngs(0))
    x = jnp.float32(np.random.default_rng(0).normal(size=shape))
    y = module(x)
    q_bias, k_bias, v_bias = jnp.split(module.qkv.bias[...], 3)
    module.qkv.bias[...] = jnp.concatenate([q_bias, k_bias + 300, v_bias])
    if kind == "full":
        module.w[...] = module.w[...] + 300
    np.testing.assert_allclose(module(x), y, rtol=1e-4, atol=1e-5)
    assert jnp.isfinite(jax.grad(lambda x: module(x).sum())(x)).all()


def test_where_all_terms_vanish_it_is_zero_with_finite_gradients():
    k, w = jnp.array([[0.0], [-200.0]]), jnp.array([[-200.0, 0.0], [0.0, 0.0]])
    loss = lambda k, w: aft(0 * k, k, 1 + 0 * k, partial(aft_biased_sum, w=w))  # noqa: E731
    np.testing.assert_allclose(loss(k, w)[:, 0], [0, 0.5])
    gradients = jax.grad(lambda *kw: loss(*kw).sum(), argnums=(0, 1))(k, w)
    assert all(jnp.isfinite(g).all() for g in gradients)


def test_no_array_has_two_axes_of_tokens_and_one_of_features():
    n, c = 35, 6
    module = create(size=(7, 5), rngs=nnx.Rngs(0))
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: module(x).sum()))(jnp.ones((3, 7, 5, c)))
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    assert n * n <= max(sizes) < n * n * c


COUNTS = {"full": 20**2, "local": 20**2, "simple": 0, "conv": 3**2 * 2}


@pytest.mark.parametrize("form", COUNTS)
def test_it_has_as_many_parameters_as_the_paper(form):
    arguments = {"form": form, "size": (5, 4), "window": 3, "num_heads": 2}
    module = nnx.eval_shape(lambda: AttentionFreeTransformer(64, **arguments, rngs=nnx.Rngs(0)))
    assert module.cost((5, 4, 64)).parameters == 3 * 64**2 + 3 * 64 + COUNTS[form]
