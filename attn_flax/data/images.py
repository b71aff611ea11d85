"""Single images, prepared as those of a data set."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from attn_flax.checks import InputError, check
from attn_flax.data.collate import Collate
from attn_flax.data.errors import reading
from attn_flax.data.records import decode_image
from attn_flax.data.transforms import ResizeAndCrop

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def find_images(names: Sequence[str]) -> list[Path]:
    """The image files that the names stand for, each once, in their order.

    Args:
        names: files, folders, and patterns like 'photos/*.png'.

    Raises:
        InputError: a name stands for no image, or there is none.
    """
    found = []
    for name in names:
        files = list(_expanded(name))
        if not files:
            raise InputError(f"{name} stands for no image: expected a file, a folder of images, or a pattern.")
        found += files
    check(bool(found), "expected images to look at, got none.")
    return list(dict.fromkeys(found))


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


def in_pixels_of_file(boxes: np.ndarray, file: Path, *, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) of an image as `read_images` shows it, in pixels of the file that it was read from.

    Args:
        boxes: (x_1, y_1, x_2, y_2) in pixels of the shown image.
        file: of the image.
        size: the height and width of the shown image.

    Raises:
        CorruptRecordError: the file is no image, or damaged.
    """
    window = ResizeAndCrop(*size).window(*_read(file).shape[:2])
    scale = window.width / size[1], window.height / size[0]
    return boxes * np.array(scale * 2, np.float32) + np.array([window.left, window.top] * 2, np.float32)


def _read(file):
    with reading(f"image {file}"):
        return decode_image(file)


def _expanded(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES)
    elif path.exists():
        yield path
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 Path.glob takes no absolute pattern
        yield from (Path(file) for file in matches if Path(file).is_file())
