"""Batches and statistics against NumPy."""

import numpy as np
import pytest

from attn_flax.checks import InputError
from attn_flax.data import channel_statistics
from attn_flax.data.collate import Collate, convert_channels
from tests.data.sources import ArraySource, numbered

MEAN, STD = (0.2, 0.4, 0.7), (0.1, 0.3, 0.25)


def test_standardised_by_channel():
    source = numbered(11, (5, 7, 3))
    batch = Collate((5, 7, 3), MEAN, STD, 10)([source[i] for i in range(11)])
    expected = (source.images / 255 - np.array(MEAN)) / np.array(STD)
    assert (batch["image"].dtype, batch["label"].dtype) == (np.float32, np.int32)
    assert np.abs(batch["image"] - expected).max() < 2e-6
    assert batch["label"].tolist() == [*range(10), 0]


def test_padding_has_no_weight():
    source = numbered(3, (5, 7, 3))
    collate = Collate((5, 7, 3), MEAN, STD, 10)
    records = [source[i] for i in range(3)]
    batch = collate.padded(records, 5)
    assert batch["weight"].tolist() == [1, 1, 1, 0, 0]
    assert np.array_equal(batch["image"][:3], collate(records)["image"])
    assert not batch["image"][3:].any()
    assert not collate.padded([], 4)["weight"].any()


def test_channels_are_repeated_or_become_luma():
    grey = numbered(1, (5, 7, 1)).images[0]
    colour = numbered(1, (5, 7, 3)).images[0]
    assert np.array_equal(convert_channels(grey, 3), np.stack([grey[..., 0]] * 3, -1))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(convert_channels(colour, 1)[..., 0] - luma).max() <= 1
    with pytest.raises(InputError, match="images of 2 channels cannot be given 3; expected 1, or 3 for one"):
        convert_channels(np.zeros((5, 7, 2), np.uint8), 3)


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range(label):
    source = ArraySource(np.zeros((2, 5, 7, 3), np.uint8), np.array([3, label]))
    with pytest.raises(InputError, match=rf"labels must be in \[0, 4\), got {label}"):
        Collate((5, 7, 3), MEAN, STD, 4)([source[0], source[1]])


@pytest.mark.parametrize(
    ("shape", "mean", "std", "message"),
    [
        ((5, 7, 1), MEAN, STD, "mean must have 1 values, one per channel, got 3"),
        ((5, 7, 3), MEAN, STD[:2], "std must have 3 values, one per channel, got 2"),
        ((5, 7, 3), MEAN, (0.1, 0.0, 0.1), r"std must be positive, got \(0.1, 0.0, 0.1\)"),
        ((5, 0, 3), MEAN, STD, r"height, width and channels must be at least 1, got \(5, 0, 3\)"),
    ],
)
def test_refusals(shape, mean, std, message):
    with pytest.raises(InputError, match=message):
        Collate(shape, mean, std, 10)


def test_statistics_are_numpys():
    source = numbered(50, (5, 7, 3))
    mean, std = channel_statistics(source, 3)
    assert np.allclose(mean, (source.images / 255).mean((0, 1, 2)), rtol=0, atol=1e-12)
    assert np.allclose(std, (source.images / 255).std((0, 1, 2)), rtol=0, atol=1e-12)


def test_statistics_after_conversion():
    source = numbered(20, (5, 7, 1))
    mean, std = channel_statistics(source, 3)
    assert np.allclose(mean, [(source.images / 255).mean()] * 3)
    assert np.allclose(std, [(source.images / 255).std()] * 3)


def test_statistics_of_many_records_are_estimates():
    source = ArraySource(np.arange(5000).astype(np.uint8).reshape(-1, 1, 1, 1), np.zeros(5000, int))
    (mean,), _ = channel_statistics(source, 1)
    assert mean == channel_statistics(source, 1)[0][0]
    assert 0 < abs(mean - (source.images / 255).mean()) < 0.02


def test_constant_channels_have_a_deviation():
    source = ArraySource(np.full((4, 5, 7, 1), 51, np.uint8), np.zeros(4, int))
    assert np.allclose(channel_statistics(source, 1), [[0.2], [1e-3]])
