"""Boxes in pictures: what their figures hold, and that the PNG shows it."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.explain import draw_boxes
from attn_flax.explain.boxes import boxes_figure
from attn_flax.explain.masks import class_colors

NAMES = ("cat", "dog", "eel")
TRUTH = [([[2, 1, 6, 9]], [2], None), (np.zeros((0, 4)), [], None)]
FOUND = [([[2, 1, 5, 9], [0, 0, 3, 4]], [2, 0], [0.914, 0.6]), ([[1, 1, 7, 2]], [1], [0.5])]


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def rectangles(ax):
    return [(*patch.get_xy(), patch.get_width(), patch.get_height(), patch.get_edgecolor()[:3]) for patch in ax.patches]


def test_the_figure_shows_truth_and_what_was_found():
    images = random(2, 10, 8, 3)
    grid = np.array(boxes_figure(images, {"truth": TRUTH, "found": FOUND}, NAMES).axes).reshape(2, 2)
    assert [ax.get_title() for ax in grid[0]] == ["truth", "found"]
    colors = class_colors(NAMES)
    assert rectangles(grid[0, 0]) == [(2, 1, 4, 8, colors[2])]
    assert rectangles(grid[1, 0]) == []
    assert rectangles(grid[0, 1]) == [(2, 1, 3, 8, colors[2]), (0, 0, 3, 4, colors[0])]
    assert [text.get_text() for ax in grid.ravel() for text in ax.texts] == ["eel", "eel 0.91", "cat 0.60", "dog 0.50"]
    for row, image in zip(grid, images, strict=True):
        for ax in row:
            np.testing.assert_array_equal(np.asarray(ax.get_images()[0].get_array()), image)


def test_the_png_has_the_box_where_it_is(tmp_path):
    images = np.zeros((1, 20, 20, 3), np.uint8)
    draw_boxes(images, {"truth": [([[5, 10, 15, 18]], [1], None)]}, NAMES, tmp_path / "boxes.png")
    pixels = np.asarray(Image.open(tmp_path / "boxes.png").convert("RGB"), int)
    near = np.abs(pixels - np.rint(np.multiply(class_colors(NAMES)[1], 255))).max(-1) < 30
    picture = (pixels == 0).all(-1) | near
    rows, columns = (np.flatnonzero(picture.any(axis)) for axis in (1, 0))
    top, left = rows[0], columns[0]
    pixel = (columns[-1] + 1 - left) / 20
    lower = np.argwhere(near[int(top + 12 * pixel) :])  # below the name
    first, last = lower.min(0), lower.max(0)
    np.testing.assert_allclose((first[1] - left) / pixel, 5, atol=0.3)
    np.testing.assert_allclose((last[1] - left) / pixel, 15, atol=0.3)
    np.testing.assert_allclose(last[0] / pixel + 12, 18, atol=0.4)


@pytest.mark.parametrize(
    ("images", "boxes", "message"),
    [
        (random(0, 10, 8, 3), {"truth": []}, "at least one image"),
        (random(2, 10, 8, 3), {}, "at least one set"),
        (random(2, 10, 8, 3), {"truth": TRUTH[:1]}, "boxes must be those of 2 images, got 1 for 'truth'"),
        (random(1, 10, 8, 3), {"truth": [([[0, 0, 1, 1]], [3], None)]}, "labels must be of 3 classes, got 3"),
        (random(1, 10, 8, 3), {"truth": [([[0, 0, 1, 1]], [1, 2], None)]}, r"\(n, 4\) with n labels and scores"),
        (random(1, 10, 8, 3) - 1, {"truth": TRUTH[:1]}, r"images must be in \[0, 1\]"),
    ],
)
def test_what_it_refuses(images, boxes, message):
    with pytest.raises(InputError, match=message):
        boxes_figure(images, boxes, NAMES)
