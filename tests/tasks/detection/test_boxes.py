"""Generalised IoU against naive areas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.tasks.detection.boxes import generalized_iou, to_corners
from tests.tasks.detection.naive import corners, iou_and_giou

CASES = {
    "the same": ((0.4, 0.3, 0.2, 0.1), (0.4, 0.3, 0.2, 0.1), 1.0),
    "side by side": ((0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0), 0.0),
    "far away": ((0.1, 0.1, 0.2, 0.2), (0.9, 0.9, 0.2, 0.2), -(1 - 0.08)),
    "one inside": ((0.5, 0.5, 1.0, 1.0), (0.3, 0.6, 0.4, 0.5), 0.2),
    "points at one place": ((0.3, 0.3, 0.0, 0.0), (0.3, 0.3, 0.0, 0.0), 0.0),
    "points apart": ((0.2, 0.2, 0.0, 0.0), (0.6, 0.7, 0.0, 0.0), -1.0),
    "a line in a box": ((0.5, 0.5, 0.0, 0.4), (0.5, 0.5, 0.4, 0.4), 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_known_overlaps(case):
    a, b, expected = CASES[case]
    a, b = jnp.array(a), jnp.array(b)
    for first, second in ((a, b), (b, a)):
        value, slope = jax.value_and_grad(generalized_iou)(first, second)
        np.testing.assert_allclose(value, expected, atol=1e-5)
        assert np.isfinite(slope).all()


def test_all_pairs_are_those_of_naive_areas():
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.0, 0.9, (n, 4)).astype(np.float32) for n in (17, 13))
    with jax.enable_x64():
        pairs = generalized_iou(jnp.asarray(a, jnp.float64)[:, None], jnp.asarray(b, jnp.float64))
    np.testing.assert_allclose(pairs, [[iou_and_giou(x, y)[1] for y in b] for x in a], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(to_corners(jnp.asarray(a)), [corners(x) for x in a], rtol=1e-6, atol=1e-7)
    assert np.ptp(pairs) > 1
