"""Labelled image sets of TensorFlow Datasets by name, read without tensorflow."""

import contextlib
import os

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from grain.sources import RandomAccessDataSource

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.data.digits import prepare_digits
from attn_flax.data.errors import DatasetNotPreparedError, UnsupportedDatasetError, reading
from attn_flax.data.records import decode_image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def find_builder(
    name: str, data_dir: str | os.PathLike | None = None, file_format: str | None = None
) -> tfds.core.DatasetBuilder:
    """The builder of a set of the catalogue, of a set that is prepared in `data_dir`, or of `digits`, then prepared.

    Args:
        name: as TFDS writes it: `cifar10`, `cmaterdb/bangla`, `cifar10:3.0.2`.
        data_dir: the folder of prepared sets, by default TFDS's own.
        file_format: the format to prepare in, by default the set's own.

    Raises:
        UnknownNameError: there is no such set; the message lists close names.
        InputError: there is no such version or configuration of it, or its code needs a package that is missing.
    """
    if name == "digits":
        return prepare_digits(data_dir)
    arguments = {"file_format": file_format} if file_format else {}
    try:
        with _only_errors_logged():
            return tfds.builder(name, data_dir=data_dir, **arguments)
    except tfds.core.DatasetNotFoundError:
        known = {"digits", *tfds.list_builders(with_community_datasets=False)}
        raise UnknownNameError("data set", name, known) from None
    except (AssertionError, ImportError, ValueError) as error:
        raise InputError(f"data set {name!r}: {error}") from error


@contextlib.contextmanager
def _only_errors_logged():
    """Silences what TFDS logs of folders that lack a set, which is ours to report."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


def load_catalogue_splits(
    name: str, data_dir: str | os.PathLike | None = None
) -> tuple[tuple[str, ...], dict[str, RandomAccessDataSource]]:
    """The class names and the splits, by their names, of a prepared set.

    Args:
        name: as in `find_builder`.
        data_dir: as in `find_builder`.

    Raises:
        UnknownNameError: there is no such set; the message lists close names.
        DatasetNotPreparedError: it is not in the folder, or has no random access there; the message says what to run.
        UnsupportedDatasetError: it does not hold 8-bit images under `image` and classes under `label`.
    """
    builder = find_builder(name, data_dir)
    _check_features(name, dict(builder.info.features.items()))
    if not builder.is_prepared():
        raise DatasetNotPreparedError(
            f"data set {name!r} is not prepared: expected it in {builder.data_dir}. "
            f"Prepare it with\n    {_prepare_command(name, data_dir)}"
        )
    splits = {
        split: CatalogueRecords(builder, split, _random_access(builder, name, split)) for split in builder.info.splits
    }
    return tuple(builder.info.features["label"].names), splits


class CatalogueRecords:
    """A split of a prepared set."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, records: RandomAccessDataSource):
        self._where = f"split {split!r} of {builder.name}"
        self._mode = _MODES[builder.info.features["image"].shape[-1]]
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        with reading(f"record {index} of {self._where}"):
            record = self._records[index]
            return {"image": decode_image(record["image"], self._mode), "label": int(record["label"])}


def _check_features(name, features):
    image, label = (features.get(key) for key in ("image", "label"))
    fits = (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and image.shape[-1] in _MODES
        and isinstance(label, tfds.features.ClassLabel)
    )
    if not fits:
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise UnsupportedDatasetError(
            f"data set {name!r} does not hold labelled images: "
            f"expected the features image (an 8-bit Image) and label (a ClassLabel), got {found}."
        )


def _random_access(builder, name, split):
    # Images are decoded here, so that all go through Pillow, whatever else is installed.
    try:
        return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DatasetNotPreparedError(
            f"data set {name!r} has no random access in {builder.data_dir}: expected the format array_record, "
            f"got {builder.info.file_format.value}. Prepare it in another folder with\n"
            f"    {_prepare_command(name, 'ANOTHER')}"
        ) from error


def _prepare_command(name, data_dir):
    return f"python -m experiments.prepare {name}" + (f" --dir {data_dir}" if data_dir else "")
