"""Records into one standardised batch."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from attn_flax.checks import InputError, check
from attn_flax.data.kinds import LABELLED_IMAGES, Kind


@dataclasses.dataclass(frozen=True)
class Collate:
    """Stacks records of one size: pictures as (x / 255 - mean) / std in float32, annotations as their kind does it.

    Attributes:
        shape: height, width and channels of a picture.
        mean: the channels' means, in [0, 1].
        std: the channels' standard deviations, likewise.
        num_classes: labels must be below it; for videos one number for each labelling.
        kind: that of the records.

    Raises:
        InputError: the statistics do not fit the channels or each other, or, when called, a label or an image does not.
    """

    shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    num_classes: int | Sequence[int]
    kind: Kind = LABELLED_IMAGES

    def __post_init__(self):
        channels = self.shape[-1]
        check(min(self.shape) >= 1, f"height, width and channels must be at least 1, got {self.shape}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            check(len(values) == channels, f"{name} must have {channels} values, one per channel, got {len(values)}.")
        check(min(self.std) > 0, f"std must be positive, got {tuple(self.std)}.")

    def __call__(self, records: Sequence[dict]) -> dict[str, np.ndarray]:
        """The batch of these records."""
        annotations = self.kind.annotations(records, self.num_classes)
        pictures = np.stack([convert_channels(record[self.kind.pictures], self.shape[-1]) for record in records])
        return {self.kind.pictures: self._standardised(pictures), **annotations}

    def padded(self, records: Sequence[dict], size: int) -> dict[str, np.ndarray]:
        """The batch of these records and of zeros up to `size`, with the "weight" of each row: 1 or 0."""
        count = len(records)
        blank = self.kind.blank(self.shape, self.num_classes)
        batch = self([*records, *[blank] * (size - count)])
        batch[self.kind.pictures][count:] = 0
        return batch | {"weight": (np.arange(size) < count).astype(np.float32)}

    def _standardised(self, pictures):
        # Row by row: NumPy is slow along an axis as short as the channels.
        rows = pictures.reshape(*pictures.shape[:-2], -1)
        std = np.tile(self.std, pictures.shape[-2])
        batch = np.multiply(rows, 1 / (255 * std), dtype=np.float32)
        batch -= np.tile(self.mean, pictures.shape[-2]) / std
        return batch.reshape(pictures.shape)


def convert_channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Pictures (…, height, width, channels) with so many channels: one is repeated, three become one by their luma.

    Raises:
        InputError: there is no other way to convert channels.

    >>> convert_channels(np.full((1, 1, 1), 7, np.uint8), 3)
    array([[[7, 7, 7]]], dtype=uint8)
    """
    if pictures.shape[-1] == channels:
        return pictures
    if pictures.shape[-1] == 1:
        return np.repeat(pictures, channels, axis=-1)
    if pictures.shape[-1] == 3 and channels == 1:
        rows = Image.fromarray(np.ascontiguousarray(pictures).reshape(-1, *pictures.shape[-2:]))
        return np.asarray(rows.convert("L")).reshape(*pictures.shape[:-1], 1)
    raise InputError(f"images of {pictures.shape[-1]} channels cannot be given {channels}; expected 1, or 3 for one.")
