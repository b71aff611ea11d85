"""The residual attention module against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.residual_attention_net import ResidualAttention
from tests.mechanisms import against_oracle
from tests.oracles import conv3x3, sigmoid

SHAPE = (6, 5, 4)
FORMS = {
    "the paper's": {"reduction": 1},
    "two steps of two units": {"p": 0, "t": 1, "r": 2, "steps": 2, "after": 0, "reduction": 1},
    "one step": {"steps": 1, "reduction": 2},
}


def norm(x, p, name):
    x = (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5)
    return np.maximum(x * p[f"{name}.scale"] + p[f"{name}.bias"], 0)


def unit(x, p, name):
    hidden = norm(x, p, f"{name}.norm_in") @ p[f"{name}.reduce.kernel"]
    hidden = conv3x3(norm(hidden, p, f"{name}.norm"), p[f"{name}.conv.kernel"], np.zeros(hidden.shape[-1]))
    return x + norm(hidden, p, f"{name}.norm_out") @ p[f"{name}.expand.kernel"]


def chain(x, p, name):
    for number in range(sum(key.startswith(f"{name}.parts.") and key.endswith("reduce.kernel") for key in p)):
        x = unit(x, p, f"{name}.parts.{number}")
    return x


def largest(x):
    h, w, c = x.shape
    rows, columns = (range(0, s, 2) if s % 2 else range(1, s, 2) for s in (h, w))
    return np.array(
        [[[max(x[a, b, k] for a in near(i, h) for b in near(j, w)) for k in range(c)] for j in columns] for i in rows]
    )


def near(i, s):
    return range(max(i - 1, 0), min(i + 2, s))


def mean(x):
    h, w, _ = x.shape
    rows, columns = (range(0, s, 2) if s % 2 else range(1, s, 2) for s in (h, w))
    return np.array(
        [[np.mean([x[a, b] for a in near(i, h) for b in near(j, w)], axis=0) for j in columns] for i in rows]
    )


def stretch(x, size, *, corners=True):
    y = np.zeros((*size, x.shape[-1]))
    for i, j in np.ndindex(size):
        for k, l in np.ndindex(x.shape[:2]):
            share = 1.0
            for to, n, at, p in ((i, size[0], k, x.shape[0]), (j, size[1], l, x.shape[1])):
                position = to * (p - 1) / max(n - 1, 1) if corners else (to + 0.5) * p / n - 0.5
                share *= max(0, 1 - abs(min(max(position, 0), p - 1) - at))
            y[i, j] += share * x[k, l]
    return y


def hourglass(x, p, scale=0, *, pool=largest, beside=0, skipped=True, **kinds):
    d = chain(pool(x), p, f"down.{scale}")
    if any(key.startswith(f"down.{scale + 1}.") for key in p):
        again = {"pool": pool, "beside": beside, "skipped": skipped, **kinds}
        joined = skipped * chain(d, p, f"skip.{scale}") + beside * d + hourglass(d, p, scale + 1, **again)
        d = chain(joined, p, f"up.{scale}")
    return stretch(d, x.shape[:2], **kinds)


def mask(x, p, *, with_trunk=0, **kinds):
    x = chain(x, p, "before")
    seen = hourglass(x, p, **kinds) + with_trunk * chain(x, p, "trunk")
    seen = norm(seen, p, "norm_in") @ p["mix.kernel"]
    return sigmoid(norm(seen, p, "norm") @ p["score.kernel"])


def oracle(x, p, *, itself=1, after=True, **kinds):
    y = (itself + mask(x, p, **kinds)) * chain(chain(x, p, "before"), p, "trunk")
    return chain(y, p, "after") if after else y


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create = partial(ResidualAttention, 4, **FORMS[form])
    against_oracle.assert_equal(create, oracle, SHAPE, gradient=form != "the paper's")  # which would be slow
    against_oracle.assert_equal(create, mask, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the mask alone multiplied": partial(oracle, itself=0),
    "no unit after": partial(oracle, after=False),
    "the maps added beside their units": partial(oracle, beside=1),
    "no units beside": partial(oracle, skipped=False),
    "the trunk added to the mask": partial(oracle, with_trunk=1),
    "means for the largest": partial(oracle, pool=mean),
    "centres on centres": partial(oracle, corners=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(partial(ResidualAttention, 4, reduction=1), MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_its_count_is_the_papers(steps):
    module = nnx.eval_shape(lambda: ResidualAttention(256, steps=steps, rngs=nnx.Rngs(0)))
    units, c = {1: 6, 2: 9, 3: 12}[steps], 256
    assert module.cost((56, 56, c)).parameters == units * (17 * c * c // 16 + 3 * c) + 2 * c * c + 4 * c
