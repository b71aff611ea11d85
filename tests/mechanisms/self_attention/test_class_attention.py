"""Class attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.class_attention import ClassAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS = (7, 6)
HEADS = 2
LAYERS = ("q", "k", "v")
create = partial(ClassAttention, 6, num_heads=HEADS)
FORMS = {"no biases": create, "all biases": partial(create, qkv_bias=True)}


def asked(x, p, *, token=0, heads=HEADS):
    """q of the class token, and k and v of all, as lists of each head's (n, d)."""
    features = [
        np.array([x_i @ p[f"{layer}.kernel"] + p.get(f"{layer}.bias", 0) for x_i in tokens])
        for layer, tokens in zip(LAYERS, (x[token][None], x, x), strict=True)
    ]
    d = x.shape[1] // heads
    return [[part[:, h * d : (h + 1) * d] for h in range(heads)] for part in features]


def weights(x, p, *, scale=None, keys=slice(None), **who):
    q, k, _ = asked(x, p, **who)
    scale = scale or k[0].shape[1] ** -0.5
    return np.array([softmax_values(scores(q_h, k_h[keys]) * scale)[0] for q_h, k_h in zip(q, k, strict=True)])


def joined(x, p, *, keys=slice(None), heads=HEADS, **kinds):
    v = asked(x, p, heads=heads)[2]
    alpha = weights(x, p, keys=keys, heads=heads, **kinds)
    return np.concatenate([weighted_sums(alpha[h][None], v[h][keys])[0] for h in range(heads)])


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(FORMS[form], oracle, TOKENS)
    against_oracle.assert_equal(FORMS[form], weights, TOKENS, method="attention_map", gradient=False)


def renamed(p, names):
    """Layers under the names of others."""
    return {
        **p,
        **{f"{ours}.{part}": p[f"{other}.{part}"] for ours, other in names.items() for part in ("kernel", "bias")},
    }


MUTANTS = {
    "the class token not among those asked": partial(oracle, keys=slice(1, None)),
    "the last token asks": partial(oracle, token=-1),
    "no scale": partial(oracle, scale=1.0),
    "the scale of one head": partial(oracle, scale=6**-0.5),
    "keys and values exchanged": lambda x, p: oracle(x, renamed(p, {"k": "v", "v": "k"})),
    "keys and queries exchanged": lambda x, p: oracle(x, renamed(p, {"k": "q", "q": "k"})),
    "no output layer": joined,
    "a residual": lambda x, p: x[0] + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["all biases"], MUTANTS[mutant], TOKENS)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.cait").ClassAttn(6, num_heads=HEADS, qkv_bias=True).double().eval()
    arrays = {f"{layer}.weight": p[f"{layer}.kernel"].T for layer in (*LAYERS, "proj")}
    arrays |= {f"{layer}.bias": p[f"{layer}.bias"] for layer in (*LAYERS, "proj")}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x[None]))[0, 0].detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(FORMS["all biases"], timms, TOKENS)


@pytest.mark.parametrize(("qkv_bias", "count"), [(False, 4 * 64**2 + 64), (True, 4 * 64**2 + 4 * 64)])
def test_it_has_as_many_parameters_as_timms(qkv_bias, count):
    module = nnx.eval_shape(lambda: ClassAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 64)).parameters == count
