"""RandAugment's operations against their definitions, written out."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.data import randaugment as ra
from attn_flax.data.randaugment import OPERATIONS, RandAugment

COLOUR = np.random.default_rng(5).integers(0, 256, (9, 7, 3), np.uint8)
GREY = np.random.default_rng(6).integers(40, 200, (9, 7), np.uint8)


def run(operation, image, strength):
    return np.asarray(operation(Image.fromarray(image), strength)).astype(float)


def blend(image, degenerate, factor):
    return np.clip(degenerate + factor * (image.astype(float) - degenerate), 0, 255)


def luma(image):
    return image @ [0.299, 0.587, 0.114]


def test_there_are_fourteen():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 14


@pytest.mark.parametrize("operation", [f for f in OPERATIONS if f not in (ra._autocontrast, ra._equalize)])
@pytest.mark.parametrize("image", [COLOUR, GREY])
def test_no_strength_no_change(operation, image):
    assert np.array_equal(run(operation, image, 0.0), image)


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    ("operation", "degenerate"),
    [
        (ra._brightness, lambda image: 0.0),
        (ra._contrast, lambda image: np.floor(luma(image).mean() + 0.5)),
        (ra._color, lambda image: luma(image)[..., None]),
    ],
)
def test_enhancements_blend_with_a_duller_image(operation, degenerate, strength):
    expected = blend(COLOUR, degenerate(COLOUR), 1 + 0.9 * strength)
    assert np.abs(run(operation, COLOUR, strength) - expected).max() <= 1.5


def test_sharpness_blends_with_a_smoother_image():
    smooth = GREY.astype(float)
    for y in range(1, 8):
        for x in range(1, 6):
            window = GREY[y - 1 : y + 2, x - 1 : x + 2].astype(float)
            smooth[y, x] = (window.sum() + 4 * window[1, 1]) / 13
    assert np.abs(run(ra._sharpness, GREY, -1.0) - blend(GREY, smooth, 0.1)).max() <= 1.5


@pytest.mark.parametrize("strength", [-0.5, 0.5, 1.0])
def test_solarize_inverts_the_bright(strength):
    threshold = 256 - 256 * abs(strength)
    assert np.array_equal(run(ra._solarize, COLOUR, strength), np.where(threshold <= COLOUR, 255 - COLOUR, COLOUR))


def test_posterize_keeps_the_high_bits():
    assert np.array_equal(run(ra._posterize, COLOUR, 1.0), COLOUR // 16 * 16)
    assert np.array_equal(run(ra._posterize, COLOUR, -0.5), COLOUR // 4 * 4)


def test_autocontrast_stretches():
    expected = (GREY - GREY.min()) / np.ptp(GREY).astype(float) * 255
    assert np.abs(run(ra._autocontrast, GREY, 0.0) - expected).max() <= 1


def test_equalize_flattens_the_histogram():
    levels = np.repeat(np.arange(100, 116, dtype=np.uint8), 200).reshape(64, 50)
    result = run(ra._equalize, levels, 0.0)
    assert (np.diff(result.ravel()) >= 0).all()
    assert np.abs(result.ravel()[::200] - np.linspace(0, 255, 16)).max() <= 17


@pytest.mark.parametrize(("strength", "step"), [(1.0, 3), (-1.0, -3)])
def test_translations_move_whole_pixels(strength, step):
    # round(150 / 331 * 7) == 3; what comes in is grey.
    columns, rows = (np.full((7, 7, 3), 128), np.full((7, 7, 3), 128))
    image = COLOUR[:7]
    for target in range(7):
        if 0 <= target + step < 7:
            columns[:, target] = image[:, target + step]
            rows[target] = image[target + step]
    assert np.array_equal(run(ra._translate_x, image, strength), columns)
    assert np.array_equal(run(ra._translate_y, image, strength), rows)


@pytest.mark.parametrize("strength", [-0.8, 1.0])
def test_shear_slides_rows(strength):
    ramp = np.tile(np.arange(0, 200, 5, dtype=np.uint8), (40, 1))
    result = run(ra._shear_x, ramp, strength)
    centres = np.arange(40) + 0.5
    expected = 5 * (centres[None] + 0.3 * strength * centres[:, None] - 0.5)
    inside = (expected > 5) & (expected < 190)
    assert np.abs(result - expected)[inside].max() <= 1
    assert inside.mean() > 0.5
    assert np.abs(run(ra._shear_y, ramp.T.copy(), strength) - result.T).max() <= 1


def test_rotation_turns_by_thirty_degrees():
    ramp = np.tile(np.arange(0, 205, 5, dtype=np.uint8), (41, 1))
    result = run(ra._rotate, ramp, 1.0)
    y, x = np.mgrid[-20:21, -20:21]
    # Counter-clockwise, as the image is seen: its content at (x, y) came from the point turned back.
    expected = 5 * (20 + np.cos(np.pi / 6) * x - np.sin(np.pi / 6) * y)
    inside = np.hypot(x, y) < 18
    assert np.abs(result - expected)[inside].max() <= 1
    assert result[0, 0] == 128


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_channels_and_every_operation(channels):
    image = np.random.default_rng(8).integers(0, 256, (6, 5, channels), np.uint8)
    transform, rng = RandAugment(2, 9.0), np.random.default_rng(0)
    results = [transform.random_map({"image": image, "label": 4}, rng) for _ in range(100)]
    assert {record["image"].shape for record in results} == {(6, 5, channels)}
    assert {record["label"] for record in results} == {4}
    assert len({record["image"].tobytes() for record in results}) > 50


def test_one_channel_is_as_good_as_three_equal_ones():
    grey = GREY[..., None]
    for seed in range(40):
        one, three = (
            RandAugment(2, 7.0).random_map({"image": image, "label": 0}, np.random.default_rng(seed))["image"]
            for image in (grey, np.repeat(grey, 3, -1))
        )
        assert np.abs(one.astype(int) - three).max() <= 2
