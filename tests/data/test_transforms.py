"""Each transform against the moves it may make, written out."""

import math

import numpy as np
import pytest
from PIL import Image

from attn_flax.data.transforms import (
    Flip,
    PaddedCrop,
    RandomErasing,
    RandomResizedCrop,
    ResizeAndCrop,
    Shift,
    random_box,
)

DRAWS = 400


def noise(height=7, width=5, channels=2):
    # No zeros, so that they tell what came in.
    return np.random.default_rng(3).integers(1, 256, (height, width, channels), np.uint8)


def ramp(height, width):
    """An image that holds its own coordinates: y and x, in steps of 2."""
    return np.stack(np.meshgrid(2 * np.arange(height), 2 * np.arange(width), indexing="ij"), -1).astype(np.uint8)


def draw(transform, image, seed=0):
    rng = np.random.default_rng(seed)
    records = [transform.random_map({"image": image, "label": 6}, rng) for _ in range(DRAWS)]
    assert {record["label"] for record in records} == {6}
    assert {record["image"].dtype for record in records} == {np.dtype(np.uint8)}
    return [record["image"] for record in records]


def moved(image, down, right, outside):
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            result[y, x] = outside(image, y - down, x - right)
    return result.tobytes()


def zero(image, y, x):
    inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
    return image[y, x] if inside else 0


def mirror(image, y, x):
    def reflect(i, size):
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    return image[reflect(y, image.shape[0]), reflect(x, image.shape[1])]


@pytest.mark.parametrize(("transform", "outside"), [(Shift(2), zero), (PaddedCrop(2), mirror)])
def test_moves_are_all_those_within_reach(transform, outside):
    image = noise()
    reach = range(-2, 3)
    expected = {moved(image, down, right, outside) for down in reach for right in reach}
    assert len(expected) == 25
    assert {result.tobytes() for result in draw(transform, image)} == expected


def test_shift_beyond_the_image_leaves_zeros():
    results = {result.tobytes() for result in draw(Shift(9), noise(2, 2, 1))}
    assert bytes(4) in results


def test_flip_mirrors_half_of_the_images():
    image = noise()
    mirrored = np.array([[row[x] for x in range(4, -1, -1)] for row in image])
    results = draw(Flip(), image)
    flipped = [np.array_equal(result, mirrored) for result in results]
    kept = [np.array_equal(result, image) for result in results]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert abs(sum(flipped) - DRAWS / 2) < 4 * math.sqrt(DRAWS / 4)


def test_images_that_fit_are_left_alone():
    record = {"image": noise(), "label": 1}
    assert ResizeAndCrop(7, 5).map(record) is record


@pytest.mark.parametrize(
    ("size", "target", "scale", "top", "left"),
    [((60, 100), (30, 30), 2, 0, 20), ((100, 60), (30, 30), 2, 20, 0), ((40, 80), (20, 10), 2, 0, 30)],
)
def test_resize_covers_and_crops_the_centre(size, target, scale, top, left):
    result = ResizeAndCrop(*target).map({"image": ramp(*size), "label": 0})["image"]
    assert result.shape == (*target, 2)
    # The centre of pixel i lies at scale * (i + 1/2) - 1/2 of what was cropped.
    rows, columns = (scale * (np.arange(n) + 0.5) - 0.5 for n in target)
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(result[..., 0] - 2 * (top + rows)[:, None])[inner].max() <= 1
    assert np.abs(result[..., 1] - 2 * (left + columns))[inner].max() <= 1


def test_resizing_colours_is_resizing_each_channel():
    image = noise(9, 8, 3)
    together = ResizeAndCrop(4, 4).map({"image": image, "label": 0})["image"]
    for channel in range(3):
        alone = ResizeAndCrop(4, 4).map({"image": image[..., channel : channel + 1], "label": 0})["image"]
        assert np.array_equal(together[..., channel], alone[..., 0])


def test_random_boxes_keep_their_laws():
    rng = np.random.default_rng(1)
    boxes = [random_box(rng, (301, 203, 3), area=(0.1, 0.5), log_aspect=math.log(2)) for _ in range(DRAWS)]
    top, left, height, width = np.array(boxes).T
    assert min(top) >= 0
    assert min(left) >= 0
    assert max(top + height) <= 301
    assert max(left + width) <= 203
    share, aspect = height * width / (301 * 203), height / width
    assert 0.095 < min(share) < 0.15
    assert 0.4 < max(share) < 0.51
    assert 0.49 < min(aspect) < 0.6
    assert 1.8 < max(aspect) < 2.03


def test_no_box_fits():
    assert random_box(np.random.default_rng(0), (2, 100, 1), area=(0.9, 1.0), log_aspect=0.1) is None


def test_random_resized_crop_is_its_box_resized():
    image = noise(31, 23, 3)
    for seed in range(20):
        result = RandomResizedCrop(9, 11).random_map({"image": image, "label": 0}, np.random.default_rng(seed))["image"]
        box = random_box(np.random.default_rng(seed), image.shape, area=(0.08, 1.0), log_aspect=math.log(4 / 3))
        top, left, height, width = box
        part = Image.fromarray(image).crop((left, top, left + width, top + height))
        assert np.array_equal(result, np.asarray(part.resize((11, 9), Image.Resampling.BICUBIC)))


def test_random_resized_crop_falls_back_to_the_centre():
    image = noise(2, 90, 3)
    record = {"image": image, "label": 0}
    results = {result.tobytes() for result in draw(RandomResizedCrop(4, 4), image)}
    assert ResizeAndCrop(4, 4).map(record)["image"].tobytes() in results


def test_erasing_fills_one_rectangle_with_noise():
    image = np.zeros((40, 30, 2), np.uint8)
    results = draw(RandomErasing(0.7), image)
    erased = [result for result in results if result.any()]
    assert abs(len(erased) - 0.7 * DRAWS) < 4 * math.sqrt(DRAWS * 0.21)
    for result in erased:
        # Noise is zero in both channels once in 65,536 pixels: the extent of the rest is the rectangle.
        rows, columns = (np.flatnonzero(result.any((axis, 2))) for axis in (1, 0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert result.any(-1).sum() >= 0.98 * height * width
        assert 0.01 <= height * width / 1200 <= 0.43
        assert 0.2 <= height / width <= 5
    assert 120 < np.concatenate([result[result > 0] for result in erased]).mean() < 136
    assert not image.any()
    assert all(not result.any() for result in draw(RandomErasing(0.0), image))
