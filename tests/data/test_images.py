"""Images of a user, and what is found in them."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.data import in_pixels_of_file, read_images


@pytest.mark.parametrize("size", [(40, 40), (30, 80), (7, 9)])
def test_boxes_of_a_shown_image_lie_where_they_do_in_its_file(tmp_path, size):
    """A rectangle is found in the image as it is shown, and in the file at that place."""
    height, width = size
    there = np.array([170, 60, 210, 100])
    pixels = np.zeros((160, 390), np.uint8)
    pixels[there[1] : there[3], there[0] : there[2]] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    (shown,) = read_images([tmp_path / "one.png"], shape=(height, width, 1), mean=(0.0,), std=(1.0,))
    y, x = np.nonzero(shown[..., 0] > 0.5)
    corners = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], np.float32)
    (found,) = in_pixels_of_file(corners, tmp_path / "one.png", size=size)
    pixel = min(160 / height, 390 / width)
    np.testing.assert_allclose(found, there, atol=pixel)
    np.testing.assert_allclose(found[:2] + found[2:], there[:2] + there[2:], atol=pixel)
