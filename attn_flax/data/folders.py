"""Plain folders of images, one folder per class."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from grain.sources import RandomAccessDataSource

from attn_flax.data.errors import EmptySplitError, FolderError, reading
from attn_flax.data.images import IMAGE_SUFFIXES
from attn_flax.data.records import Subset, decode_image, hold_out

TEST_FRACTION = 0.2

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """A split of an image folder: its name, its files, their labels."""

    split: str
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        with reading(f"record {index} of split {self.split!r}, {self.files[index]},"):
            return {"image": decode_image(self.files[index]), "label": self.labels[index]}


def load_folder_splits(
    folder: str | os.PathLike,
) -> tuple[dict[str, tuple[str, ...]], dict[str, RandomAccessDataSource]]:
    """The class names of the labelling "label", in alphabetical order, and the splits of a folder of labelled images.

    Args:
        folder: either folder/CLASS/IMAGE, or folder/SPLIT/CLASS/IMAGE where SPLIT is train, validation or val, test.
            Without a folder for test, a fifth of each class of train is held out.

    Raises:
        FolderError: it is no folder, has no class folders, or its splits differ in their classes.
        EmptySplitError: a split holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FolderError(f"expected a folder of images, got {folder}, which is none.")
    paths = {_SPLITS[path.name]: path for path in _subfolders(folder) if path.name in _SPLITS}
    if "train" not in paths:
        paths = {"train": folder}
    class_names = _class_names(paths)
    splits = {split: _read_split(split, path, class_names) for split, path in paths.items()}
    if "test" not in splits:
        kept, held = hold_out(len(splits["train"]), TEST_FRACTION, np.array(splits["train"].labels))
        splits |= {"train": Subset(splits["train"], kept), "test": Subset(splits["train"], held)}
    return {"label": class_names}, splits


def _class_names(paths):
    found = {split: tuple(path.name for path in _subfolders(paths[split])) for split in paths}
    for split, names in found.items():
        if not names:
            raise FolderError(f"expected one folder per class in {paths[split]}, got none.")
        if names != found["train"]:
            only = ", ".join(sorted(set(names) ^ set(found["train"])))
            raise FolderError(f"expected the same class folders in train and {split}, got {only} in only one of them.")
    return found["train"]


def _read_split(split, path, class_names):
    examples = [
        (file, label)
        for label, name in enumerate(class_names)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not examples:
        raise EmptySplitError(
            f"split {split!r} is empty: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {path}."
        )
    files, labels = zip(*examples, strict=True)
    return FolderRecords(split, files, labels)


def _subfolders(path):
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
