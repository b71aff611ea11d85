"""Spatial-reduction attention and its linear form against their derivation, and timm's."""

import math
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.sra import SpatialReductionAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import adaptive_average_pool, scores, softmax_values, weighted_sums

CHANNELS, HEADS, POOL = 6, 2, 3
SHAPE = (7, 5, CHANNELS)
create = partial(SpatialReductionAttention, CHANNELS, num_heads=HEADS)
FORMS = {
    "squares of 2×2": create,
    "squares of 3×3, no biases": partial(create, sr_ratio=3, qkv_bias=False),
    "no squares": partial(create, sr_ratio=1),
    "linear": partial(create, sr_ratio=1, pool=POOL),
}


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def norm(z, p):
    mean = sum(z) / len(z)
    return (z - mean) / np.sqrt(sum((z - mean) ** 2) / len(z) + 1e-5) * p["norm.scale"] + p["norm.bias"]


def gelu(u):
    return u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))


def squares(x, p, *, norm=norm):
    """z of each R×R square that the map holds."""
    side = len(p["sr.kernel"])
    h, w, _ = x.shape
    corners = [(i, j) for i in range(0, h - side + 1, side) for j in range(0, w - side + 1, side)]
    convolved = [
        sum(x[i + a, j + b] @ p["sr.kernel"][a, b] for a in range(side) for b in range(side)) + p["sr.bias"]
        for i, j in corners
    ]
    return np.array([norm(z, p) for z in convolved])


def bins(x, p, *, norm=norm, activate=gelu, pool=lambda x: adaptive_average_pool(x, (POOL, POOL))):
    convolved = pool(x).reshape(-1, x.shape[-1]) @ p["sr.kernel"][0, 0] + p["sr.bias"]
    return activate(np.array([norm(z, p) for z in convolved]))


def positions(x, p):
    return x.reshape(-1, x.shape[-1])


REDUCE = {"squares of 2×2": squares, "squares of 3×3, no biases": squares, "no squares": positions, "linear": bins}


def asked(x, p, *, reduce=squares, order=(0, 1)):
    """q, k and v."""
    parts = np.split(linear(reduce(x, p), p, "kv"), 2, axis=-1)
    return linear(positions(x, p), p, "q"), parts[order[0]], parts[order[1]]


def weights(x, p, *, heads=HEADS, scale=None, normalize=softmax_values, **kinds):
    q, k, _ = asked(x, p, **kinds)
    pairs = zip(*(np.split(features, heads, axis=-1) for features in (q, k)), strict=True)
    return np.array([normalize(scores(a, b) * (scale or a.shape[1] ** -0.5)) for a, b in pairs])


def oracle(x, p, *, heads=HEADS, scale=None, normalize=softmax_values, **kinds):
    alpha = weights(x, p, heads=heads, scale=scale, normalize=normalize, **kinds)
    v = np.split(asked(x, p, **kinds)[2], heads, axis=-1)
    attended = np.concatenate([weighted_sums(a, v_j) for a, v_j in zip(alpha, v, strict=True)], 1)
    return linear(attended, p, "proj").reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(FORMS[form], partial(oracle, reduce=REDUCE[form]), SHAPE)
    theirs = partial(weights, reduce=REDUCE[form])
    against_oracle.assert_equal(FORMS[form], theirs, SHAPE, method="attention_map", gradient=False)


def of_last_squares(x, p):
    return squares(x[1:, 1:], p)


def largest_of_bins(x):
    h, w, c = x.shape
    ends = [[(math.floor(i * s / POOL), math.ceil((i + 1) * s / POOL)) for i in range(POOL)] for s in (h, w)]
    return np.array([x[a:b, d:e].reshape(-1, c).max(0) for a, b in ends[0] for d, e in ends[1]])


MUTANTS = {
    "squares of 2×2": {
        "no scale": {"scale": 1.0},
        "the scale of one head": {"scale": CHANNELS**-0.5},
        "a softmax over the queries": {"normalize": lambda e: softmax_values(e.T).T},
        "no norm": {"reduce": partial(squares, norm=lambda z, p: z)},
        "GELU": {"reduce": lambda x, p: gelu(squares(x, p))},
        "the first row and column left out": {"reduce": of_last_squares},
        "the whole map for keys and values": {"reduce": positions},
        "values before keys": {"order": (1, 0)},
    },
    "linear": {
        "no GELU": {"reduce": partial(bins, activate=lambda u: u)},
        "no norm": {"reduce": partial(bins, norm=lambda z, p: z)},
        "GELU before the norm": {"reduce": partial(bins, norm=lambda z, p: norm(gelu(z), p), activate=lambda u: u)},
        "the largest of the bins": {"reduce": partial(bins, pool=largest_of_bins)},
        "other bins": {"reduce": partial(bins, pool=lambda x: adaptive_average_pool(x, (POOL, POOL + 1)))},
    },
}


@pytest.mark.parametrize(("form", "mutant"), [(form, mutant) for form in MUTANTS for mutant in MUTANTS[form]])
def test_usual_mistakes_differ(form, mutant):
    mistaken = partial(oracle, **{"reduce": REDUCE[form], **MUTANTS[form][mutant]})
    against_oracle.assert_different(FORMS[form], mistaken, SHAPE)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"sr_ratio": 1}, 4 * 64**2 + 4 * 64),
        ({"sr_ratio": 4}, 4 * 64**2 + 4 * 64 + 4**2 * 64**2 + 3 * 64),
        ({"sr_ratio": 1, "pool": 7}, 5 * 64**2 + 7 * 64),
    ],
)
def test_it_has_as_many_parameters_as_timms(arguments, count):
    module = nnx.eval_shape(lambda: SpatialReductionAttention(64, **arguments, rngs=nnx.Rngs(0)))
    assert module.cost((14, 10, 64)).parameters == count


def timms(x, p, **arguments):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.pvt_v2").Attention(CHANNELS, num_heads=HEADS, **arguments).double().eval()
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T for name in ("q", "kv", "proj")}
    arrays |= {f"{name}.bias": p[f"{name}.bias"] for name in ("q", "kv", "proj", "sr", "norm") if f"{name}.bias" in p}
    if "sr.kernel" in p:
        arrays |= {"sr.weight": p["sr.kernel"].transpose(3, 2, 0, 1), "norm.weight": p["norm.scale"]}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    tokens = torch.tensor(x).reshape(1, -1, CHANNELS)
    return theirs(tokens, list(x.shape[:2])).detach().numpy().reshape(x.shape)


TIMMS = {
    "squares of 2×2": {"sr_ratio": 2},
    "squares of 3×3, no biases": {"sr_ratio": 3, "qkv_bias": False},
    "no squares": {},
}


@pytest.mark.full
@pytest.mark.parametrize("form", TIMMS)
def test_it_is_timms(form):
    against_oracle.assert_equal(FORMS[form], partial(timms, **TIMMS[form]), SHAPE)


@pytest.mark.full
def test_the_linear_form_is_timms():
    """Its bins are 7×7: more than there are columns."""
    theirs = partial(timms, linear_attn=True)
    against_oracle.assert_equal(partial(create, sr_ratio=1, pool=7), theirs, (9, 5, CHANNELS))
