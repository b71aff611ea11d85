"""CBAM against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.cbam import Cbam
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
PAPER = partial(Cbam, 6, reduction=2, kernel_size=5)
LIGHT = partial(Cbam, 6, hidden=4, kernel_size=5, use_bias=False, light=True)


def layers(z, p, act=lambda u: np.maximum(u, 0)):
    hidden = act(z @ p["excite.reduce.kernel"] + p.get("excite.reduce.bias", 0))
    return hidden @ p["excite.expand.kernel"] + p.get("excite.expand.bias", 0)


def mean_and_max(x):
    _, _, c = x.shape
    channels = [x[:, :, k].ravel() for k in range(c)]
    return np.array([sum(v) / len(v) for v in channels]), np.array([max(v) for v in channels])


def convolve(pooled, p, *, norm=True):
    h, w, _ = pooled.shape
    kernel = p["convolve.kernel"][..., 0]
    r = len(kernel) // 2
    out = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            for a in range(-r, r + 1):
                for b in range(-r, r + 1):
                    if 0 <= i + a < h and 0 <= j + b < w:
                        out[i, j] += pooled[i + a, j + b] @ kernel[a + r, b + r]
    normed = (out - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]
    return normed if norm else out


def channel_weights(x, p, **kinds):
    mean, maximum = mean_and_max(x)
    return sigmoid(layers(mean, p, **kinds) + layers(maximum, p, **kinds))


def spatial_weights(x, p, *, order=(0, 1), norm=True):
    pooled = np.stack([x.mean(-1), x.max(-1)], -1)[..., list(order)]
    return sigmoid(convolve(pooled, p, norm=norm))


def maps(x, p):
    s = channel_weights(x, p)
    return {"channel": s, "spatial": spatial_weights(x * s, p)}


def oracle(x, p, **kinds):
    scaled = x * channel_weights(x, p)
    return scaled * spatial_weights(scaled, p, **kinds)[..., None]


def light_maps(x, p):
    s = sigmoid(layers(sum(mean_and_max(x)) / 2, p))
    scaled = x * s
    return {"channel": s, "spatial": sigmoid(convolve((scaled.mean(-1) + scaled.max(-1))[..., None] / 2, p))}


def light(x, p):
    s, m = light_maps(x, p).values()
    return x * s * m[..., None]


@pytest.mark.parametrize(
    ("create", "oracle", "maps"), [(PAPER, oracle, maps), (LIGHT, light, light_maps)], ids=["paper", "light"]
)
def test_it_is_the_paper(create, oracle, maps):
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, maps, SHAPE, method="attention_map", gradient=False)


def mean_twice(x, p):
    scaled = x * sigmoid(2 * layers(mean_and_max(x)[0], p))
    return scaled * spatial_weights(scaled, p)[..., None]


MUTANTS = {
    "the mean twice, the maximum unused": mean_twice,
    "a residual": lambda x, p: x + oracle(x, p),
    "the window's channels in the other order": lambda x, p: oracle(x, p, order=(1, 0)),
    "no batch norm": lambda x, p: oracle(x, p, norm=False),
    "the channels' gate alone": lambda x, p: x * channel_weights(x, p),
    "side by side": lambda x, p: x * channel_weights(x, p) * spatial_weights(x, p)[..., None],
    "mean and maximum averaged": lambda x, p: (
        x * sigmoid(layers(sum(mean_and_max(x)) / 2, p)) * spatial_weights(x, p)[..., None]
    ),
    "no activation inside": lambda x, p: x * channel_weights(x, p, act=lambda u: u) * maps(x, p)["spatial"][..., None],
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(PAPER, MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [({}, 2 * 64 * 4 + 4 + 64 + 100), ({"use_bias": False}, 612), ({"use_bias": False, "light": True}, 563)],
)
def test_it_has_the_parameters_of_the_authors_and_of_timm(arguments, parameters):
    assert Cbam(64, **arguments, rngs=nnx.Rngs(0)).cost((56, 56, 64)).parameters == parameters


def test_in_training_the_window_is_normalised_over_the_batch():
    module = PAPER(rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype("float32")
    module.train()
    out = module(jnp.asarray(x))
    p = against_oracle.numbers(module)
    scaled = np.stack([example * channel_weights(example, p) for example in x])
    unit = {**p, "norm.mean": 0.0, "norm.var": 1.0, "norm.scale": 1.0, "norm.bias": 0.0}
    logits = np.stack([convolve(np.stack([s.mean(-1), s.max(-1)], -1), unit, norm=False) for s in scaled])
    m = sigmoid((logits - logits.mean()) / np.sqrt(logits.var() + 1e-5))
    np.testing.assert_allclose(out, scaled * m[..., None], rtol=1e-4, atol=1e-5)
