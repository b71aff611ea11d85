"""Batches are a function of (seed, step); evaluation counts each record once."""

import itertools

import numpy as np
import pytest

from attn_flax.checks import InputError
from attn_flax.data import Augmentation, EmptySplitError, evaluation_batches, train_batches
from tests.data.sources import ArraySource, numbered

RANDOM = Augmentation(shift=1, flip=True, randaugment=1, erase=0.5)
# Pixels come through as they are, divided by 255.
PLAIN = {"shape": (5, 3, 1), "mean": (0.0,), "std": (1.0,), "num_classes": 10}


def take(count, source, **arguments):
    batches = train_batches(source, **({"batch_size": 8, "seed": 3} | PLAIN | arguments))
    result = list(itertools.islice(batches, count))
    batches.close()
    return result


def identities(batch):
    return np.rint(batch["image"][:, 0, 0, 0] * 255).astype(int).tolist()


def assert_equal(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_every_epoch_has_every_record_in_a_new_order():
    source = numbered(20)
    order = [number for batch in take(10, source) for number in identities(batch)]
    epochs = [order[i : i + 20] for i in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    for batch in take(3, source):
        numbers = identities(batch)
        assert batch["label"].tolist() == [number % 10 for number in numbers]
        assert np.abs(batch["image"] - source.images[numbers] / 255).max() < 1e-6


def test_batch_larger_than_the_source():
    (batch,) = take(1, numbered(5), batch_size=12)
    assert sorted(identities(batch)[:5]) == sorted(identities(batch)[5:10]) == list(range(5))


def test_seeds_differ_and_repeat():
    source = numbered(20)
    first, again, other = (take(4, source, augmentation=RANDOM, seed=seed) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert not np.array_equal(first[0]["label"], other[0]["label"])


def test_augmentation_differs_between_epochs():
    source = ArraySource(numbered(1).images, np.zeros(1, int))
    batches = take(2, source, augmentation=RANDOM)
    assert len({image.tobytes() for batch in batches for image in batch["image"]}) > 8


@pytest.mark.parametrize("start", [1, 4, 1000])
def test_a_step_is_addressed_directly(start):
    source = numbered(20)
    whole = take(start % 1000 + 2, source, augmentation=RANDOM, start=start // 1000 * 1000)
    assert_equal(take(2, source, augmentation=RANDOM, start=start), whole[-2:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_one_global_batch(count):
    source = numbered(20)
    whole = take(4, source, augmentation=RANDOM, start=2)
    parts = [
        take(4, source, augmentation=RANDOM, start=2, process_index=index, process_count=count)
        for index in range(count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_equal(whole, joined)


@pytest.mark.full
def test_worker_processes_change_nothing(digits):
    arguments = {"shape": (8, 8, 1), "augmentation": RANDOM, "start": 3, "process_index": 1, "process_count": 2}
    expected = take(6, digits.train, **arguments)
    assert_equal(expected, take(6, digits.train, workers=2, **arguments))


def test_images_get_their_size_and_channels(digits):
    batch = next(
        iter(
            evaluation_batches(
                digits.test, batch_size=4, shape=(16, 12, 3), mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=10
            )
        )
    )
    (trained,) = take(1, digits.train, shape=(16, 12, 3), mean=(0.0,) * 3, std=(1.0,) * 3)
    for images in (batch["image"], trained["image"]):
        assert images.shape[1:] == (16, 12, 3)
        assert np.array_equal(images[..., 0], images[..., 2])
        assert images.std() > 0.2


@pytest.mark.parametrize("records", [1, 7, 12, 13])
@pytest.mark.parametrize("batch_size", [4, 12, 20])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_counts_each_record_once(records, batch_size, count):
    source = numbered(records)
    per_process = [
        list(evaluation_batches(source, batch_size=batch_size, **PLAIN, process_index=index, process_count=count))
        for index in range(count)
    ]
    assert {len(batches) for batches in per_process} == {-(-records // batch_size)}
    seen = []
    for step in zip(*per_process, strict=True):
        for batch in step:
            assert batch["image"].shape == (batch_size // count, 5, 3, 1)
            assert batch["weight"].dtype == np.float32
            real = batch["weight"] == 1
            assert not batch["weight"][~real].any()
            seen += np.array(identities(batch))[real].tolist()
            assert batch["label"][real].tolist() == [number % 10 for number in np.array(identities(batch))[real]]
    assert seen == list(range(records))


def test_evaluation_can_be_repeated():
    batches = evaluation_batches(numbered(7), batch_size=4, **PLAIN)
    assert_equal(list(batches), list(batches))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"process_count": 0}, "process_count must be at least 1, got 0"),
        ({"process_index": 2, "process_count": 2}, r"process_index must be in \[0, process_count\), got 2 of 2"),
        ({"process_count": 3}, "divisible by process_count, got batch_size=8, process_count=3"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        take(1, numbered(5), **arguments)
    with pytest.raises(InputError, match=message):
        evaluation_batches(numbered(5), **({"batch_size": 8} | PLAIN | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, r"seed must be in \[0, 2³²\), got -1"),
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_training_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        take(1, numbered(5), **arguments)


def test_empty_sources():
    with pytest.raises(EmptySplitError, match="training needs at least one record, got none"):
        take(1, numbered(0))
    with pytest.raises(EmptySplitError, match="evaluation needs at least one record, got none"):
        evaluation_batches(numbered(0), batch_size=4, **PLAIN)


def test_labels_that_the_model_lacks_are_refused_while_reading():
    with pytest.raises(InputError, match=r"labels must be in \[0, 3\), got"):
        take(1, numbered(20), num_classes=3)


def test_the_iterator_closes():
    batches = train_batches(numbered(5), batch_size=4, seed=0, **PLAIN)
    assert len(next(batches)["label"]) == 4
    batches.close()
    assert next(batches, None) is None
