"""Grain transforms of records of any kind and any number of channels.

What moves pictures moves all frames of a video alike, and boxes and masks along. Boxes are clipped at the border, and
dropped where less than a quarter of their area is still visible. Masks are taken from the nearest pixel; what comes in
from outside is ignored: -1.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from grain.transforms import Map, RandomMap
from PIL import Image

from attn_flax.data.kinds.kind import IGNORED

LEAST_VISIBLE = 0.25
"""The share of a box's area that must stay in the image."""

_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a picture that is shown, in the picture's pixels. It may reach beyond it."""

    top: int | float
    left: int | float
    height: int | float
    width: int | float
    mirrored: bool = False

    def move_boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """What is visible of boxes (n, 4), and of each whether that is enough.

        Args:
            boxes: (top, left, bottom, right) in shares of the picture.
            size: the picture's height and width.
        """
        scale = np.array([size[0] / self.height, size[1] / self.width] * 2, np.float32)
        offset = np.array([self.top / self.height, self.left / self.width] * 2, np.float32)
        moved = boxes * scale - offset
        if self.mirrored:
            moved = np.stack([moved[:, 0], 1 - moved[:, 3], moved[:, 2], 1 - moved[:, 1]], axis=1)
        visible = moved.clip(0, 1)
        return visible, _area(visible) >= LEAST_VISIBLE * _area(moved)

    def move_mask(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The mask (h, w) of what is shown in a picture of this height and width."""
        rows = _nearest(self.top, self.height, size[0])
        columns = _nearest(self.left, self.width, size[1])
        if self.mirrored:
            columns = columns[::-1]
        height, width = mask.shape
        moved = mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
        moved[(rows < 0) | (rows >= height)] = IGNORED
        moved[:, (columns < 0) | (columns >= width)] = IGNORED
        return moved


def _area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _nearest(start, extent, count):
    """The indices of the pixels that hold the centres of `count` equal parts."""
    return np.floor(start + (np.arange(count) + 0.5) * (extent / count)).astype(int)


def _pictures(record):
    """Under which key a record has its pixels."""
    return "frames" if "frames" in record else "image"


def _show(record, window, change):
    """The record whose changed pictures show this window of them."""
    key = _pictures(record)
    before, after = record[key], change(record[key])
    moved = record | {key: after}
    if "boxes" in record:
        boxes, seen = window.move_boxes(record["boxes"], before.shape[-3:-1])
        moved |= {"boxes": boxes[seen], "labels": record["labels"][seen]}
    if "mask" in record:
        moved["mask"] = window.move_mask(record["mask"], after.shape[-3:-1])
    return moved


@dataclasses.dataclass(frozen=True)
class ResizeAndCrop(Map):
    """Resizes the picture until it just covers `height` and `width`, and keeps the centre."""

    height: int
    width: int

    def map(self, record: dict) -> dict:
        height, width = record[_pictures(record)].shape[-3:-1]
        if (height, width) == (self.height, self.width):
            return record
        window = self.window(height, width)
        box = window.left, window.top, window.left + window.width, window.top + window.height
        return _show(record, window, lambda pictures: _resize(pictures, self.height, self.width, box))

    def window(self, height: int, width: int) -> Window:
        """What is shown of a picture of this size."""
        scale = min(height / self.height, width / self.width)
        shown = min(height, scale * self.height), min(width, scale * self.width)  # never more, by rounding
        return Window((height - shown[0]) / 2, (width - shown[1]) / 2, *shown)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(RandomMap):
    """A rectangle of 8 % to 100 % of the area and of aspect 3:4 to 4:3, resized (Szegedy et al. 2015, Inception).

    If ten rectangles do not fit into the picture, it is the centre, as in `ResizeAndCrop`.
    """

    height: int
    width: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        size = record[_pictures(record)].shape[-3:-1]
        box = random_box(rng, size, area=(0.08, 1.0), log_aspect=math.log(4 / 3))
        if box is None:
            return ResizeAndCrop(self.height, self.width).map(record)
        window = Window(*box)
        rows, columns = _slices(*box)
        return _show(record, window, lambda pictures: _resize(pictures[..., rows, columns, :], self.height, self.width))


@dataclasses.dataclass(frozen=True)
class Flip(RandomMap):
    """Mirrors every other picture, left to right."""

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        if rng.random() >= 0.5:
            return record
        window = Window(0, 0, *record[_pictures(record)].shape[-3:-1], mirrored=True)
        return _show(record, window, lambda pictures: pictures[..., ::-1, :])


@dataclasses.dataclass(frozen=True)
class Shift(RandomMap):
    """Moves the picture by up to `pixels` in both directions; zeros come in."""

    pixels: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        height, width = record[_pictures(record)].shape[-3:-1]
        down, right = rng.integers(-self.pixels, self.pixels + 1, 2).tolist()
        to_rows, from_rows = _overlap(height, down)
        to_columns, from_columns = _overlap(width, right)

        def shift(pictures):
            moved = np.zeros_like(pictures)
            moved[..., to_rows, to_columns, :] = pictures[..., from_rows, from_columns, :]
            return moved

        return _show(record, Window(-down, -right, height, width), shift)


@dataclasses.dataclass(frozen=True)
class PaddedCrop(RandomMap):
    """Pads the picture by its mirror image, `pixels` on each side, and crops it to its size.

    Boxes do not appear in the mirror image, and its mask is to be ignored.
    """

    pixels: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        height, width = record[_pictures(record)].shape[-3:-1]
        top, left = rng.integers(0, 2 * self.pixels + 1, 2).tolist()
        rows, columns = _slices(top, left, height, width)
        padding = (self.pixels, self.pixels)

        def crop(pictures):
            whole = [(0, 0)] * (pictures.ndim - 3)
            padded = np.pad(pictures, [*whole, padding, padding, (0, 0)], mode="reflect")
            return padded[..., rows, columns, :]

        return _show(record, Window(top - self.pixels, left - self.pixels, height, width), crop)


@dataclasses.dataclass(frozen=True)
class PermuteColors(RandomMap):
    """Puts the channels into a random order."""

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        key = _pictures(record)
        return record | {key: record[key][..., rng.permutation(record[key].shape[-1])]}


@dataclasses.dataclass(frozen=True)
class Invert(RandomMap):
    """Makes a negative, 255 - x, of every other picture."""

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        key = _pictures(record)
        return record | {key: 255 - record[key]} if rng.random() < 0.5 else record


@dataclasses.dataclass(frozen=True)
class RandomErasing(RandomMap):
    """Fills a rectangle with noise (Zhong et al. 2020, arXiv:1708.04896): 2 % to 40 % of the area, aspect 0.3 to 1/0.3.

    It is the same noise in all frames of a video; boxes and masks stay what they are.

    Differs from the paper: the aspect is uniform in its logarithm, so that upright and lying rectangles are equally
    likely; a picture into which ten rectangles do not fit stays whole, where the paper tries for ever.
    """

    probability: float

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        key = _pictures(record)
        if rng.random() >= self.probability:
            return record
        box = random_box(rng, record[key].shape[-3:-1], area=(0.02, 0.4), log_aspect=math.log(1 / 0.3))
        if box is None:
            return record
        erased = record[key].copy()
        rows, columns = _slices(*box)
        erased[..., rows, columns, :] = rng.integers(0, 256, (*box[2:], erased.shape[-1]), np.uint8)
        return record | {key: erased}


def random_box(
    rng: np.random.Generator, shape: tuple[int, ...], *, area: tuple[float, float], log_aspect: float
) -> tuple[int, int, int, int] | None:
    """A random rectangle inside a picture as (top, left, height, width), or None if ten did not fit.

    Args:
        rng: what to draw from.
        shape: the picture's, height first.
        area: the least and the greatest share of the picture's area.
        log_aspect: the greatest absolute logarithm of height over width.
    """
    for _ in range(_ATTEMPTS):
        pixels = rng.uniform(*area) * shape[0] * shape[1]
        aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
        height, width = max(1, round(math.sqrt(pixels * aspect))), max(1, round(math.sqrt(pixels / aspect)))
        if height <= shape[0] and width <= shape[1]:
            return *rng.integers(0, (shape[0] - height + 1, shape[1] - width + 1)).tolist(), height, width
    return None


def apply_pillow(operation: Callable[[Image.Image], Image.Image], pictures: np.ndarray) -> np.ndarray:
    """What an operation of Pillow makes of pictures (…, h, w, c): of all channels if they are three, else of each."""
    if pictures.ndim > 3:
        return np.stack([apply_pillow(operation, picture) for picture in pictures])
    if pictures.shape[-1] == 3:
        return np.asarray(operation(Image.fromarray(pictures)))
    channels = [operation(Image.fromarray(np.ascontiguousarray(channel))) for channel in np.moveaxis(pictures, -1, 0)]
    return np.stack(channels, axis=-1)


def _resize(pictures, height, width, box=None):
    """The pictures, or a part (left, top, right, bottom) of them, in this size."""
    return apply_pillow(lambda picture: picture.resize((width, height), Image.Resampling.BICUBIC, box), pictures)


def _slices(top, left, height, width):
    return slice(top, top + height), slice(left, left + width)


def _overlap(size, offset):
    """The indices that something moved by `offset` gets to, and those that it comes from."""
    return slice(max(offset, 0), max(size + offset, 0)), slice(max(-offset, 0), max(size - offset, 0))
