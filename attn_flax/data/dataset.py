"""A data set by name or from a folder, as train, validation and test."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from grain.sources import RandomAccessDataSource

from attn_flax.checks import check
from attn_flax.data.catalogue import load_catalogue_splits
from attn_flax.data.errors import EmptySplitError, UnsupportedDatasetError
from attn_flax.data.folders import TEST_FRACTION, load_folder_splits
from attn_flax.data.kinds import LABELLED_IMAGES, Kind
from attn_flax.data.records import Cached, Subset, hold_out


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Records of one kind for training, for choosing, and for the final test.

    The splits are random-access sources of records, as their kind describes them.

    Attributes:
        name: as it was asked for.
        labellings: the names of the labels 0, 1, … of each labelling, by its name; only videos may have several.
        train: what is learned from.
        validation: what chooses between what was learned; None if all of train is learned from.
        test: what is touched once, at the end.
    """

    name: str
    labellings: Mapping[str, tuple[str, ...]]
    train: RandomAccessDataSource
    validation: RandomAccessDataSource | None
    test: RandomAccessDataSource

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, those of one labelling after those of the other."""
        return tuple(name for names in self.labellings.values() for name in names)


def load_dataset(
    name: str,
    *,
    kind: Kind = LABELLED_IMAGES,
    data_dir: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
    validation: float = 0.1,
) -> Dataset:
    """A data set with its three splits; a split that a set lacks is held out of train, always the same records.

    Args:
        name: a set of TensorFlow Datasets, or one that needs no download: `digits`, `digit_scenes`, `digit_videos`; for
            a folder any name.
        kind: of the records.
        data_dir: where sets are prepared, by default where TFDS keeps them.
        folder: a folder of labelled images to read instead, folder/CLASS/IMAGE or
            folder/{train,validation,test}/CLASS/IMAGE.
        validation: the share of train to hold out where the set has no validation split; 0 for none at all.
            A set without a test split gives a fifth of train to it first; one whose test split has no annotations
            (COCO, VOC 2012) is tested on its own validation split.

    Raises:
        UnknownNameError: there is no set of this name; the message lists close ones.
        DatasetNotPreparedError: the set is not there yet; the message holds the command that prepares it.
        UnsupportedDatasetError: the set, or the folder, does not hold records of this kind.
        FolderError: the folder is no image folder.
        EmptySplitError: a split would hold no record.
        InputError: `validation` is not in [0, 1).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digits = load_dataset("digits", data_dir=folder)
    >>> len(digits.train), len(digits.validation), len(digits.test)
    (1293, 144, 360)
    """
    check(0 <= validation < 1, f"validation must be in [0, 1), got {validation}.")
    if folder is None:
        labellings, splits = load_catalogue_splits(name, kind, data_dir)
    elif kind == LABELLED_IMAGES:
        labellings, splits = load_folder_splits(Path(folder))
    else:
        raise UnsupportedDatasetError(f"a folder holds labelled images: expected the name of a set of {kind.holds}.")
    splits = {split: Cached(records) for split, records in splits.items()}
    _require(name, splits, "train")
    if "test" not in splits:
        splits |= _split_train(splits["train"], "test", TEST_FRACTION)
    if validation == 0:
        splits["validation"] = None
    elif "validation" not in splits:
        splits |= _split_train(splits["train"], "validation", validation)
    for split in splits:
        _require(name, splits, split)
    return Dataset(name, labellings, splits["train"], splits["validation"], splits["test"])


def _split_train(train, split, fraction):
    kept, held = hold_out(len(train), fraction)
    return {"train": Subset(train, kept), split: Subset(train, held)}


def _require(name, splits, split):
    if split not in splits or (splits[split] is not None and not len(splits[split])):
        sizes = ", ".join(f"{split} ({len(source)})" for split, source in splits.items() if source is not None)
        raise EmptySplitError(f"data set {name!r} has no records in {split!r}: got {sizes or 'no split at all'}.")
