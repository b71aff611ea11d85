"""Rows of images: what their figure holds, and that the PNG shows it."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.explain import draw_samples
from attn_flax.explain.samples import samples_figure


def random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_the_figure_shows_every_image_in_its_row():
    rows = {"cat": random(3, 5, 4, 3), "dog": random(3, 5, 4, 1), "bytes": np.full((3, 5, 4, 1), 255, np.uint8)}
    grid = np.array(samples_figure(rows).axes).reshape(3, 3)
    assert [axes[0].get_ylabel() for axes in grid] == list(rows)
    for axes, (title, images) in zip(grid, rows.items(), strict=True):
        for ax, image in zip(axes, images, strict=True):
            (shown,) = ax.get_images()
            expected = image / 255 if title == "bytes" else image
            np.testing.assert_allclose(np.asarray(shown.get_array()).reshape(image.shape), expected)
            assert shown.get_clim() == (0, 1)


def test_the_png_is_as_bright_as_the_images(tmp_path):
    draw_samples({"black": np.zeros((4, 6, 6, 1)), "white": np.ones((4, 6, 6, 1))}, tmp_path / "samples.png")
    pixels = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    upper, lower = np.array_split(pixels[:, 150:], 2)
    assert (upper < 5).mean() > 0.6
    assert (lower > 250).mean() > 0.9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, r"equally many images of one size, got shapes \[\]"),
        ({"a": np.zeros((2, 3, 3, 1)), "b": np.zeros((3, 3, 3, 1))}, "equally many images of one size"),
        ({"a": np.zeros((0, 3, 3, 1))}, "at least one image"),
        ({"a": np.full((2, 3, 3, 1), 1.5)}, r"images must be in \[0, 1\]"),
        ({"a": np.zeros((3, 3, 1))}, "with 1 or 3 channels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        samples_figure(rows)
