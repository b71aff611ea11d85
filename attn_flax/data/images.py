"""Single images, prepared as those of a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attn_flax.data.collate import Collate
from attn_flax.data.errors import reading
from attn_flax.data.records import decode_image
from attn_flax.data.transforms import ResizeAndCrop

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def read_images(
    files: Sequence[Path], *, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """The images as float32 (b, h, w, c), resized, cropped and standardised as `evaluation_batches` does.

    Args:
        files: of any size and mode that Pillow reads.
        shape: height, width and channels that the images get.
        mean: the channels' means, in [0, 1].
        std: the channels' standard deviations, likewise.

    Raises:
        CorruptRecordError: a file is no image, or damaged; the message names it.
        InputError: the statistics or an image do not fit the channels.
    """
    resize, collate = ResizeAndCrop(*shape[:2]), Collate(shape, mean, std, num_classes=1)
    return collate([resize.map({"image": _read(file), "label": 0}) for file in files])["image"]


def _read(file):
    with reading(f"image {file}"):
        return decode_image(file)
