"""Cross-covariance attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.xca import CrossCovarianceAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS = 2
create = partial(CrossCovarianceAttention, 6, num_heads=HEADS)
FORMS = {
    "tokens": (partial(create, num_spatial_dims=1), TOKENS),
    "tokens, all biases": (partial(create, num_spatial_dims=1, qkv_bias=True), TOKENS),
    "a map": (create, MAP),
}


def unit(rows):
    """Each row divided by its length."""
    return np.array([row / np.sqrt(sum(row**2)) for row in rows])


def heads(x, p):
    """q, k and v of each head with a row for each feature, and the head's τ."""
    q, k, v = asked(x, p, heads=HEADS)
    return [(q[h].T, k[h].T, v[h].T, p["temperature"][h]) for h in range(HEADS)]


def weights(x, p, *, normalize=unit, factor=lambda tau: tau, softmax=softmax_values):
    return np.array([softmax(factor(tau) * scores(normalize(q), normalize(k))) for q, k, _, tau in heads(x, p)])


def oracle(x, p, *, gather=weighted_sums, **kinds):
    each = [gather(alpha, v).T for alpha, (_, _, v, _) in zip(weights(x, p, **kinds), heads(x, p), strict=True)]
    return np.concatenate(each, 1).reshape(x.shape) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


MUTANTS = {
    "vit-pytorch's exp(τ)": partial(oracle, factor=np.exp),
    "the paper's τ, which divides": partial(oracle, factor=lambda tau: 1 / tau),
    "no temperature": partial(oracle, factor=lambda tau: 1.0),
    "the temperature of one head": lambda x, p: oracle(x, {**p, "temperature": p["temperature"][:1].repeat(HEADS)}),
    "divided by √d": partial(oracle, factor=lambda tau: tau * 3**-0.5),
    "no unit vectors": partial(oracle, normalize=lambda rows: rows),
    "unit vectors of the tokens": partial(oracle, normalize=lambda rows: unit(rows.T).T),
    "a softmax over those that ask": partial(oracle, softmax=lambda e: softmax_values(e.T).T),
    "the map transposed": partial(oracle, gather=lambda alpha, v: weighted_sums(alpha.T, v)),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens, all biases"][0], MUTANTS[mutant], TOKENS)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.xcit").XCA(6, num_heads=HEADS, qkv_bias=True).double().eval()
    arrays = {f"{layer}.weight": p[f"{layer}.kernel"].T for layer in ("qkv", "proj")}
    arrays |= {f"{layer}.bias": p[f"{layer}.bias"] for layer in ("qkv", "proj")}
    arrays["temperature"] = p["temperature"][:, None, None]
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x[None]))[0].detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(FORMS["tokens, all biases"][0], timms, TOKENS)


def test_the_temperature_starts_at_one():
    np.testing.assert_array_equal(create(rngs=nnx.Rngs(0)).temperature[...], [1, 1])


@pytest.mark.parametrize(("qkv_bias", "biases"), [(False, 64), (True, 4 * 64)])
def test_it_has_as_many_parameters_as_timms(qkv_bias, biases):
    module = nnx.eval_shape(lambda: CrossCovarianceAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + biases + 8
