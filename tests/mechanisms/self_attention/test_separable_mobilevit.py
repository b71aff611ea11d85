"""Separable self-attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.separable_mobilevit import SeparableSelfAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid, softmax_values

TOKENS, MAP = (7, 6), (5, 3, 6)
create = partial(SeparableSelfAttention, 6)
FORMS = {"tokens": (partial(create, num_spatial_dims=1), TOKENS), "a map": (create, MAP)}


def asked(x, p):
    """The score, the key and the value of each token."""
    c = x.shape[-1]
    features = np.array([x_i @ p["qkv_proj.kernel"] + p["qkv_proj.bias"] for x_i in x.reshape(-1, c)])
    return features[:, 0], features[:, 1 : 1 + c], features[:, 1 + c :]


def weights(x, p, *, split=asked, normalize=lambda s: softmax_values(s[None])[0]):
    return normalize(split(x, p)[0])


def gated(x, p, *, split=asked, act=lambda v: np.maximum(v, 0), **kinds):
    _, k, v = split(x, p)
    context = sum(a * k_j for a, k_j in zip(weights(x, p, split=split, **kinds), k, strict=True))
    return np.array([act(v_i) * context for v_i in v]).reshape(x.shape)


def oracle(x, p, **kinds):
    return gated(x, p, **kinds) @ p["out_proj.kernel"] + p["out_proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


def score_last(x, p):
    c = x.shape[-1]
    features = x.reshape(-1, c) @ p["qkv_proj.kernel"] + p["qkv_proj.bias"]
    return features[:, 2 * c], features[:, :c], features[:, c : 2 * c]


MUTANTS = {
    "External-Attention-pytorch's values without a relu": partial(oracle, act=lambda v: v),
    "a sigmoid of the values": partial(oracle, act=sigmoid),
    "a sigmoid of the scores": partial(oracle, normalize=sigmoid),
    "a mean": partial(oracle, normalize=lambda s: np.full(len(s), 1 / len(s))),
    "keys and values exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (0, 2, 1)]),
    "the score last": partial(oracle, split=score_last),
    "no output layer": gated,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens"][0], MUTANTS[mutant], TOKENS)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: SeparableSelfAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 3 * 64**2 + 4 * 64 + 1


def timms(x, p):
    """Of patches whose tokens are x (p, n, c)."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.mobilevit").LinearSelfAttention(6).double().eval()
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T[..., None, None] for name in ("qkv_proj", "out_proj")}
    arrays |= {f"{name}.bias": p[f"{name}.bias"] for name in ("qkv_proj", "out_proj")}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
def test_it_is_timms_whose_pixels_of_a_patch_are_a_batch_axis():
    against_oracle.assert_equal(FORMS["tokens"][0], timms, (4, 7, 6), gradient=False)
