"""The global filter against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.mechanisms.spatial.global_filter import GlobalFilter
from tests.mechanisms import against_oracle

SHAPES = {"odd width": (4, 5, 2), "even width": (5, 6, 2), "one position": (1, 1, 2)}


def create(shape):
    return partial(GlobalFilter, shape[-1], size=shape[:2])


def wave(n):
    """exp(-2πi·uv/n) for frequency u and position v."""
    return np.array([[np.exp(-2j * np.pi * u * v / n) for v in range(n)] for u in range(n)])


def whole(half, w):
    """All frequencies of a real map from those up to ⌊w/2⌋: K_{-u,-v} is the conjugate of K_{u,v}."""
    h = len(half)
    k = np.zeros((h, w, *half.shape[2:]), complex)
    for u, v in np.ndindex(h, w):
        if v <= w // 2:
            k[u, v] += half[u, v] / 2
        if (w - v) % w <= w // 2:
            k[u, v] += half[-u % h, -v % w].conj() / 2
        k[u, v] *= 1 if v in (0, w / 2) else 2
    return k


def oracle(x, p, *, conjugate=False, real=False):
    h, w, _ = x.shape
    f = p["filter"]
    k = whole(f[..., 0] + (0 if real else 1j) * (-1 if conjugate else 1) * f[..., 1], w)
    spectrum = k * np.einsum("ui,vj,ijc->uvc", wave(h), wave(w), x)
    y = np.einsum("ui,vj,uvc->ijc", wave(h).conj(), wave(w).conj(), spectrum) / (h * w)
    np.testing.assert_allclose(y.imag, 0, atol=1e-12)
    return y.real


def convolved(x, kernel, *, circular=True):
    h, w, _ = x.shape
    y = np.zeros_like(x)
    for i, j, a, b in np.ndindex(h, w, h, w):
        if circular or (i >= a and j >= b):
            y[i, j] += kernel[a, b] * x[(i - a) % h, (j - b) % w]
    return y


@pytest.mark.parametrize("width", SHAPES)
def test_it_is_the_paper(width):
    shape = SHAPES[width]
    against_oracle.assert_equal(create(shape), oracle, shape)
    impulse = np.zeros(shape)
    impulse[0, 0] = 1
    against_oracle.assert_equal(
        create(shape), lambda _, p: oracle(impulse, p), shape, method="attention_map", gradient=False
    )


MUTANTS = {
    "the conjugate filter": partial(oracle, conjugate=True),
    "the real part alone": partial(oracle, real=True),
    "a filter scaled with the transform": lambda x, p: oracle(x, p) * np.sqrt(x.shape[0] * x.shape[1]),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(SHAPES["even width"]), MUTANTS[mutant], SHAPES["even width"])


@pytest.mark.parametrize("width", ["odd width", "even width"])
def test_it_is_a_circular_convolution_with_its_map(width):
    module = against_oracle.build(create(SHAPES[width]))
    x = np.random.default_rng(0).normal(size=SHAPES[width])
    with jax.enable_x64():
        y, kernel = np.asarray(module(jnp.asarray(x))), np.asarray(module.attention_map(jnp.asarray(x)))
        shifted = np.asarray(module(jnp.roll(x, (1, 2), (0, 1))))
    np.testing.assert_allclose(y, convolved(x, kernel), atol=1e-12)
    np.testing.assert_allclose(shifted, np.roll(y, (1, 2), (0, 1)), atol=1e-12)
    assert np.abs(y - convolved(x, kernel, circular=False)).max() > 1e-3
