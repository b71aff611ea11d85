"""Efficient additive attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.additive import EfficientAdditiveAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import softmax_values

TOKENS, MAP = (7, 6), (5, 3, 6)
create = partial(EfficientAdditiveAttention, 6)
FORMS = {
    "tokens": (partial(create, num_spatial_dims=1), TOKENS),
    "a map": (create, MAP),
    "two heads": (partial(create, num_heads=2), MAP),
}


def layer(z, p, name):
    return np.array([z_i @ p[f"{name}.kernel"] + p[f"{name}.bias"] for z_i in z])


def unit(z):
    return np.array([z_i / np.sqrt(sum(z_i**2)) for z_i in z])


def asked(x, p, *, norm=unit):
    tokens = x.reshape(-1, x.shape[-1])
    return norm(layer(tokens, p, "to_query")), norm(layer(tokens, p, "to_key"))


def weights(x, p, *, norm=unit, normalize=lambda s: s / np.sqrt(sum(s**2))):
    q, _ = asked(x, p, norm=norm)
    return normalize(np.array([q_i @ p["w_g"] for q_i in q]) / len(p["w_g"]) ** 0.5)


def oracle(x, p, *, norm=unit, residual=lambda q, x: q, finish=True, **kinds):
    q, k = asked(x, p, norm=norm)
    g = sum(a_i * q_i for a_i, q_i in zip(weights(x, p, norm=norm, **kinds), q, strict=True))
    y = layer(np.array([g * k_i for k_i in k]), p, "proj") + residual(q, x.reshape(-1, x.shape[-1]))
    return (layer(y, p, "final") if finish else y).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


MUTANTS = {
    "a softmax of the scores": partial(oracle, normalize=lambda s: softmax_values(s[None])[0]),
    "scores not normalised": partial(oracle, normalize=lambda s: s),
    "scores that sum to one": partial(oracle, normalize=lambda s: s / sum(s)),
    "queries and keys not normalised": partial(oracle, norm=lambda z: z),
    "queries and keys normalised over the tokens": partial(oracle, norm=lambda z: unit(z.T).T),
    "the input added, not the queries": partial(oracle, residual=lambda q, x: x),
    "nothing added": partial(oracle, residual=lambda q, x: 0),
    "no last layer": partial(oracle, finish=False),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens"][0], MUTANTS[mutant], TOKENS)


@pytest.mark.parametrize(("heads", "count"), [(1, 4 * 64**2 + 5 * 64), (2, 10 * 64**2 + 9 * 64)])
def test_it_has_as_many_parameters_as_timms(heads, count):
    module = nnx.eval_shape(lambda: EfficientAdditiveAttention(64, num_heads=heads, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == count


def timms(x, p, *, heads):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    attention = timm_oracle.load("models.swiftformer").EfficientAdditiveAttention
    theirs = attention(6, 6, num_heads=heads).double().eval()
    layers = ("to_query", "to_key", "proj", "final")
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T for name in layers}
    arrays |= {f"{name}.bias": p[f"{name}.bias"] for name in layers} | {"w_g": p["w_g"][:, None]}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_timms(heads):
    against_oracle.assert_equal(partial(create, num_heads=heads), partial(timms, heads=heads), MAP, gradient=False)
