"""Talking-heads attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.talking_heads import TalkingHeadsAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS = 3
create = partial(TalkingHeadsAttention, 6, num_heads=HEADS)
FORMS = {
    "tokens": (partial(create, num_spatial_dims=1), TOKENS),
    "tokens, all biases": (partial(create, num_spatial_dims=1, qkv_bias=True), TOKENS),
    "a map": (create, MAP),
}


def mixed(maps, kernel, bias):
    """Each head's map anew: Σ_h kernel[h, l] map_h + bias_l."""
    return np.array([sum(kernel[h, l] * maps[h] for h in range(len(maps))) + bias[l] for l in range(kernel.shape[1])])


def weights(x, p, *, before="mix_scores", after="mix_weights", scale=2**-0.5, mix=mixed, normalize=softmax_values):
    q, k, _ = asked(x, p, heads=HEADS)
    maps = np.array([scores(q_h, k_h) * scale for q_h, k_h in zip(q, k, strict=True)])
    if before:
        maps = mix(maps, p[f"{before}.kernel"], p[f"{before}.bias"])
    maps = np.array([normalize(scores_h) for scores_h in maps])
    return mix(maps, p[f"{after}.kernel"], p[f"{after}.bias"]) if after else maps


def oracle(x, p, **kinds):
    _, _, v = asked(x, p, heads=HEADS)
    each = [weighted_sums(alpha, v_h) for alpha, v_h in zip(weights(x, p, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(x.shape) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


def test_the_bias_of_the_scores_cancels():
    without = lambda x, p: oracle(x, {**p, "mix_scores.bias": 0 * p["mix_scores.bias"]})  # noqa: E731
    against_oracle.assert_equal(FORMS["tokens"][0], without, TOKENS, gradient=False)


MUTANTS = {
    "vit-pytorch, without biases": partial(oracle, mix=lambda maps, kernel, bias: mixed(maps, kernel, 0 * bias)),
    "heads that do not talk before the softmax": partial(oracle, before=None),
    "heads that do not talk after the softmax": partial(oracle, after=None),
    "the mixtures exchanged": partial(oracle, before="mix_weights", after="mix_scores"),
    "the mixtures transposed": partial(oracle, mix=lambda maps, kernel, bias: mixed(maps, kernel.T, bias)),
    "no softmax": partial(oracle, normalize=lambda e: e),
    "a softmax over the queries": partial(oracle, normalize=lambda e: softmax_values(e.T).T),
    "no scale": partial(oracle, scale=1.0),
    "the scale of one head": partial(oracle, scale=6**-0.5),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens, all biases"][0], MUTANTS[mutant], TOKENS)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.cait").TalkingHeadAttn(6, num_heads=HEADS, qkv_bias=True).double().eval()
    names = {"qkv": "qkv", "proj_l": "mix_scores", "proj_w": "mix_weights", "proj": "proj"}
    arrays = {f"{name}.weight": p[f"{ours}.kernel"].T for name, ours in names.items()}
    arrays |= {f"{name}.bias": p[f"{ours}.bias"] for name, ours in names.items()}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x[None]))[0].detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(FORMS["tokens, all biases"][0], timms, TOKENS)


@pytest.mark.parametrize(
    ("qkv_bias", "count"), [(False, 4 * 64**2 + 64 + 2 * (8**2 + 8)), (True, 4 * 64**2 + 4 * 64 + 2 * (8**2 + 8))]
)
def test_it_has_as_many_parameters_as_timms(qkv_bias, count):
    module = nnx.eval_shape(lambda: TalkingHeadsAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == count
