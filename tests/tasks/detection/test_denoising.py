"""Denoising queries: how much noise there is, and who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.tasks.detection.boxes import Objects
from attn_flax.tasks.detection.denoising import noised, repeated, sees_its_group

CLASSES, GROUPS = 7, 3


def many_objects(count=4000):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, CLASSES, (2, count))
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (2, count, 2)), rng.uniform(0.1, 0.3, (2, count, 2))], -1)
    return Objects(jnp.asarray(labels), jnp.asarray(boxes, jnp.float32))


@pytest.mark.parametrize("label_noise", [0.2, 0.8])
def test_noise_is_as_the_paper_says(label_noise):
    """Centres move by up to 0.4 of half a box, sizes change by up to 0.4, a share of the labels is drawn anew."""
    objects = many_objects()
    labels, boxes = map(np.asarray, noised(jax.random.key(0), objects, num_classes=CLASSES, label_noise=label_noise))
    there = np.asarray(objects.labels) >= 0
    size = np.asarray(objects.boxes)[..., 2:]
    moved = (boxes - objects.boxes)[there] / np.concatenate([size / 2, size], -1)[there]
    assert np.abs(moved).max() < 0.4 + 1e-5
    np.testing.assert_allclose(moved.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(moved.std(0), 0.4 / np.sqrt(3), rtol=0.03)
    correlations = np.corrcoef(moved.T) - np.eye(4)
    assert np.abs(correlations).max() < 0.05
    changed = labels[there] != np.asarray(objects.labels)[there]
    np.testing.assert_allclose(changed.mean(), label_noise * (CLASSES - 1) / CLASSES, rtol=0.1)
    assert set(labels.ravel()) == set(range(CLASSES))
    np.testing.assert_allclose(np.bincount(labels[~there]) / (~there).sum(), 1 / CLASSES, rtol=0.25)


def test_boxes_stay_in_the_image():
    corner = Objects(jnp.zeros((1, 500), int), jnp.broadcast_to(jnp.array([0.02, 0.99, 0.9, 0.9]), (1, 500, 4)))
    _, boxes = noised(jax.random.key(0), corner, num_classes=CLASSES, label_noise=0.2)
    assert 0 <= boxes.min() < 0.01 < 0.99 < boxes.max() <= 1


def test_objects_are_repeated_group_by_group():
    objects = many_objects(5)
    several = repeated(objects, GROUPS)
    np.testing.assert_array_equal(several.labels, np.tile(objects.labels, (1, GROUPS)))
    there = np.tile(objects.labels, (1, GROUPS)) >= 0
    np.testing.assert_array_equal(several.boxes[there], np.tile(objects.boxes, (1, GROUPS, 1))[there])
    np.testing.assert_array_equal(several.boxes[~there], np.tile([0.5, 0.5, 1, 1], (np.sum(~there), 1)))


def test_objects_of_a_group_see_each_other_alone():
    labels = jnp.asarray(np.random.default_rng(0).integers(-1, 3, (4, 5 * GROUPS)))
    sees = sees_its_group(labels, GROUPS)
    for b, i, j in np.ndindex(sees.shape):
        assert sees[b, i, j] == (i // 5 == j // 5 and labels[b, j] >= 0)
