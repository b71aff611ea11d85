"""What can be wrong with a data set. Each is an InputError with nothing but its message, so it survives pickling."""

from attn_flax.checks import InputError


class DatasetNotPreparedError(InputError):
    """A data set of the catalogue is not in its folder, or not in a format with random access."""


class UnsupportedDatasetError(InputError):
    """A data set that does not hold labelled images."""


class EmptySplitError(InputError):
    """A split that is missing or holds no record."""


class FolderError(InputError):
    """A folder that is no image folder."""


class CorruptRecordError(InputError):
    """A record or an image file that cannot be read."""
