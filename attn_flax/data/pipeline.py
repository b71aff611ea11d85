"""From records to batches: standardised float32 pictures (b, …, h, w, c), and annotations as their kind says."""

import functools
from collections.abc import Iterable, Sequence

import grain
import numpy as np
from absl import flags
from grain.sources import RandomAccessDataSource
from grain.transforms import RandomMap

from attn_flax.checks import check
from attn_flax.data.augmentation import Augmentation
from attn_flax.data.bad_records import BadRecords, CountedIterator, MarkedCollate, Substituting
from attn_flax.data.collate import Collate
from attn_flax.data.errors import EmptySplitError
from attn_flax.data.kinds import LABELLED_IMAGES, Kind
from attn_flax.data.transforms import ResizeAndCrop
from attn_flax.data.workers import attach

_UNCHANGED = Augmentation()


def train_batches(
    source: RandomAccessDataSource,
    *,
    batch_size: int,
    seed: int,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int | Sequence[int],
    kind: Kind = LABELLED_IMAGES,
    augmentation: Augmentation = _UNCHANGED,
    start: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    bad: BadRecords | None = None,
) -> CountedIterator:
    """The endless batches of a split, shuffled anew each epoch; an epoch's end falls anywhere in a batch.

    The global batch of a step is a function of (seed, step) alone: process i of n gets its i-th part of n, whatever
    the number of workers and processes. The next readable record takes the place of a damaged one.

    Args:
        source: records of this kind.
        batch_size: of the global batch, over all processes.
        seed: of the order and of the augmentation.
        shape: height, width and channels that the pictures get.
        mean: the channels' means, in [0, 1].
        std: the channels' standard deviations, likewise.
        num_classes: labels must be below it; for videos one number for each labelling.
        kind: of the records.
        augmentation: what is done to the pictures.
        start: the first step to deliver.
        workers: processes that read and augment; 0 for threads of this one. Scripts that ask for some must keep their
            work under `if __name__ == "__main__"`, and close the iterator in the end.
        process_index: this process's among all that train together.
        process_count: how many they are.
        bad: counts the damaged records that this process meets; by default the first is an error.

    Returns:
        An iterator with a method `close`.

    Raises:
        EmptySplitError: the source is empty.
        InputError: an argument is out of its range, or, from the iterator, a label or an image's channels.
        CorruptRecordError: from the iterator, more records than `bad` allows cannot be read, or none can.
    """
    local = _local_size(batch_size, process_index, process_count)
    check(0 <= seed < 2**32, f"seed must be in [0, 2³²), got {seed}.")
    check(start >= 0, f"start must be at least 0, got {start}.")
    check(workers >= 0, f"workers must be at least 0, got {workers}.")
    if not len(source):
        raise EmptySplitError("training needs at least one record, got none.")
    collate = Collate(shape, mean, std, num_classes, kind)
    records = grain.MapDataset.source(Substituting(source)).seed(seed).shuffle().repeat()
    for step in [*kind.sampling(training=True), *augmentation.transforms(*shape[:2], kind)]:
        records = records.random_map(step) if isinstance(step, RandomMap) else records.map(step)
    batches = records.batch(local, batch_fn=MarkedCollate(collate))[
        start * process_count + process_index :: process_count
    ]
    batches = batches.to_iter_dataset(_reading(shape))
    if workers:
        _parse_flags()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers), worker_init_fn=attach)
    return CountedIterator(iter(batches), source, bad or BadRecords())


def evaluation_batches(
    source: RandomAccessDataSource,
    *,
    batch_size: int,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int | Sequence[int],
    kind: Kind = LABELLED_IMAGES,
    process_index: int = 0,
    process_count: int = 1,
    bad: BadRecords | None = None,
) -> Iterable[dict[str, np.ndarray]]:
    """The batches of a split in its order, each readable record once, as often as they are iterated over.

    All batches have the same size, and all processes get the same number of them: zeros fill what is left. A further
    entry "weight" (b,) is 1 for records and 0 for what was filled in.

    Args:
        source: as in `train_batches`.
        batch_size: as in `train_batches`.
        shape: as in `train_batches`.
        mean: as in `train_batches`.
        std: as in `train_batches`.
        num_classes: as in `train_batches`.
        kind: as in `train_batches`.
        process_index: as in `train_batches`.
        process_count: as in `train_batches`.
        bad: as in `train_batches`.

    Raises:
        EmptySplitError: the source is empty.
        InputError: as in `train_batches`.
        CorruptRecordError: while iterating, more records than `bad` allows cannot be read.
    """
    local = _local_size(batch_size, process_index, process_count)
    if not len(source):
        raise EmptySplitError("evaluation needs at least one record, got none.")
    bad = bad or BadRecords()
    collate = Collate(shape, mean, std, num_classes, kind)
    transforms = [*kind.sampling(training=False), ResizeAndCrop(*shape[:2])]

    def read(step):
        first = step * batch_size + process_index * local
        records = [bad.read(source, index) for index in range(first, min(first + local, len(source)))]
        return collate.padded([functools.reduce(_apply, transforms, record) for record in records if record], local)

    steps = -(-len(source) // batch_size)
    return grain.MapDataset.range(steps).map(read).to_iter_dataset(_reading(shape))


def _apply(record, transform):
    return transform.map(record)


def _local_size(batch_size, process_index, process_count):
    check(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}.")
    check(process_count >= 1, f"process_count must be at least 1, got {process_count}.")
    check(
        0 <= process_index < process_count,
        f"process_index must be in [0, process_count), got {process_index} of {process_count}.",
    )
    check(
        batch_size % process_count == 0,
        f"batch_size must be divisible by process_count, got batch_size={batch_size}, process_count={process_count}.",
    )
    return batch_size // process_count


def _reading(shape):
    """How batches are read ahead; Grain counts whole batches, and more of them would hold gigabytes of large images.

    Threads pay where Pillow does most of the work; on small images they only wait for each other in Python.
    """
    large = shape[0] * shape[1] > 96**2
    return grain.ReadOptions(num_threads=4 if large else 1, prefetch_buffer_size=4)


def _parse_flags():
    """Grain's worker processes read absl's flags, which only absl's own programs parse."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
