"""Self-calibrated convolution against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.scconv import SelfCalibratedConv
from tests.mechanisms import against_oracle
from tests.oracles import conv3x3, sigmoid

SHAPE = (7, 5, 6)
create = partial(SelfCalibratedConv, 6, pooling=2)


def convolve(x, p, name):
    y = conv3x3(x, p[f"{name}.conv.kernel"], np.zeros(x.shape[-1]))
    y = (y - p[f"{name}.norm.mean"]) / np.sqrt(p[f"{name}.norm.var"] + 1e-5)
    return y * p[f"{name}.norm.scale"] + p[f"{name}.norm.bias"]


def pool(x, r):
    h, w, c = x.shape
    rows, columns = min(r, h), min(r, w)
    y = np.zeros((h // rows, w // columns, c))
    for i, j in np.ndindex(y.shape[:2]):
        y[i, j] = sum(x[i * rows + a, j * columns + b] for a, b in np.ndindex(rows, columns)) / (rows * columns)
    return y


def bilinear(x, size, *, corners=False):
    y = np.zeros((*size, x.shape[-1]))
    for i, j in np.ndindex(size):
        for k, l in np.ndindex(x.shape[:2]):
            share = 1.0
            for to, n, at, p in ((i, size[0], k, x.shape[0]), (j, size[1], l, x.shape[1])):
                position = to * (p - 1) / (n - 1) if corners else (to + 0.5) * p / n - 0.5
                share *= max(0, 1 - abs(min(max(position, 0), p - 1) - at))
            y[i, j] += share * x[k, l]
    return y


def nearest(x, size):
    y = np.zeros((*size, x.shape[-1]))
    for i, j in np.ndindex(size):
        y[i, j] = x[i * x.shape[0] // size[0], j * x.shape[1] // size[1]]
    return y


def first_half(x):
    return x[..., : x.shape[-1] // 2]


def weights(x, p, *, r=2, stretch=bilinear, half=first_half, itself=1, gate=sigmoid):
    x = half(x)
    return gate(itself * x + stretch(convolve(pool(x, r), p, "coarse"), x.shape[:2]))


def calibrated(x, p, *, half=first_half, merge=np.multiply, **kinds):
    return convolve(merge(weights(x, p, half=half, **kinds), convolve(half(x), p, "fine")), p, "out")


def oracle(x, p, **kinds):
    return np.concatenate([calibrated(x, p, **kinds), convolve(x[..., x.shape[-1] // 2 :], p, "plain")], axis=-1)


@pytest.mark.parametrize("shape", [SHAPE, (3, 1, 4)])
def test_it_is_the_paper(shape):
    form = partial(SelfCalibratedConv, shape[-1], pooling=2)
    against_oracle.assert_equal(form, oracle, shape)
    against_oracle.assert_equal(form, weights, shape, method="attention_map", gradient=False)


def test_it_is_the_authors_module():
    shape, kinds = (9, 7, 3), {"r": 4, "stretch": nearest, "half": lambda x: x}
    form = partial(SelfCalibratedConv, 3, split=False, interpolation="nearest")
    against_oracle.assert_equal(form, partial(calibrated, **kinds), shape)
    against_oracle.assert_equal(form, partial(weights, **kinds), shape, method="attention_map", gradient=False)


MUTANTS = {
    "the nearest": partial(oracle, stretch=nearest),
    "corners on corners": partial(oracle, stretch=partial(bilinear, corners=True)),
    "the gate without the map itself": partial(oracle, itself=0),
    "no sigmoid": partial(oracle, gate=lambda u: u),
    "no pooling": partial(oracle, r=1),
    "a sum": partial(oracle, merge=np.add),
    "the other half calibrated": lambda x, p: oracle(np.roll(x, 3, axis=-1), p),
    "a relu": lambda x, p: np.maximum(oracle(x, p), 0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_its_counts_are_those_of_the_forms():
    module, whole = (
        nnx.eval_shape(lambda s=s: SelfCalibratedConv(64, split=s, rngs=nnx.Rngs(0))) for s in (True, False)
    )
    assert module.cost((7, 5, 64)).parameters == 9 * 64**2 + 4 * 64
    assert whole.cost((7, 5, 64)).parameters == 27 * 64**2 + 6 * 64


def test_training_normalises_over_the_batch():
    module = create(rngs=nnx.Rngs(0))
    y = module(jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-3)
