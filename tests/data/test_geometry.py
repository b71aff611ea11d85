"""What moves pictures moves boxes, masks and frames along: compared with where painted things are found afterwards."""

import math

import numpy as np
import pytest
from PIL import Image

from attn_flax.data.transforms import (
    Flip,
    Invert,
    PaddedCrop,
    PermuteColors,
    RandomErasing,
    RandomResizedCrop,
    ResizeAndCrop,
    Shift,
    Window,
    random_box,
)

HEIGHT, WIDTH = 19, 23
MIDDLE = 9, 11
"""Moves of at most 9 leave this pixel in the image."""
CORNERS = ((1, 2, 6, 9), (7, 3, 18, 8), (4, 15, 15, 22), (12, 10, 15, 13))
"""Boxes (top, left, bottom, right) in pixels, none over another, none of which exactly a quarter can be seen."""


def record_of(corners=CORNERS, size=(HEIGHT, WIDTH)):
    """An image whose channels are y, x and the mask, a mask of painted boxes 1, 2, … and the boxes themselves."""
    mask = np.zeros(size, np.int16)
    for number, (top, left, bottom, right) in enumerate(corners, 1):
        mask[top:bottom, left:right] = number
    y, x = np.indices(size)
    return {
        "image": np.stack([y + 1, x + 1, mask], -1).astype(np.uint8),
        "mask": mask,
        "boxes": (np.array(corners) / np.tile(size, 2)).astype(np.float32),
        "labels": np.arange(1, len(corners) + 1, dtype=np.int32),
    }


def expected_of(record, source_of):
    """Mask and boxes, pixel by pixel, where (y, x) shows source_of(y, x) of the record."""
    size = record["mask"].shape
    mask = np.full(size, -1)
    for y in range(size[0]):
        for x in range(size[1]):
            there = source_of(y, x)
            if 0 <= there[0] < size[0] and 0 <= there[1] < size[1]:
                mask[y, x] = record["mask"][there]
    boxes = {}
    for label in record["labels"].tolist():
        area, seen = (record["mask"] == label).sum(), mask == label
        if seen.sum() >= area / 4:
            rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
            boxes[label] = (
                rows[0] / size[0],
                columns[0] / size[1],
                (rows[-1] + 1) / size[0],
                (columns[-1] + 1) / size[1],
            )
    return mask, boxes


@pytest.mark.parametrize("transform", [Shift(9), PaddedCrop(7), Flip()])
def test_pixels_and_annotations_move_alike(transform):
    record, rng = record_of(), np.random.default_rng(4)
    kept, mirrored = set(), set()
    for _ in range(60):
        moved = transform.random_map(record, rng)
        y, x = (moved["image"][MIDDLE][:2].astype(int) - 1).tolist()
        sign = -1 if moved["image"][0, 0, 1] > moved["image"][0, -1, 1] and isinstance(transform, Flip) else 1
        mask, boxes = expected_of(
            record, lambda row, column, y=y, x=x, sign=sign: (row - MIDDLE[0] + y, sign * (column - MIDDLE[1]) + x)
        )
        assert np.array_equal(moved["mask"], mask)
        assert moved["labels"].tolist() == list(boxes)
        np.testing.assert_allclose(moved["boxes"], list(boxes.values()), atol=1e-6)
        inside = mask >= 0
        assert np.array_equal(moved["image"][inside, 2], mask[inside])
        kept.add(len(boxes))
        mirrored.add(sign)
    assert kept == ({4} if isinstance(transform, Flip) else {2, 3, 4} | kept)
    assert mirrored == ({1, -1} if isinstance(transform, Flip) else {1})


def test_a_quarter_must_be_visible():
    record = record_of(corners=((0, 0, 8, 8),), size=(16, 16))

    for down, right, visible in ((-6, 0, 1), (-7, 0, 0), (-4, -4, 1), (-4, -5, 0), (-8, 0, 0), (8, 8, 1)):
        boxes, seen = Window(-down, -right, 16, 16).move_boxes(record["boxes"], (16, 16))
        assert seen.tolist() == [bool(visible)]
        assert boxes.min() >= 0


def painted(corners, size):
    """A grey image with one white box, and its annotation."""
    top, left, bottom, right = corners
    mask = np.zeros(size, np.int16)
    mask[top:bottom, left:right] = 1
    boxes = (np.array([corners]) / np.tile(size, 2)).astype(np.float32)
    image = np.repeat(255 * mask[..., np.newaxis].astype(np.uint8), 3, -1)
    return {"image": image, "mask": mask, "boxes": boxes, "labels": np.array([3], np.int32)}


