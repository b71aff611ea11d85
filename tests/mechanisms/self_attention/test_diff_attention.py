"""Differential attention against its derivation, and timm's."""

import math
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.diff_attention import DifferentialAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 12), (5, 3, 12)
HEADS, DEPTH = 2, 2
create = partial(DifferentialAttention, 12, num_heads=HEADS, depth=DEPTH)
FORMS = {
    "tokens": (partial(create, num_spatial_dims=1), TOKENS),
    "tokens, all biases": (partial(create, num_spatial_dims=1, qkv_bias=True), TOKENS),
    "a map": (create, MAP),
}


def initial(depth):
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


LAMBDA_INIT = initial(DEPTH)


def difference(p):
    """λ."""
    first, second = (math.exp(sum(p[f"lambda_q{i}"] * p[f"lambda_k{i}"])) for i in (1, 2))
    return first - second + LAMBDA_INIT


def pairs(parts):
    """Each head's features in two halves."""
    return [(part[:, :3], part[:, 3:]) for part in parts]


def pairs_across_heads(parts):
    """The first half of all heads' features for the first maps, the others for the second."""
    rows = np.concatenate(parts, 1)
    return [(rows[:, 3 * h : 3 * h + 3], rows[:, 6 + 3 * h : 9 + 3 * h]) for h in range(HEADS)]


def weights(x, p, *, split=pairs, factor=difference, scale=3**-0.5):
    q, k, _ = asked(x, p, heads=HEADS)
    maps = [
        [softmax_values(scores(q_i, k_i) * scale) for q_i, k_i in zip(q_h, k_h, strict=True)]
        for q_h, k_h in zip(split(q), split(k), strict=True)
    ]
    return np.array([first - factor(p) * second for first, second in maps])


def normalized(rows, scale):
    return np.array([row / math.sqrt(sum(row**2) / len(row) + 1e-5) * scale for row in rows])


def joined(x, p, *, norm=normalized, share=1 - LAMBDA_INIT, **kinds):
    _, _, v = asked(x, p, heads=HEADS)
    each = [weighted_sums(alpha, v_h) for alpha, v_h in zip(weights(x, p, **kinds), v, strict=True)]
    return share * np.concatenate([norm(o, p["norm.scale"]) for o in each], 1).reshape(x.shape)


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


def centred(rows, scale):
    """A layer normalisation."""
    return normalized(rows - rows.mean(1, keepdims=True), scale)


MUTANTS = {
    "halves of all heads as the two maps": partial(oracle, split=pairs_across_heads),
    "a sum of maps": partial(oracle, factor=lambda p: -difference(p)),
    "one map": partial(oracle, factor=lambda p: 0.0),
    "the initial λ alone": partial(oracle, factor=lambda p: LAMBDA_INIT),
    "λ without its initial value": partial(oracle, factor=lambda p: difference(p) - LAMBDA_INIT),
    "λ of a depth counted from one": partial(oracle, factor=lambda p: difference(p) - LAMBDA_INIT + initial(DEPTH - 1)),
    "the maps exchanged": partial(oracle, split=lambda parts: [part[::-1] for part in pairs(parts)]),
    "the scale of a whole head": partial(oracle, scale=6**-0.5),
    "not scaled after the norm": partial(oracle, share=1.0),
    "scaled by the initial λ": partial(oracle, share=LAMBDA_INIT),
    "no norm": partial(oracle, norm=lambda rows, scale: rows * scale),
    "a layer normalisation": partial(oracle, norm=centred),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens, all biases"][0], MUTANTS[mutant], TOKENS)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    diff_attention = timm_oracle.load("layers.diff_attention").DiffAttention
    theirs = diff_attention(12, num_heads=HEADS, qkv_bias=True, depth=DEPTH).double().eval()
    arrays = {f"{layer}.weight": p[f"{layer}.kernel"].T for layer in ("qkv", "proj")}
    arrays |= {f"{layer}.bias": p[f"{layer}.bias"] for layer in ("qkv", "proj")}
    arrays |= {name: p[name] for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")}
    arrays["sub_norm.weight"] = p["norm.scale"]
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x[None]))[0].detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(FORMS["tokens, all biases"][0], timms, TOKENS, rtol=1e-5, gradient=False)


@pytest.mark.parametrize(("depth", "expected"), [(0, 0.2), (1, 0.8 - 0.6 * math.exp(-0.3)), (100, 0.8)])
def test_what_lambda_starts_from_grows_with_the_depth(depth, expected):
    module = DifferentialAttention(12, num_heads=HEADS, depth=depth, rngs=nnx.Rngs(0))
    assert module.lambda_init == pytest.approx(expected)


@pytest.mark.parametrize(("qkv_bias", "biases"), [(False, 64), (True, 4 * 64)])
def test_it_has_as_many_parameters_as_timms(qkv_bias, biases):
    module = nnx.eval_shape(lambda: DifferentialAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + biases + 4 * 4 + 2 * 4
