"""The feature pyramid against naive layers."""

import numpy as np
import pytest

from attn_flax.models import FeaturePyramid
from tests import oracles
from tests.models import networks

SIZES = ((7, 5), (4, 3), (1, 2))
HALVES = ((4, 8), (2, 4), (1, 2))
CHANNELS = (2, 3, 5)


def oracle(maps, p, repeat):
    lateral = [x @ p[f"lateral.{i}.kernel"][0, 0] + p[f"lateral.{i}.bias"] for i, x in enumerate(maps)]
    levels = [lateral[-1]]
    for x in lateral[-2::-1]:
        levels.insert(0, x + repeat(levels[0], x.shape[:2]))
    return [oracles.conv3x3(x, p[f"smooth.{i}.kernel"], p[f"smooth.{i}.bias"]) for i, x in enumerate(levels)]


def nearest(x, size):
    (h, w), (p, q) = size, x.shape[:2]
    return np.array([[x[i * p // h, j * q // w] for j in range(w)] for i in range(h)])


def twice(x, size):
    return x.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize(
    ("sizes", "repeat"), [(SIZES, nearest), pytest.param(HALVES, twice, marks=pytest.mark.full), (SIZES[:1], nearest)]
)
def test_it_is_the_papers(sizes, repeat):
    maps = [networks.random(*size, c, seed=c) for size, c in zip(sizes, CHANNELS, strict=False)]
    module, p = networks.build(lambda **types: FeaturePyramid(CHANNELS[: len(sizes)], 4, **types))
    for ours, theirs in zip(networks.run(module, maps), oracle(maps, p, repeat), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