def assert_box_is_where_it_is_painted(moved):
    """To the rounding to half a pixel and of the interpolation; and the mask to a pixel at the border."""
    white = moved["image"][..., 0] >= 128
    rows, columns = (np.flatnonzero(white.any(axis)) for axis in (1, 0))
    found = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    assert np.abs(moved["boxes"][0] * np.tile(white.shape, 2) - found).max() <= 0.55
    assert (white != (moved["mask"] == 1)).sum() <= 2 * sum(white.shape)
    assert (white == (moved["mask"] == 1)).mean() > 0.9


@pytest.mark.parametrize(
    ("size", "target"), [((96, 132), (32, 32)), ((132, 96), (31, 17)), ((40, 50), (83, 61)), ((50, 50), (25, 50))]
)
def test_resizing_and_cropping(size, target):
    rng = np.random.default_rng(6)
    for _ in range(10):
        top, left = (int(rng.integers(0, n // 2)) for n in size)
        corners = top, left, top + int(rng.integers(12, 20)), left + int(rng.integers(12, 20))
        moved = ResizeAndCrop(*target).map(painted(corners, size))
        assert moved["image"].shape == (*target, 3)
        if len(moved["boxes"]):
            assert_box_is_where_it_is_painted(moved)
        else:
            assert (moved["image"] >= 128).any(-1).mean() < 0.08


def test_a_mask_takes_the_nearest_pixel():
    mask = np.random.default_rng(0).integers(0, 9, (96, 132)).astype(np.int16)
    image = np.zeros((96, 132, 3), np.uint8)
    moved = ResizeAndCrop(32, 32).map({"image": image, "mask": mask})
    assert np.array_equal(moved["mask"], mask[1::3, 19:115:3])  # the 96 columns in the middle, thirds' centres
    assert moved["mask"].dtype == np.int16


def test_random_resized_crops():
    seen = 0
    for seed in range(40):
        record = painted((30, 40, 70, 95), (101, 120))
        moved = RandomResizedCrop(33, 27).random_map(record, np.random.default_rng(seed))
        top, left, height, width = random_box(
            np.random.default_rng(seed), (101, 120), area=(0.08, 1.0), log_aspect=math.log(4 / 3)
        )
        part = Image.fromarray(record["mask"]).crop((left, top, left + width, top + height))
        nearest = np.asarray(part.resize((27, 33), Image.Resampling.NEAREST))
        assert (moved["mask"] != nearest).mean() < 0.02  # Pillow rounds ties its own way
        visible = record["mask"][top : top + height, left : left + width].sum()
        assert len(moved["boxes"]) == (visible >= 40 * 55 / 4)
        if len(moved["boxes"]) and (moved["image"][..., 0] >= 128).any():
            assert_box_is_where_it_is_painted(moved)
            seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    "transform",
    [
        ResizeAndCrop(9, 30),
        RandomResizedCrop(9, 12),
        Shift(4),
        PaddedCrop(4),
        Flip(),
        PermuteColors(),
        Invert(),
        RandomErasing(0.8),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_all_frames_of_a_video_are_treated_as_one_image(transform, channels):
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, channels), np.uint8)
    video = np.stack([image, image, image])
    for seed in range(10):
        if isinstance(transform, ResizeAndCrop):
            alone, frames = transform.map({"image": image}), transform.map({"frames": video})
        else:
            alone = transform.random_map({"image": image}, np.random.default_rng(seed))
            frames = transform.random_map({"frames": video}, np.random.default_rng(seed))
        assert frames["frames"].shape == (3, *alone["image"].shape)
        assert (frames["frames"] == alone["image"]).all()


def test_colours_are_permuted_and_inverted():
    image, rng = np.random.default_rng(2).integers(0, 256, (4, 5, 3), np.uint8), np.random.default_rng(0)
    permuted = [PermuteColors().random_map({"image": image}, rng)["image"] for _ in range(200)]
    channels = {tuple(image[..., c].tobytes() for c in order): order for order in np.ndindex(3, 3, 3)}
    orders = [channels[tuple(result[..., c].tobytes() for c in range(3))] for result in permuted]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert len(set(orders)) == 6
    inverted = [Invert().random_map({"image": image}, rng)["image"] for _ in range(200)]
    negative = np.array([[[255 - int(value) for value in pixel] for pixel in row] for row in image])
    count = sum(np.array_equal(result, negative) for result in inverted)
    assert count + sum(np.array_equal(result, image) for result in inverted) == 200
    assert 70 < count < 130


def test_photometry_leaves_annotations_alone():
    record, rng = record_of(), np.random.default_rng(0)
    for transform in (PermuteColors(), Invert(), RandomErasing(1.0)):
        changed = transform.random_map(record, rng)
        assert all(changed[key] is record[key] for key in ("mask", "boxes", "labels"))
