"""Sets of TensorFlow Datasets by name, read without tensorflow."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping

import absl.logging
import tensorflow_datasets as tfds
from grain.sources import RandomAccessDataSource
from tensorflow_datasets.core import read_only_builder

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.data.embedded import EMBEDDED, prepare
from attn_flax.data.errors import DatasetNotPreparedError, UnsupportedDatasetError, reading
from attn_flax.data.kinds import Kind

VIDEO_SETS = ("moving_mnist", "ucf101")
"""Sets of the catalogue that TFDS knows only where tensorflow is installed."""

UNANNOTATED_TESTS = frozenset({("coco", "2014"), ("coco", "2017"), ("voc", "2012")})
"""Sets, and their configurations, whose test records have no annotation: what they call validation is the test here."""


def find_builder(
    name: str, data_dir: str | os.PathLike | None = None, file_format: str | None = None
) -> tfds.core.DatasetBuilder:
    """The builder of a set of the catalogue, of one prepared in `data_dir`, or of an embedded one, then prepared.

    Args:
        name: as TFDS writes it: `cifar10`, `cmaterdb/bangla`, `cifar10:3.0.2`.
        data_dir: the folder of prepared sets, by default TFDS's own.
        file_format: the format to prepare in, by default the set's own.

    Raises:
        UnknownNameError: there is no such set; the message lists close names.
        DatasetNotPreparedError: it is not in the folder, and its code needs tensorflow, which is not installed.
        InputError: there is no such version or configuration of it.
    """
    if name in EMBEDDED:
        return prepare(EMBEDDED[name], data_dir)
    arguments = {"data_dir": data_dir} | ({"file_format": file_format} if file_format else {})
    try:
        with _only_errors_logged():
            return _catalogue_builder(name, arguments)
    except tfds.core.DatasetNotFoundError:
        if re.split("[/:]", name)[0] in VIDEO_SETS:
            raise _not_prepared(name, data_dir, data_dir or tfds.core.constants.DATA_DIR) from None
        known = {*EMBEDDED, *VIDEO_SETS, *tfds.list_builders(with_community_datasets=False)}
        raise UnknownNameError("data set", name, known) from None
    except ImportError as error:
        raise _not_prepared(name, data_dir, data_dir or tfds.core.constants.DATA_DIR) from error
    except (AssertionError, ValueError) as error:
        raise InputError(f"data set {name!r}: {error}") from error


def _catalogue_builder(name, arguments):
    try:
        return tfds.builder(name, **arguments)
    except ImportError as error:  # its code needs tensorflow; its files, if it is prepared, do not
        try:
            return read_only_builder.builder_from_files(name, **arguments)
        except tfds.core.DatasetNotFoundError:
            raise error from None


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
    name: str, kind: Kind, data_dir: str | os.PathLike | None = None
) -> tuple[Mapping[str, tuple[str, ...]], dict[str, RandomAccessDataSource]]:
    """The class names of each labelling and the splits, by their names, of a prepared set.

    Args:
        name: as in `find_builder`.
        kind: of the records.
        data_dir: as in `find_builder`.

    Raises:
        UnknownNameError: there is no such set; the message lists close names.
        DatasetNotPreparedError: it is not in the folder, or has no random access there; the message says what to run.
        UnsupportedDatasetError: it does not hold records of this kind.
    """
    builder = find_builder(name, data_dir)
    reader = _reader(name, kind, builder.info)
    if not builder.is_prepared():
        raise _not_prepared(name, data_dir, builder.data_dir)
    splits = {
        split: CatalogueRecords(builder.name, split, _random_access(builder, name, split), reader.read)
        for split in builder.info.splits
    }
    if (builder.name, builder.info.config_name) in UNANNOTATED_TESTS:
        splits["test"] = splits.pop("validation")
    return reader.labellings, splits


class CatalogueRecords:
    """A split of a prepared set."""

    def __init__(self, name: str, split: str, records: RandomAccessDataSource, read: Callable[[Mapping], dict]):
        self._where = f"split {split!r} of {name}"
        self._records = records
        self._read = read

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        where = f"record {index} of {self._where}"
        with reading(where):
            record = self._read(self._records[index])
        if "cleaned" in record:
            record["cleaned"] = f"{where}: {record['cleaned']}"
        return record


class _Encoded(tfds.decode.SkipDecoding):
    """Leaves images encoded, alone or in a sequence, so that all go through Pillow, whatever else is installed."""

    def decode_batch_example_np(self, images):
        return images


def _reader(name, kind, info):
    reader = kind.reader(info)
    if reader is None:
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in sorted(info.features.items()))
        raise UnsupportedDatasetError(
            f"data set {name!r} does not hold {kind.holds}: expected {kind.expected}, got {found}."
        )
    return reader


def _random_access(builder, name, split):
    decoders = {key: _Encoded() for key, feature in builder.info.features.items() if _holds_images(feature)}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise DatasetNotPreparedError(
            f"data set {name!r} has no random access in {builder.data_dir}: expected the format array_record, "
            f"got {builder.info.file_format.value}. Prepare it in another folder with\n"
            f"    {_prepare_command(name, 'ANOTHER')}"
        ) from error


def _holds_images(feature):
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return isinstance(inner, tfds.features.Image)


def _not_prepared(name, data_dir, place):
    return DatasetNotPreparedError(
        f"data set {name!r} is not prepared: expected it in {place}. "
        f"Prepare it with\n    {_prepare_command(name, data_dir)}"
    )


def _prepare_command(name, data_dir):
    return f"python -m experiments.prepare {name}" + (f" --dir {data_dir}" if data_dir else "")
