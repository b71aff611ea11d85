"""Masks in colours: what their figures hold, and that the PNG shows it."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.explain import draw_masks
from attn_flax.explain.masks import class_colors, masks_figure

NAMES = ("background", "cat", "dog")
TRUTH = np.array([[[0, 1], [2, -1], [0, 0]], [[1, 1], [1, 0], [0, 0]]])


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def shown(ax):
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def test_the_figure_shows_image_truth_and_prediction():
    images, predicted = random(2, 3, 2, 3), np.zeros_like(TRUTH)
    figure = masks_figure(images, {"truth": TRUTH, "prediction": predicted}, NAMES)
    grid = np.array(figure.axes).reshape(2, 3)
    assert [ax.get_title() for ax in grid[0]] == ["image", "truth", "prediction"]
    colors = {k: class_colors(NAMES)[k] for k in range(3)} | {-1: (1, 1, 1)}
    for i in range(2):
        np.testing.assert_array_equal(shown(grid[i, 0]), images[i])
        np.testing.assert_array_equal(shown(grid[i, 1]), [[colors[k] for k in row] for row in TRUTH[i].tolist()])
        np.testing.assert_array_equal(shown(grid[i, 2]), np.zeros((3, 2, 3)))


def test_the_legend_has_the_classes_that_are_there():
    def legend(*masks):
        titles = dict(zip("ab", masks, strict=False))
        figure = masks_figure(random(2, 3, 2, 1), titles, NAMES)
        return [text.get_text() for text in figure.legends[0].get_texts()]

    assert legend(TRUTH) == ["background", "cat", "dog", "ignored"]
    assert legend(TRUTH.clip(0, 0), TRUTH.clip(2, 2)) == ["background", "dog"]


@pytest.mark.parametrize("sets", [1, 2])
def test_the_legend_of_many_long_names_is_inside_the_picture(sets):
    names = [f"pavement {i}" for i in range(13)]
    mask = np.arange(13).reshape(1, 13, 1)
    figure = masks_figure(random(1, 13, 1, 3), dict.fromkeys(["truth", "prediction"][:sets], mask), names)
    figure.savefig(io.BytesIO())
    left, bottom, right, top = figure.legends[0].get_window_extent().extents
    assert left >= 0
    assert bottom >= 0
    assert right <= figure.bbox.width
    assert top <= figure.bbox.height


def test_colours_differ_and_background_is_black():
    names = [f"class {i}" for i in range(11)] + ["background"] + [f"class {i}" for i in range(11, 30)]
    colors = class_colors(names)
    assert colors[11] == (0, 0, 0)
    assert min(np.abs(np.subtract(a, b)).max() for a, b in itertools.combinations(colors, 2)) > 0.05
    assert all(0 <= value <= 1 for color in colors for value in color)


def test_the_png_is_in_the_colours_of_the_classes(tmp_path):
    mask = np.zeros((1, 8, 8), int)
    mask[0, :4] = 2
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    draw_masks(images, {"truth": mask}, NAMES, tmp_path / "masks.png")
    pixels = np.asarray(Image.open(tmp_path / "masks.png").convert("RGB"))
    for color in (class_colors(NAMES)[0], class_colors(NAMES)[2]):
        assert (pixels == np.rint(np.multiply(color, 255))).all(-1).sum() > 5000
    assert (pixels == np.rint(np.multiply(class_colors(NAMES)[1], 255))).all(-1).sum() == 0


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (random(0, 3, 2, 3), {"truth": TRUTH[:0]}, "at least one image"),
        (random(2, 3, 2, 3), {}, "at least one mask"),
        (random(2, 3, 2, 3), {"truth": TRUTH[:1]}, r"integers of shape \(2, 3, 2\), .* got int64 \(1, 3, 2\)"),
        (random(2, 3, 2, 3), {"truth": TRUTH.astype(float)}, "masks must be integers"),
        (random(2, 3, 2, 3), {"truth": TRUTH + 1}, "masks must be of 3 classes, or -1, got 0 to 3"),
        (random(2, 3, 2, 3) - 1, {"truth": TRUTH}, r"images must be in \[0, 1\]"),
    ],
)
def test_what_it_refuses(images, masks, message):
    with pytest.raises(InputError, match=message):
        masks_figure(images, masks, NAMES)
