"""The spatial transformer against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.stn import SpatialTransformer
from tests.mechanisms import against_oracle
from tests.oracles import adaptive_average_pool

SHAPE = (7, 5, 6)
CREATE = {
    True: partial(SpatialTransformer, 6, bins=2, hidden=3),
    False: partial(SpatialTransformer, 6, bins=2, hidden=3, align_corners=False),
}


def theta(x, p):
    z = adaptive_average_pool(x, (2, 2)).ravel()
    hidden = np.maximum(z @ p["localize.reduce.kernel"] + p["localize.reduce.bias"], 0)
    return (hidden @ p["localize.expand.kernel"] + p["localize.expand.bias"]).reshape(2, 3)


def of_targets(n, *, aligned=True):
    return [-1 + 2 * i / (n - 1) if aligned else -1 + (2 * i + 1) / n for i in range(n)]


def grid(x, p, *, aligned=True, theta=theta):
    t = theta(x, p)
    rows, columns = (of_targets(n, aligned=aligned) for n in x.shape[:2])
    return np.array([[t @ np.array([x_t, y_t, 1]) for x_t in columns] for y_t in rows])


def to_pixels(s, n, *, aligned=True):
    return (s + 1) * (n - 1) / 2 if aligned else ((s + 1) * n - 1) / 2


def sampled(x, positions, *, to_pixels=to_pixels):
    """The paper's double sum over all pixels, with its kernel."""
    h, w, _ = x.shape
    y = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            x_s, y_s = (to_pixels(s, n) for s, n in zip(positions[i, j], (w, h), strict=True))
            for n in range(h):
                for m in range(w):
                    y[i, j] += x[n, m] * max(0, 1 - abs(x_s - m)) * max(0, 1 - abs(y_s - n))
    return y


def oracle(x, p, *, aligned=True, **kinds):
    return sampled(x, grid(x, p, aligned=aligned, **kinds), to_pixels=partial(to_pixels, aligned=aligned))


@pytest.mark.parametrize("aligned", CREATE)
def test_it_is_the_paper(aligned):
    against_oracle.assert_equal(CREATE[aligned], partial(oracle, aligned=aligned), SHAPE)
    of_grid = partial(grid, aligned=aligned)
    against_oracle.assert_equal(CREATE[aligned], of_grid, SHAPE, method="attention_map", gradient=False)


def clipped_before_their_weights(x, p):
    h, w, _ = x.shape
    y = np.zeros_like(x)
    positions = grid(x, p)
    for i in range(h):
        for j in range(w):
            x_s, y_s = (to_pixels(s, n) for s, n in zip(positions[i, j], (w, h), strict=True))
            x_0, x_1 = (int(np.clip(np.floor(x_s) + k, 0, w - 1)) for k in (0, 1))
            y_0, y_1 = (int(np.clip(np.floor(y_s) + k, 0, h - 1)) for k in (0, 1))
            y[i, j] += (x_1 - x_s) * ((y_1 - y_s) * x[y_0, x_0] + (y_s - y_0) * x[y_1, x_0])
            y[i, j] += (x_s - x_0) * ((y_1 - y_s) * x[y_0, x_1] + (y_s - y_0) * x[y_1, x_1])
    return y


def the_border_repeated(x, p):
    return sampled(x, np.clip(grid(x, p), -1, 1))


def swapped_theta(x, p):
    """That of a grid of (y, x)."""
    return theta(x, p)[:, [1, 0, 2]]


MUTANTS = {
    "size - 2 for size - 1": lambda x, p: sampled(x, grid(x, p), to_pixels=lambda s, n: (s + 1) * (n - 2) / 2),
    "rows and columns of the grid swapped": partial(oracle, theta=swapped_theta),
    "x and y swapped": lambda x, p: sampled(x, grid(x, p)[..., ::-1]),
    "corners clipped before their weights": clipped_before_their_weights,
    "no localisation network": partial(oracle, theta=lambda x, p: np.eye(2, 3)),
    "corners not aligned": partial(oracle, aligned=False),
    "the border repeated": the_border_repeated,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE[True], MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize("aligned", CREATE)
@pytest.mark.parametrize("size", [(7, 5), (1, 5), (1, 1)])
def test_it_starts_as_the_identity(aligned, size):
    module = SpatialTransformer(6, align_corners=aligned, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(*size, 6)), jnp.float32)
    np.testing.assert_allclose(module(x), x, atol=1e-5)
