"""Grain transforms of records {"image": uint8 (height, width, channels), "label": int}; any number of channels."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from grain.transforms import Map, RandomMap
from PIL import Image, ImageOps

_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class ResizeAndCrop(Map):
    """Resizes the image until it just covers `height` and `width`, and keeps the centre."""

    height: int
    width: int

    def map(self, record: dict) -> dict:
        image = record["image"]
        if image.shape[:2] == (self.height, self.width):
            return record
        return record | {"image": self.apply(image)}

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The image in its new size."""
        size = (self.width, self.height)
        return apply_pillow(lambda picture: ImageOps.fit(picture, size, Image.Resampling.BICUBIC), image)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(RandomMap):
    """A rectangle of 8 % to 100 % of the area and of aspect 3:4 to 4:3, resized (Szegedy et al. 2015, Inception).

    If ten rectangles do not fit into the image, it is the centre, as in `ResizeAndCrop`.
    """

    height: int
    width: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        image = record["image"]
        box = random_box(rng, image.shape, area=(0.08, 1.0), log_aspect=math.log(4 / 3))
        if box is None:
            return record | {"image": ResizeAndCrop(self.height, self.width).apply(image)}
        top, left, height, width = box
        image = image[top : top + height, left : left + width]
        size = (self.width, self.height)
        return record | {"image": apply_pillow(lambda picture: picture.resize(size, Image.Resampling.BICUBIC), image)}


@dataclasses.dataclass(frozen=True)
class Flip(RandomMap):
    """Mirrors every other image, left to right."""

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        return record | {"image": record["image"][:, ::-1]} if rng.random() < 0.5 else record


@dataclasses.dataclass(frozen=True)
class Shift(RandomMap):
    """Moves the image by up to `pixels` in both directions; zeros come in."""

    pixels: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        image = record["image"]
        height, width, _ = image.shape
        down, right = rng.integers(-self.pixels, self.pixels + 1, 2).tolist()
        to_rows, from_rows = _overlap(height, down)
        to_columns, from_columns = _overlap(width, right)
        moved = np.zeros_like(image)
        moved[to_rows, to_columns] = image[from_rows, from_columns]
        return record | {"image": moved}


@dataclasses.dataclass(frozen=True)
class PaddedCrop(RandomMap):
    """Pads the image by its mirror image, `pixels` on each side, and crops it to its size."""

    pixels: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        image = record["image"]
        height, width, _ = image.shape
        padding = (self.pixels, self.pixels)
        padded = np.pad(image, (padding, padding, (0, 0)), mode="reflect")
        top, left = rng.integers(0, 2 * self.pixels + 1, 2)
        return record | {"image": padded[top : top + height, left : left + width]}


@dataclasses.dataclass(frozen=True)
class RandomErasing(RandomMap):
    """Fills a rectangle with noise (Zhong et al. 2020, arXiv:1708.04896): 2 % to 40 % of the area, aspect 0.3 to 1/0.3.

    Differs from the paper: the aspect is uniform in its logarithm, so that upright and lying rectangles are equally
    likely; an image into which ten rectangles do not fit stays whole, where the paper tries for ever.
    """

    probability: float

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        image = record["image"]
        if rng.random() >= self.probability:
            return record
        box = random_box(rng, image.shape, area=(0.02, 0.4), log_aspect=math.log(1 / 0.3))
        if box is None:
            return record
        top, left, height, width = box
        erased = image.copy()
        erased[top : top + height, left : left + width] = rng.integers(
            0, 256, (height, width, image.shape[2]), np.uint8
        )
        return record | {"image": erased}


def random_box(
    rng: np.random.Generator, shape: tuple[int, ...], *, area: tuple[float, float], log_aspect: float
) -> tuple[int, int, int, int] | None:
    """A random rectangle inside an image as (top, left, height, width), or None if ten did not fit.

    Args:
        rng: what to draw from.
        shape: the image's, height first.
        area: the least and the greatest share of the image's area.
        log_aspect: the greatest absolute logarithm of height over width.
    """
    for _ in range(_ATTEMPTS):
        pixels = rng.uniform(*area) * shape[0] * shape[1]
        aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
        height, width = max(1, round(math.sqrt(pixels * aspect))), max(1, round(math.sqrt(pixels / aspect)))
        if height <= shape[0] and width <= shape[1]:
            return *rng.integers(0, (shape[0] - height + 1, shape[1] - width + 1)).tolist(), height, width
    return None


def apply_pillow(operation: Callable[[Image.Image], Image.Image], image: np.ndarray) -> np.ndarray:
    """What an operation of Pillow makes of an image: of all its channels if they are three, else of one by one."""
    if image.shape[-1] == 3:
        return np.asarray(operation(Image.fromarray(image)))
    channels = [operation(Image.fromarray(np.ascontiguousarray(image[..., c]))) for c in range(image.shape[-1])]
    return np.stack(channels, axis=-1)


def _overlap(size, offset):
    """The indices that something moved by `offset` gets to, and those that it comes from."""
    return slice(max(offset, 0), max(size + offset, 0)), slice(max(-offset, 0), max(size - offset, 0))
