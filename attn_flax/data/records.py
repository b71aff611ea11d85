"""Random access to records: {"image": uint8 array (height, width, channels), …}, or the like of another kind."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from grain.sources import RandomAccessDataSource
from PIL import Image

CACHE_BYTES = 256 * 2**20
"""A set whose decoded records fit into so many bytes is decoded once."""


def decode_image(file: bytes | Path, mode: str | None = None) -> np.ndarray:
    """The pixels of an encoded image, uint8 (height, width, channels).

    Args:
        file: its content or its path.
        mode: Pillow's name of the channels to convert to; by default grey images keep one, and all others get three.

    Raises:
        ValueError: the image has more than 8 bits per channel.
        OSError: it is no image, or it is damaged. Pillow has further exceptions for that, too.
    """
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
        mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some records of a source, in their own order."""

    source: RandomAccessDataSource
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]


class Cached:
    """A source that keeps the records that were read, if a set of such records fits into `CACHE_BYTES`."""

    def __init__(self, source: RandomAccessDataSource):
        self._source = source
        self._records = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._records.get(index)
        if record is None:
            record = self._source[index]
            arrays = [value for value in record.values() if isinstance(value, np.ndarray)]
            for array in arrays:
                array.setflags(write=False)
            if sum(array.nbytes for array in arrays) * len(self) <= CACHE_BYTES:
                self._records[index] = record
        return record

    def __reduce__(self):
        return Cached, (self._source,)  # a worker process fills its own


def hold_out(count: int, fraction: float, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Splits the indices below `count` by a fixed permutation into (kept, held out), both in increasing order.

    Args:
        count: how many records there are.
        fraction: the share to hold out, rounded to whole records.
        labels: hold out this share of each label instead.

    >>> kept, held = hold_out(10, 0.2)
    >>> len(kept), len(held), sorted({*kept, *held}) == list(range(10))
    (8, 2, True)
    """
    labels = np.zeros(count, int) if labels is None else np.asarray(labels)
    order = np.random.default_rng(0).permutation(count)
    held = np.zeros(count, bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held[members[: round(fraction * len(members))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
