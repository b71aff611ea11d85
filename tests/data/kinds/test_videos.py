"""Videos: which sets hold them, clips of them, and what is wrong with them."""

import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from attn_flax.checks import InputError
from attn_flax.data import (
    VIDEOS,
    Augmentation,
    BadRecords,
    channel_statistics,
    evaluation_batches,
    load_dataset,
    train_batches,
)
from attn_flax.data.collate import convert_channels
from attn_flax.data.kinds import Videos
from attn_flax.data.kinds.videos import CentreClip, RandomClip
from tests.data.annotated import encode, info_of, noise, write_set

FRAMES = tfds.features.Sequence(tfds.features.Image(shape=(4, 5, 1)))
LABELS = {"what": tfds.features.ClassLabel(names=["cat", "dog"]), "where": tfds.features.ClassLabel(num_classes=5)}
FORMAT = {"shape": (4, 5, 1), "mean": (0.0,), "std": (1.0,), "num_classes": (2, 5)}
LENGTHS = (9, 5, 4, 12, 9)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"video": FRAMES} | LABELS, {"what": ("cat", "dog"), "where": tuple("01234")}),
        ({"clip": FRAMES, "label": LABELS["what"], "id": tfds.features.Text()}, {"label": ("cat", "dog")}),
        ({"image_sequence": FRAMES}, None),
        ({"image": FRAMES.feature, "label": LABELS["what"]}, None),
        ({"one": FRAMES, "other": FRAMES, "label": LABELS["what"]}, None),
    ],
)
def test_sets_are_told_by_their_features(features, expected):
    reader = VIDEOS.reader(info_of(features))
    assert (reader and dict(reader.labellings)) == expected


def test_labellings_are_in_the_order_of_their_names():
    """A file gives features in any order, another one in each process."""
    features = {"z": LABELS["what"], "video": FRAMES, "a": LABELS["where"]}
    assert list(VIDEOS.reader(info_of(features)).labellings) == ["a", "z"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of which each frame begins with its number, the videos' number after it."""
    path, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(1)

    def example(number):
        frames = noise(rng, LENGTHS[number], 4, 5, 1)
        frames[:, 0, 0, 0], frames[:, 0, 1, 0] = np.arange(len(frames)), number
        return {"video": [io.BytesIO(encode(frame)) for frame in frames], "what": number % 2, "where": number}

    splits = {split: [example(number) for number in range(count)] for split, count in (("train", 5), ("test", 3))}
    write_set(path, "films", {"video": FRAMES} | LABELS, splits)
    return path


def numbers(batch):
    """The numbers of the frames and of the videos, through no standardisation."""
    return np.rint(batch["frames"][:, :, 0, :2, 0] * 255).astype(int)


def test_evaluation_takes_the_middle(folder):
    kind = Videos(frames=3, stride=2)
    test = load_dataset("films", kind=kind, data_dir=folder, validation=0.0).test
    (batch,) = evaluation_batches(test, batch_size=4, kind=kind, bad=BadRecords(tell=[].append), **FORMAT)
    assert batch["frames"].shape == (4, 3, 4, 5, 1)
    assert batch["labels"].tolist() == [[0, 0], [1, 1], [0, 2], [0, 0]]
    assert batch["labels"].dtype == np.int32
    assert batch["weight"].tolist() == [1, 1, 1, 0]
    assert numbers(batch)[:3, :, 0].tolist() == [[2, 4, 6], [0, 2, 4], [0, 2, 3]]


def test_training_begins_anywhere(folder):
    kind = Videos(frames=4, stride=2)
    train = load_dataset("films", kind=kind, data_dir=folder, validation=0.0).train
    batches = train_batches(train, batch_size=40, seed=2, kind=kind, bad=BadRecords(tell=[].append), **FORMAT)
    seen = np.concatenate([numbers(batch) for batch in itertools.islice(batches, 6)])
    batches.close()
    for video, length in enumerate(LENGTHS):
        clips = seen[seen[:, 0, 1] == video][..., 0]
        expected = {
            tuple(min(start + 2 * step, length - 1) for step in range(4)) for start in range(max(length - 6, 1))
        }
        assert {tuple(clip) for clip in clips.tolist()} == expected


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_short_videos_are_counted_once(folder, workers):
    kind, told = Videos(frames=6), []
    train, bad = load_dataset("films", kind=kind, data_dir=folder, validation=0.0).train, BadRecords(tell=told.append)
    batches = train_batches(train, batch_size=5, seed=0, kind=kind, workers=workers, bad=bad, **FORMAT)
    seen = list(itertools.islice(batches, 3))
    batches.close()
    assert (bad.cleaned, bad.count) == (2, 0)
    assert sorted(told) == [
        "cleaned record 1 of split 'train' of films: 5 of 6 frames, the last repeated",
        "cleaned record 2 of split 'train' of films: 4 of 6 frames, the last repeated",
    ]
    clips = np.concatenate([numbers(batch) for batch in seen])
    assert {tuple(clip) for clip in clips[clips[:, 0, 1] == 2][..., 0].tolist()} == {(0, 1, 2, 3, 3, 3)}


def test_a_step_is_a_function_of_seed_and_step(folder):
    kind, augmentation = Videos(frames=3), Augmentation(shift=1, flip=True, invert=True, erase=0.5)
    train = load_dataset("films", kind=kind, data_dir=folder, validation=0.0).train

    def take(count, **arguments):
        given = {"batch_size": 4, "seed": 3, "kind": kind, "augmentation": augmentation} | FORMAT
        batches = train_batches(train, **given, **arguments)
        seen = list(itertools.islice(batches, count))
        batches.close()
        return seen

    whole = take(6)
    for step, parts in enumerate(
        zip(*(take(3, start=3, process_index=i, process_count=2) for i in range(2)), strict=True)
    ):
        for key, expected in whole[3 + step].items():
            assert np.array_equal(np.concatenate([part[key] for part in parts]), expected)


def test_statistics_are_those_of_all_frames(folder):
    kind = Videos(frames=4)
    train = load_dataset("films", kind=kind, data_dir=folder, validation=0.0).train
    pixels = np.concatenate([train[i]["frames"] for i in range(5)]) / 255
    (mean,), (std,) = channel_statistics(train, 1, kind=kind)
    np.testing.assert_allclose((mean, std), (pixels.mean(), pixels.std()))


def test_colour_becomes_grey_frame_by_frame(folder):
    frames = noise(np.random.default_rng(0), 3, 4, 5, 3)
    grey = convert_channels(frames, 1)
    assert grey.shape == (3, 4, 5, 1)
    assert all(np.array_equal(one, convert_channels(frame, 1)) for one, frame in zip(grey, frames, strict=True))


def test_labels_are_checked_by_labelling():
    records = [{"labels": np.array([1, 4])}, {"labels": np.array([0, 5])}]
    with pytest.raises(InputError, match=r"labels must be in \[0, 5\), got 5"):
        VIDEOS.annotations(records, (2, 5))
    assert VIDEOS.annotations(records, (2, 6))["labels"].tolist() == [[1, 4], [0, 5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"frames": 0}, "frames must be .* 1, got 0"), ({"stride": 0}, "stride must be .* got 0")],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        Videos(**arguments)


def test_clips_are_described_by_their_transforms():
    assert Videos(5, 2).sampling(training=True) == [RandomClip(5, 2)]
    assert Videos(5, 2).sampling(training=False) == [CentreClip(5, 2)]
