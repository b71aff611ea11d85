"""Decoupled spatial-temporal attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial_temporal.dstt import DecoupledSpatialTemporal
from tests import costs
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal import naive

SHAPE = (3, 4, 6, 8)
HEADS = 2
CREATE = {
    "spatial": partial(DecoupledSpatialTemporal, 8, mode="spatial", num_heads=HEADS),
    "temporal": partial(DecoupledSpatialTemporal, 8, mode="temporal", num_heads=HEADS),
    "more zones": partial(DecoupledSpatialTemporal, 8, mode="temporal", num_heads=HEADS, zones=(1, 3)),
}


def parts(shape, form):
    """Which tokens (t, i, j) attend to each other."""
    times, rows, columns = map(range, shape[:3])
    if form == "spatial":
        return [[(t, i, j) for i in rows for j in columns] for t in times]
    down, across = {"temporal": (2, 2), "more zones": (1, 3)}[form]
    high, wide = len(rows) // down, len(columns) // across
    return [
        [(t, i, j) for t in times for i in rows for j in columns if (i // high, j // wide) == zone]
        for zone in np.ndindex(down, across)
    ]


def oracle(x, p, *, form, which=parts, **kinds):
    y = np.zeros_like(x)
    for part in which(x.shape, form):
        tokens = naive.attend(np.array([x[place] for place in part]), p, HEADS, **kinds)
        for place, token in zip(part, tokens, strict=True):
            y[place] = token
    return y


def weights(x, p, *, form):
    return np.array([naive.weights(np.array([x[place] for place in part]), p, HEADS) for part in parts(x.shape, form)])


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], partial(oracle, form=form), SHAPE)
    against_oracle.assert_equal(
        CREATE[form], partial(weights, form=form), SHAPE, method="attention_map", gradient=False
    )


def spread(shape, form):
    """Zones of positions that lie two apart."""
    return [
        [place for place in np.ndindex(*shape[:3]) if (place[1] % 2, place[2] % 2) == zone] for zone in np.ndindex(2, 2)
    ]


def in_each_frame(shape, form):
    return [[place for place in part if place[0] == t] for t in range(shape[0]) for part in parts(shape, form)]


MUTANTS = {
    "the other mode": partial(oracle, form="spatial"),
    "all tokens": partial(oracle, form="temporal", which=lambda shape, form: [list(np.ndindex(*shape[:3]))]),
    "zones spread over the frame": partial(oracle, form="temporal", which=spread),
    "zones of one frame": partial(oracle, form="temporal", which=in_each_frame),
    "the scale of one head": partial(oracle, form="temporal", scale=8**-0.5),
    "other zones": partial(oracle, form="more zones"),
    "a residual": lambda x, p: x + oracle(x, p, form="temporal"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["temporal"], MUTANTS[mutant], SHAPE)


def test_frames_of_any_size_have_a_spatial_mode_of_the_cost_it_says():
    module = CREATE["spatial"](rngs=nnx.Rngs(0))
    x = np.ones((3, 5, 1, 8), np.float32)
    assert module.cost(x.shape).multiply_adds == costs.multiply_adds(module, x)
