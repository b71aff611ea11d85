"""What can be wrong with a data set. Each is an InputError with nothing but its message, so it survives pickling."""

import contextlib
from collections.abc import Iterator

from attn_flax.checks import InputError


class DatasetNotPreparedError(InputError):
    """A data set of the catalogue is not in its folder, or not in a format with random access."""


class UnsupportedDatasetError(InputError):
    """A data set that does not hold records of the kind that was asked for."""


class EmptySplitError(InputError):
    """A split that is missing or holds no record."""


class FolderError(InputError):
    """A folder that is no image folder."""


class CorruptRecordError(InputError):
    """A record or an image file that cannot be read."""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Raises CorruptRecordError for whatever goes wrong; TFDS, array_record and Pillow have exceptions of their own.

    >>> with reading("photo.png"):
    ...     raise OSError("truncated file")
    Traceback (most recent call last):
    ...
    attn_flax.data.errors.CorruptRecordError: photo.png cannot be read: truncated file
    """
    try:
        yield
    except Exception as error:
        raise CorruptRecordError(f"{what} cannot be read: {error}") from error
