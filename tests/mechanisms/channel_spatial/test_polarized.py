"""Polarized self-attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.polarized import PolarizedSelfAttention
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

FORMS = {
    "parallel": ({}, (7, 5, 6)),
    "sequential": ({"layout": "sequential"}, (5, 7, 7)),
    "the authors' parallel": ({"authors_code": True}, (7, 5, 6)),
    "the authors' sequential": ({"layout": "sequential", "authors_code": True}, (3, 5, 24)),
}


def create(form):
    arguments, shape = FORMS[form]
    return partial(PolarizedSelfAttention, shape[-1], **arguments)


def softmax(u, axis=0):
    e = np.exp(u - u.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def layer_norm(z, p, name):
    return (z - z.mean()) / np.sqrt(z.var() + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def normed(z, p):
    return layer_norm(linear(z, p, "restore.layers.0"), p, "restore.layers.1")


def plain(z, p):
    return linear(z, p, "restore.layers.0")


def bottleneck(z, p):
    return linear(np.maximum(normed(z, p), 0), p, "restore.layers.3")


def of_query(q, v):
    return v @ softmax(q)


def of_scores(q, v):
    return softmax(v @ q)


def of_values(q, v):
    return softmax(v, axis=0) @ q


def channel_gate(x, p, *, restore, weigh=softmax):
    tokens = x.reshape(-1, x.shape[-1])
    weights = weigh((tokens @ p["channel_query.kernel"])[:, 0])
    values = linear(tokens, p, "channel_value")
    return sigmoid(restore(sum(a * v for a, v in zip(weights, values, strict=True)), p))


def spatial_gate(x, p, *, match):
    tokens = x.reshape(-1, x.shape[-1])
    queries = [linear(token, p, "spatial_query") for token in tokens]
    scores = match(sum(queries) / len(queries), linear(tokens, p, "spatial_value"))
    return sigmoid(scores).reshape(x.shape[:2])


def gates(x, p, *, restore=normed, match=of_query, sequential=False, weigh=softmax):
    by_channel = channel_gate(x, p, restore=restore, weigh=weigh)
    return {"channel": by_channel, "spatial": spatial_gate(by_channel * x if sequential else x, p, match=match)}


def oracle(x, p, *, sequential=False, merge=np.add, **kinds):
    of = gates(x, p, sequential=sequential, **kinds)
    if sequential:
        return of["channel"] * x * of["spatial"][..., None]
    return merge(of["channel"] * x, of["spatial"][..., None] * x)


KINDS = {
    "parallel": {},
    "sequential": {"sequential": True},
    "the authors' parallel": {"restore": plain, "match": of_scores},
    "the authors' sequential": {"restore": bottleneck, "match": of_values, "sequential": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    shape = FORMS[form][1]
    against_oracle.assert_equal(create(form), partial(oracle, **KINDS[form]), shape)
    against_oracle.assert_equal(
        create(form), partial(gates, **KINDS[form]), shape, method="attention_map", gradient=False
    )


MUTANTS = {
    "no norm": partial(oracle, restore=plain),
    "the authors' softmax in parallel": partial(oracle, match=of_scores),
    "the authors' softmax in sequence": partial(oracle, match=of_values),
    "no softmax of the query": partial(oracle, match=lambda q, v: v @ q),
    "a mean in the place of weights": partial(oracle, weigh=lambda u: np.full(len(u), 1 / len(u))),
    "the gates in sequence": partial(oracle, sequential=True),
    "their product": partial(oracle, merge=np.multiply),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create("parallel"), MUTANTS[mutant], FORMS["parallel"][1])


@pytest.mark.parametrize(
    ("form", "count"),
    [
        ("parallel", 2 * 64**2 + 5.5 * 64),
        ("the authors' parallel", 2 * 64**2 + 64),
        ("the authors' sequential", 1.6875 * 64**2 + 2.375 * 64),
    ],
)
def test_its_counts_are_those_of_the_forms(form, count):
    module = nnx.eval_shape(lambda: PolarizedSelfAttention(64, **FORMS[form][0], rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == count
