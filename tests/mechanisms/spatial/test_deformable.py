"""Deformable attention against its derivation."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import functional as F
from attn_flax.mechanisms.spatial.deformable import DeformableAttention, MultiScaleDeformableAttention
from tests.mechanisms import against_oracle

HEADS, POINTS, CHANNELS = 2, 3, 6
SIZES = ((5, 3), (2, 4))
QUERIES = 4


def read(v, x, y):
    """The map v (h, w, e) at the position (x, y) in shares of the image: the paper's sum over all pixels."""
    h, w, _ = v.shape
    column, row = x * w - 0.5, y * h - 0.5
    return sum(
        max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * v[i, j]
        for i, j in itertools.product(range(h), range(w))
    )


def attended(z, reference, maps, p, *, read=read, over_all=True, swapped=False, in_cells=True, values=True):
    """y of queries z (n, c) with references (n, 2) to maps (h, w, c)."""
    levels, e = len(maps), CHANNELS // HEADS
    v = [x @ p["value.kernel"] + p["value.bias"] if values else x for x in maps]
    out = []
    for z_q, r_q in zip(z, reference, strict=True):
        offsets = (z_q @ p["offsets.kernel"] + p["offsets.bias"]).reshape(HEADS, levels, POINTS, 2)
        scores = (z_q @ p["scores.kernel"] + p["scores.bias"]).reshape(HEADS, levels, POINTS)
        heads = []
        for j in range(HEADS):
            total = np.exp(scores[j]).sum() if over_all else np.exp(scores[j]).sum(-1, keepdims=True)
            alpha = np.exp(scores[j]) / total
            o = np.zeros(e)
            for level, m in itertools.product(range(levels), range(POINTS)):
                h, w, _ = maps[level].shape
                unit = (h, w) if swapped else (w, h) if in_cells else (1, 1)
                x, y = r_q + offsets[j, level, m] / unit
                o += alpha[level, m] * read(v[level][..., j * e : (j + 1) * e], x, y)
            heads.append(o)
        out.append(np.concatenate(heads) @ p["project.kernel"] + p["project.bias"])
    return np.array(out)


def centres(h, w):
    return np.array([((j + 0.5) / w, (i + 0.5) / h) for i in range(h) for j in range(w)])


def of_one_map(x, p, **kinds):
    p = {name.removeprefix("attend."): value for name, value in p.items()}
    h, w, c = x.shape
    return attended(x.reshape(-1, c), centres(h, w), [x], p, **kinds).reshape(h, w, c)


ONE_MAP = partial(DeformableAttention, CHANNELS, num_heads=HEADS, num_points=POINTS)
SHAPE = (*SIZES[0], CHANNELS)


def test_over_one_map_it_is_the_paper():
    against_oracle.assert_equal(ONE_MAP, of_one_map, SHAPE)


class OfTwoMaps(nnx.Module):
    """The references come from numbers of any size, so that some lie outside."""

    def __init__(self, **arguments):
        self.attend = MultiScaleDeformableAttention(CHANNELS, levels=2, num_heads=HEADS, num_points=POINTS, **arguments)

    def __call__(self, z, reference, one, other):
        return self.attend(z, reference, [one, other])


def of_two_maps(z, reference, one, other, p):
    p = {name.removeprefix("attend."): value for name, value in p.items()}
    return attended(z, reference, [one, other], p)


def test_over_two_maps_it_is_the_paper():
    """The derivative by the reference points too."""
    shapes = (QUERIES, CHANNELS), (QUERIES, 2), *((*size, CHANNELS) for size in SIZES)
    against_oracle.assert_equal(OfTwoMaps, of_two_maps, *shapes)


def border_repeated(v, x, y):
    h, w, _ = v.shape
    return read(v, np.clip(x, 0.5 / w, 1 - 0.5 / w), np.clip(y, 0.5 / h, 1 - 0.5 / h))


def nearest(v, x, y):
    h, w, e = v.shape
    i, j = math.floor(y * h), math.floor(x * w)
    return v[i, j] if 0 <= i < h and 0 <= j < w else np.zeros(e)


def corners_aligned(v, x, y):
    h, w, _ = v.shape
    return read(v, (x * (w - 1) + 0.5) / w, (y * (h - 1) + 0.5) / h)


MUTANTS = {
    "the border repeated": partial(of_one_map, read=border_repeated),
    "the nearest pixel": partial(of_one_map, read=nearest),
    "corners aligned": partial(of_one_map, read=corners_aligned),
    "x and y swapped": partial(of_one_map, read=lambda v, x, y: read(v, y, x)),
    "offsets in the other axis's cells": partial(of_one_map, swapped=True),
    "offsets in shares of the image": partial(of_one_map, in_cells=False),
    "values not projected": partial(of_one_map, values=False),
    "a residual": lambda x, p: x + of_one_map(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(ONE_MAP, MUTANTS[mutant], SHAPE)


def test_a_softmax_for_each_map_differs():
    shapes = (QUERIES, CHANNELS), (QUERIES, 2), *((*size, CHANNELS) for size in SIZES)

    def mutant(z, reference, one, other, p):
        p = {name.removeprefix("attend."): value for name, value in p.items()}
        return attended(z, reference, [one, other], p, over_all=False)

    against_oracle.assert_different(OfTwoMaps, mutant, *shapes)


def test_what_lies_outside_is_exactly_zero():
    rng = np.random.default_rng(0)
    v = jnp.asarray(rng.normal(size=(7, 5, HEADS, 3)), jnp.float32)
    far = jnp.asarray([[-0.11, 0.5], [1.11, 0.5], [0.5, -0.08], [0.5, 1.08], [9.0, -9.0]])  # half a cell and more
    locations = jnp.broadcast_to(far[:, None, None, None], (5, HEADS, 1, POINTS, 2))
    weights = jnp.full((5, HEADS, 1, POINTS), 1 / POINTS)
    out, pull = jax.vjp(lambda v: F.deformable_attention([v], locations, weights), v)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(pull(jnp.ones_like(out))[0], 0)


def test_heads_first_look_around_in_a_circle():
    """The authors' initial offsets, of 8 heads: those of a square's border."""
    several = MultiScaleDeformableAttention(8, levels=2, num_heads=8, num_points=4, rngs=nnx.Rngs(0))
    first = several.offsets.bias[...].reshape(8, 2, 4, 2)
    square = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    np.testing.assert_allclose(first[:, 0, 0], square, atol=1e-6)
    for point in range(4):
        np.testing.assert_allclose(first[:, :, point], (point + 1) * first[:, :, 0], atol=1e-6)
    module = DeformableAttention(8, num_heads=4, num_points=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5, 8)), jnp.float32)
    np.testing.assert_allclose(module.attention_map(x), 1 / 2)
    locations, _ = module.attend.sampling(x.reshape(35, 8), jnp.zeros((35, 2)), [x])
    np.testing.assert_allclose(locations[3, :, 0, 1] * jnp.array([5, 7]), [(2, 0), (0, 2), (-2, 0), (0, -2)], atol=1e-5)
