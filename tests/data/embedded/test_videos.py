"""The digit videos move as their label says, and nothing but the order of the frames tells which way."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.data import VIDEOS, load_dataset
from attn_flax.data.embedded.digits import split_scans_in_three
from attn_flax.data.embedded.videos import DIRECTIONS, make_video

STEPS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
STEPS |= {f"{y} {x}": (STEPS[y][0], STEPS[x][1]) for y in ("down", "up") for x in ("left", "right")}


def displacement(one, other):
    """The shift (down, right), around the borders and of less than 16, after which `one` is most like `other`."""
    one, other = (np.clip(frame.astype(float) - 150, 0, None) for frame in (one, other))  # the ink
    spectrum = np.fft.fft2(other) * np.conj(np.fft.fft2(one))
    shift = np.unravel_index(np.argmax(np.fft.ifft2(spectrum).real), one.shape)
    return [int((s + 16) % 32 - 16) for s in shift]


def test_directions():
    assert DIRECTIONS == STEPS
    assert len(STEPS) == 8


@pytest.mark.parametrize("direction", STEPS)
def test_digits_move_at_constant_speed(direction):
    down, right = STEPS[direction]
    images, _ = split_scans_in_three()["train"]
    for seed in range(8):
        frames = make_video(np.random.default_rng(seed), images[seed], DIRECTIONS[direction])
        assert (frames.shape, frames.dtype) == ((16, 32, 32), np.uint8)
        moves = np.array([displacement(frames[0], frame) for frame in frames])
        way = np.abs(moves[-1]).max()
        assert 13 <= way <= 15
        expected = np.outer(way * np.arange(16) / 15, [down, right])
        assert np.abs(moves - expected).max() <= 0.5


def test_some_frame_shows_the_whole_digit():
    images, _ = split_scans_in_three()["train"]
    for seed in range(40):
        frames = make_video(np.random.default_rng(seed), images[seed], list(STEPS.values())[seed % 8])
        assert any(
            not (ink[0].any() and ink[-1].any()) and not (ink[:, 0].any() and ink[:, -1].any()) for ink in frames > 200
        )


def test_a_direction_and_its_opposite_differ_in_the_order_of_frames_alone():
    # Positions: of the brightest ink, as counts over the frame; each step of time in its own histogram.
    images, _ = split_scans_in_three()["train"]
    histograms = np.zeros((2, 16, 32, 32))
    draws = 600
    for number, step in enumerate([(1, 1), (-1, -1)]):
        rng = np.random.default_rng(number)
        for _ in range(draws):
            histograms[number] += make_video(rng, images[3], step) > 200
    one, other = histograms.mean((2, 3))
    assert np.abs(one / other - 1).max() < 0.05
    # Each pixel is ink equally often, at each time, up to chance.
    rate = histograms.sum((0, 1)).mean() / (2 * 16 * draws)
    deviation = np.sqrt(rate * (1 - rate) / draws)
    assert np.abs(histograms[0] - histograms[1]).max() / draws < 6 * np.sqrt(2) * deviation


def test_the_set(few_dir):
    dataset = load_dataset("digit_videos", kind=VIDEOS, data_dir=few_dir)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [24, 5, 7]
    assert dataset.labellings == {"digit": tuple("0123456789"), "direction": tuple(DIRECTIONS)}
    assert dataset.class_names == (*"0123456789", *DIRECTIONS)
    for index in range(24):
        record = dataset.train[index]
        assert (record["frames"].shape, record["frames"].dtype) == ((16, 32, 32, 1), np.uint8)
        down, right = np.sign(displacement(*record["frames"][[0, -1], ..., 0])).tolist()
        assert STEPS[list(DIRECTIONS)[record["labels"][1]]] == (down, right)


def test_test_videos_show_test_scans(few_dir):
    dataset = load_dataset("digit_videos", kind=VIDEOS, data_dir=few_dir)
    scans = split_scans_in_three()
    for split in ("train", "test"):
        images, labels = scans[split]
        record = getattr(dataset, split)[0]
        levels = {
            int(side): [_enlarged(image, side) for image in images[labels == record["labels"][0]]]
            for side in (12, 13, 14)
        }
        best = max(_similarity(record["frames"][..., 0], scan) for scans in levels.values() for scan in scans)
        assert best > 0.9


def _enlarged(image, side):
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)).astype(float)


def _similarity(frames, scan):
    """The greatest correlation of a scan with a part of a frame, around the borders."""
    tiled = np.pad(frames[0].astype(float), ((0, 15), (0, 15)), mode="wrap")
    windows = np.lib.stride_tricks.sliding_window_view(tiled, scan.shape).reshape(-1, scan.size)
    windows = windows - windows.mean(1, keepdims=True)
    scan = (scan - scan.mean()).ravel()
    return (windows @ scan / np.linalg.norm(scan) / np.linalg.norm(windows, axis=1)).max()
