"""What a detector found, against loops over queries and classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.tasks.detection import detections, in_pixels, predict_boxes
from tests.tasks.detection import naive

CLASSES, QUERIES = 4, 5


class Said:
    """A detector that says the same of all images."""

    num_classes = CLASSES

    def __init__(self, logits, layers=3):
        rng = np.random.default_rng(0)
        self.logits = rng.normal(scale=2, size=(layers, 2, QUERIES, logits)).astype(np.float32)
        self.boxes = rng.uniform(0.1, 0.9, (layers, 2, QUERIES, 4)).astype(np.float32)

    def __call__(self, images):
        return {"logits": jnp.asarray(self.logits), "boxes": jnp.asarray(self.boxes)}


@pytest.mark.parametrize("logits", [CLASSES, CLASSES + 1])
def test_the_likeliest_pairs_come_first(logits):
    model = Said(logits)
    found = jax.jit(lambda x: predict_boxes(model, x, limit=7))(jnp.zeros((2, 8, 8, 3)))
    for image in range(2):
        said = model.logits[-1, image]
        p = np.array([naive.softmax(row) for row in said]) if logits > CLASSES else 1 / (1 + np.exp(-said))
        pairs = sorted(((p[i, k], i, k) for i in range(QUERIES) for k in range(CLASSES)), reverse=True)[:7]
        np.testing.assert_allclose(found.scores[image], [score for score, _, _ in pairs], rtol=1e-5)
        np.testing.assert_array_equal(found.labels[image], [k for _, _, k in pairs])
        np.testing.assert_array_equal(found.boxes[image], model.boxes[-1, image, [i for _, i, _ in pairs]])


def test_there_are_no_more_than_pairs():
    assert detections(Said(CLASSES)(None), CLASSES).scores.shape == (2, QUERIES * CLASSES)


def test_what_is_sure_enough_is_given_in_pixels():
    found = predict_boxes(Said(CLASSES), jnp.zeros((2, 30, 50, 3)))
    for image, sure in enumerate(in_pixels(found, (30, 50), threshold=0.6)):
        count = int((np.asarray(found.scores[image]) >= 0.6).sum())
        assert 0 < count < QUERIES * CLASSES
        expected = [np.array(naive.corners(box)) * (50, 30, 50, 30) for box in found.boxes[image, :count]]
        np.testing.assert_allclose(sure.boxes, expected, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(sure.labels, found.labels[image, :count])
        np.testing.assert_array_equal(sure.scores, found.scores[image, :count])
