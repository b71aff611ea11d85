"""Attention with convolutional projections against its derivation."""

import itertools
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.cvt import ConvolutionalAttention
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

CHANNELS, HEADS = 6, 2
SHAPE = (7, 5, CHANNELS)
create = partial(ConvolutionalAttention, CHANNELS, num_heads=HEADS)
FORMS = {
    "every second position": (create, SHAPE, 2),
    "an even map": (create, (6, 4, CHANNELS), 2),
    "all positions, biases": (partial(create, stride=1, qkv_bias=True), SHAPE, 1),
    "windows of 5×5, every third position": (partial(create, kernel_size=5, stride=3), SHAPE, 3),
}


def convolve(x, window, stride, reach=None):
    """Each position's neighbours weighted by channel, zeros around."""
    h, w, c = x.shape
    side = len(window)
    reach = side // 2 if reach is None else reach
    rows, columns = (range(0, n, stride) for n in (h, w))
    out = np.zeros((len(rows), len(columns), c))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        for a, b in itertools.product(range(side), repeat=2):
            y, z = row + a - reach, column + b - reach
            if 0 <= y < h and 0 <= z < w:
                out[i, j] += window[a, b] * x[y, z]
    return out


def norm(z, p, name):
    mean, var = p[f"{name}.norm.mean"], p[f"{name}.norm.var"]
    return (z - mean) / np.sqrt(var + 1e-5) * p[f"{name}.norm.scale"] + p[f"{name}.norm.bias"]


def identity(z, p, name):
    return z


def asked(x, p, name, *, stride, normalize=norm, convolve=convolve, window=None, after=identity):
    local = convolve(x, p[f"{window or name}.conv.kernel"], stride)
    features = normalize(local, p, window or name) @ p[f"{name}.linear.kernel"] + p.get(f"{name}.linear.bias", 0)
    return after(features, p, name).reshape(-1, CHANNELS)


def heads(x):
    return np.split(x, HEADS, axis=-1)


def weights(x, p, *, stride=2, scale=CHANNELS**-0.5, softmax=softmax_values, **kinds):
    q, k = asked(x, p, "q", stride=1, **kinds), asked(x, p, "k", stride=stride, **kinds)
    return np.array([softmax(scores(a, b) * scale) for a, b in zip(heads(q), heads(k), strict=True)])


def oracle(x, p, *, stride=2, of_values=None, scale=CHANNELS**-0.5, softmax=softmax_values, **kinds):
    alpha = weights(x, p, stride=stride, scale=scale, softmax=softmax, **kinds)
    v = heads(asked(x, p, "v", stride=stride, **kinds, **(of_values or {})))
    attended = np.concatenate([weighted_sums(a, v_j) for a, v_j in zip(alpha, v, strict=True)], 1)
    return (attended @ p["proj.kernel"] + p["proj.bias"]).reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_authors(form):
    create, shape, stride = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, stride=stride), shape)
    theirs = partial(weights, stride=stride)
    against_oracle.assert_equal(create, theirs, shape, method="attention_map", gradient=False)


def linear_first(x, p, name, *, stride):
    features = x @ p[f"{name}.linear.kernel"]
    return norm(convolve(features, p[f"{name}.conv.kernel"], stride), p, name).reshape(-1, CHANNELS)


def by_linear_first(x, p):
    q, k, v = (heads(linear_first(x, p, name, stride=stride)) for name, stride in (("q", 1), ("k", 2), ("v", 2)))
    alpha = [softmax_values(scores(a, b) * CHANNELS**-0.5) for a, b in zip(q, k, strict=True)]
    attended = np.concatenate([weighted_sums(a, v_j) for a, v_j in zip(alpha, v, strict=True)], 1)
    return (attended @ p["proj.kernel"] + p["proj.bias"]).reshape(x.shape)


MUTANTS = {
    "the scale of a head, as in vit-pytorch": partial(oracle, scale=(CHANNELS / HEADS) ** -0.5),
    "one window for keys and values, as in vit-pytorch": partial(oracle, of_values={"window": "k"}),
    "no scale": partial(oracle, scale=1.0),
    "a softmax over the queries": partial(oracle, softmax=lambda e: softmax_values(e.T).T),
    "no norm": partial(oracle, normalize=identity),
    "the norm after the linear layer": partial(oracle, normalize=identity, after=norm),
    "the linear layer before the convolution": by_linear_first,
    "the windows flipped": partial(oracle, convolve=lambda x, window, s: convolve(x, window[::-1, ::-1], s)),
    "keys from the second position on": partial(
        oracle, convolve=lambda x, window, s: convolve(x, window, s, reach=0 if s > 1 else None)
    ),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_a_map_padded_at_its_end_alone_differs():
    """As XLA's "SAME" pads an even map at stride 2."""
    mutant = partial(oracle, convolve=lambda x, window, s: convolve(x, window, s, reach=0 if s > 1 else None))
    against_oracle.assert_different(create, mutant, (6, 4, CHANNELS))


@pytest.mark.parametrize(("qkv_bias", "count"), [(False, 4 * 64**2 + 34 * 64), (True, 4 * 64**2 + 37 * 64)])
def test_it_has_as_many_parameters_as_the_authors(qkv_bias, count):
    module = nnx.eval_shape(lambda: ConvolutionalAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == count
