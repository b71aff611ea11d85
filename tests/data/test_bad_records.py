"""Damaged records: skipped, counted once each wherever they are met, and too many of them named."""

import itertools

import numpy as np
import pytest

from attn_flax.checks import InputError
from attn_flax.data import (
    BadRecords,
    CorruptRecordError,
    channel_statistics,
    evaluation_batches,
    load_dataset,
    train_batches,
)
from tests.data.sources import write_images

FORMAT = {"shape": (4, 6, 3), "mean": (0.0,) * 3, "std": (1.0,) * 3, "num_classes": 2}
COUNT = 12


@pytest.fixture
def folder(tmp_path):
    """Images of which those of the class a named 003 and 004 and that of b named 000 are damaged."""
    for split in ("train", "test"):
        write_images(tmp_path / split, ["a", "b"], COUNT)
    for name in ("a/003", "a/004", "b/000"):
        path = tmp_path / "train" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-30])
    return tmp_path


@pytest.fixture
def source(folder):
    return load_dataset("images", folder=folder, validation=0.0).train


def take(source, count, bad, **arguments):
    batches = train_batches(source, **({"batch_size": 8, "seed": 3} | FORMAT | arguments), bad=bad)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def joined(batches):
    return np.concatenate([batch["image"] for batch in batches])


def test_the_next_readable_record_takes_the_place(source):
    told = []
    bad = BadRecords(3, told.append)
    images = joined(take(source, 3, bad))  # one epoch
    assert bad.count == 3
    expected = [source[i]["image"] for i in range(24) if i not in (3, 4, 12)] + [source[5]["image"]] * 2
    expected += [source[13]["image"]]
    seen = sorted(np.rint(images * 255).astype(np.uint8).reshape(24, -1).tolist())
    assert seen == sorted(np.stack(expected).reshape(24, -1).tolist())
    assert len(told) == 3
    assert sum("a/003.png" in message for message in told) == 1


def test_damage_is_counted_once(source):
    bad = BadRecords(3, lambda message: None)
    take(source, 9, bad)
    channel_statistics(source, 3, bad=bad)
    list(evaluation_batches(source, batch_size=5, **FORMAT, bad=bad))
    assert bad.count == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(source, workers):
    counts, images = [], []
    for number in (0, workers):
        bad = BadRecords(3, lambda message: None)
        images.append(joined(take(source, 5, bad, workers=number)))
        counts.append(bad.count)
    np.testing.assert_array_equal(*images)
    assert counts == [3, 3]


def test_processes_change_nothing(source):
    bads = [BadRecords(3, lambda message: None) for _ in range(3)]
    whole = joined(take(source, 3, bads[0]))
    parts = [take(source, 3, bad, process_index=i, process_count=2) for i, bad in enumerate(bads[1:])]
    np.testing.assert_array_equal(joined(list(itertools.chain(*zip(*parts, strict=True)))), whole)
    assert bads[1].count + bads[2].count == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [0, 2])
def test_one_more_than_the_limit_is_an_error_that_names_the_record(source, workers, limit):
    message = (
        rf"split 'train', .*/[ab]/00\d\.png, cannot be read: [\s\S]*damaged record {limit + 1}; --data.max_bad {limit}"
    )
    with pytest.raises(CorruptRecordError, match=message):
        take(source, 3, BadRecords(limit, lambda message: None), workers=workers)


def test_evaluation_counts_each_readable_record_once(source):
    batches = list(evaluation_batches(source, batch_size=5, **FORMAT, bad=BadRecords(3, lambda message: None)))
    assert all(set(batch) == {"image", "label", "weight"} for batch in batches)
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert (len(weight), weight.sum()) == (25, 21)
    seen = np.rint(joined(batches)[weight > 0] * 255).astype(np.uint8)
    np.testing.assert_array_equal(seen, [source[i]["image"] for i in range(24) if i not in (3, 4, 12)])
    with pytest.raises(CorruptRecordError, match="damaged record 3"):
        list(evaluation_batches(source, batch_size=5, **FORMAT, bad=BadRecords(2, lambda message: None)))


def test_statistics_leave_damage_out(source):
    mean, _ = channel_statistics(source, 3, bad=BadRecords(3, lambda message: None))
    images = np.stack([source[i]["image"] for i in range(24) if i not in (3, 4, 12)])
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255)
    with pytest.raises(CorruptRecordError, match="damaged record 1"):
        channel_statistics(source, 3)


def test_a_set_of_nothing_but_damage_is_an_error(folder, source):
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    bad = BadRecords(1000, lambda message: None)
    with pytest.raises(CorruptRecordError, match="none of 24 records can be read"):
        take(source, 1, bad)
    with pytest.raises(CorruptRecordError, match="none of 24 training records can be read"):
        channel_statistics(source, 3, bad=bad)


def test_a_negative_limit_is_refused():
    with pytest.raises(InputError, match="max_bad must not be negative, got -1"):
        BadRecords(-1)


class Dusty:
    """Records of which every other is cleaned."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        record = {"image": np.full((4, 6, 3), index, np.uint8), "label": 0}
        return record | {"cleaned": f"record {index}: dust"} if index % 2 else record


def test_cleaned_records_are_counted_and_the_first_told_of():
    told = []
    bad = BadRecords(tell=told.append)
    for _ in range(2):
        take(Dusty(), 8, bad)
        list(evaluation_batches(Dusty(), batch_size=8, **FORMAT, bad=bad))
    assert (bad.cleaned, bad.count) == (30, 0)
    assert len(told) == len(set(told)) == 21
    assert all(message.startswith("cleaned record ") and message.endswith(": dust") for message in told[:20])
    assert told[20] == "cleaned further records, which are only counted."


def test_processes_count_the_cleaned_records_that_they_meet():
    bads = [BadRecords(tell=lambda message: None) for _ in range(2)]
    source = Dusty()
    for index, bad in enumerate(bads):
        take(source, 15, bad, batch_size=4, process_index=index, process_count=2)
    assert bads[0].cleaned + bads[1].cleaned == 30
