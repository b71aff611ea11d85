"""Matching against SciPy's assignment, and the losses of queries against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.tasks.detection.boxes import Objects
from attn_flax.tasks.detection.set_loss import Parts, match, matching_cost, query_losses
from tests.tasks.detection import naive

CLASSES, QUERIES, MOST = 5, 9, 7
WEIGHTS = Parts(classes=2.0, l1=5.0, giou=2.0)
COUNTS = (0, 1, 7, 4)
kinds = pytest.mark.parametrize("logits", [CLASSES, CLASSES + 1], ids=["focal", "softmax"])


def predictions(rng, *shape, logits):
    boxes = rng.uniform(0.05, 0.9, (*shape, 4)).astype(np.float32)
    return rng.normal(scale=2, size=(*shape, logits)).astype(np.float32), boxes


@kinds
def test_costs_and_matches_are_those_of_loops_and_scipy(logits):
    rng = np.random.default_rng(0)
    for seed, count in enumerate(COUNTS * 3):
        said, boxes = predictions(rng, QUERIES, logits=logits)
        (labels,), (targets,) = naive.scene(np.random.default_rng(seed), [count], MOST, CLASSES)
        objects = Objects(jnp.asarray(labels), jnp.asarray(targets))
        cost = matching_cost(jnp.asarray(said), jnp.asarray(boxes), objects, num_classes=CLASSES, weights=WEIGHTS)
        there, expected = naive.costs(said, boxes, labels, targets, CLASSES)
        np.testing.assert_allclose(cost[:, there], expected, rtol=1e-4, atol=1e-5)
        assert not np.delete(np.asarray(cost), there, 1).any()
        matched = jax.jit(match)(cost, objects)
        of_query = naive.assigned(said, boxes, labels, targets, CLASSES)
        np.testing.assert_array_equal(matched.labels, [-1 if j is None else labels[j] for j in of_query])
        for i, j in enumerate(of_query):
            assert j is None or np.array_equal(matched.boxes[i], targets[j])


def test_as_many_objects_as_queries_are_all_found():
    rng = np.random.default_rng(0)
    labels = rng.permutation(MOST).astype(np.int32)
    objects = Objects(jnp.asarray(labels), jnp.asarray(rng.uniform(size=(MOST, 4)), jnp.float32))
    found = match(jnp.asarray(rng.normal(size=(MOST, MOST)), jnp.float32), objects)
    assert sorted(found.labels.tolist()) == list(range(MOST))


def test_costs_that_are_not_finite_come_to_an_end():
    """Training can then tell that it diverged."""
    objects = Objects(jnp.arange(MOST), jnp.ones((MOST, 4)))
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        found = jax.jit(match)(jnp.full((QUERIES, MOST), value).at[0, 0].set(1.0), objects)
        assert found.labels.shape == (QUERIES,)


@kinds
def test_losses_are_those_of_loops(logits):
    rng = np.random.default_rng(1)
    said, boxes = predictions(rng, 3, QUERIES, logits=logits)
    labels, targets = naive.scene(rng, (0, 4, 9), QUERIES, CLASSES)
    losses = query_losses(
        jnp.asarray(said), jnp.asarray(boxes), Objects(jnp.asarray(labels), jnp.asarray(targets)), num_classes=CLASSES
    )
    for b in range(3):
        for i in range(QUERIES):
            expected = naive.class_loss(said[b, i], labels[b, i], CLASSES)
            np.testing.assert_allclose(losses.classes[b, i], expected, rtol=1e-4)
            there = labels[b, i] >= 0
            l1 = np.abs(boxes[b, i] - targets[b, i]).sum() if there else 0
            giou = 1 - naive.iou_and_giou(boxes[b, i], targets[b, i])[1] if there else 0
            np.testing.assert_allclose([losses.l1[b, i], losses.giou[b, i]], [l1, giou], rtol=1e-4)
