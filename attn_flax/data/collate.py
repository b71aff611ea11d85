"""Records into one standardised batch."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from attn_flax.checks import InputError, check


@dataclasses.dataclass(frozen=True)
class Collate:
    """Stacks records of one size: images as (x / 255 - mean) / std in float32, labels as int32.

    Attributes:
        shape: height, width and channels of an image.
        mean: the channels' means, in [0, 1].
        std: the channels' standard deviations, likewise.
        num_classes: labels must be below it.

    Raises:
        InputError: the statistics do not fit the channels or each other, or, when called, a label or an image does not.
    """

    shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    num_classes: int

    def __post_init__(self):
        channels = self.shape[-1]
        check(min(self.shape) >= 1, f"height, width and channels must be at least 1, got {self.shape}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            check(len(values) == channels, f"{name} must have {channels} values, one per channel, got {len(values)}.")
        check(min(self.std) > 0, f"std must be positive, got {tuple(self.std)}.")

    def __call__(self, records: Sequence[dict]) -> dict[str, np.ndarray]:
        """The batch of these records."""
        labels = np.array([record["label"] for record in records], np.int32)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.size:
            raise InputError(f"labels must be in [0, {self.num_classes}), got {wrong[0]}.")
        images = np.stack([convert_channels(record["image"], self.shape[-1]) for record in records])
        std = np.asarray(self.std)
        batch = np.multiply(images, 1 / (255 * std), dtype=np.float32)
        batch -= np.asarray(self.mean) / std
        return {"image": batch, "label": labels}

    def padded(self, records: Sequence[dict], size: int) -> dict[str, np.ndarray]:
        """The batch of these records and of zeros up to `size`, with the "weight" of each row: 1 or 0."""
        batch = {
            "image": np.zeros((size, *self.shape), np.float32),
            "label": np.zeros(size, np.int32),
            "weight": np.zeros(size, np.float32),
        }
        if records:
            for key, values in self(records).items():
                batch[key][: len(records)] = values
            batch["weight"][: len(records)] = 1
        return batch


def convert_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The image with so many channels: one is repeated, three become one by their luma.

    Raises:
        InputError: there is no other way to convert channels.

    >>> convert_channels(np.full((1, 1, 1), 7, np.uint8), 3)
    array([[[7, 7, 7]]], dtype=uint8)
    """
    if image.shape[-1] == channels:
        return image
    if image.shape[-1] == 1:
        return np.repeat(image, channels, axis=-1)
    if image.shape[-1] == 3 and channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
    raise InputError(f"images of {image.shape[-1]} channels cannot be given {channels}; expected 1, or 3 for one.")
