"""RandAugment: a few random distortions, all of one strength (Cubuk et al. 2020, arXiv:1909.13719)."""

import dataclasses
from collections.abc import Callable

import numpy as np
from grain.transforms import RandomMap
from PIL import Image, ImageEnhance, ImageOps

from attn_flax.data.transforms import apply_pillow

_GREY = 128


@dataclasses.dataclass(frozen=True)
class RandAugment(RandomMap):
    """Applies `num_ops` of the paper's 14 operations, drawn with replacement, each `magnitude` (0 to 10) strong.

    The ranges are AutoAugment's (Cubuk et al. 2019), read so that each operation distorts more, the greater the
    magnitude; the paper's code lets solarize and posterize distort less. What comes in from outside is grey.
    """

    num_ops: int
    magnitude: float

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        image = record["image"]
        for index in rng.integers(0, len(OPERATIONS), self.num_ops):
            operation = OPERATIONS[index]
            strength = self.magnitude / 10
            sign = rng.choice((-1, 1))
            image = apply_pillow(lambda picture, f=operation, s=strength * sign: f(picture, s), image)
        return record | {"image": image}


def _identity(picture, strength):
    return picture


def _autocontrast(picture, strength):
    return ImageOps.autocontrast(picture)


def _equalize(picture, strength):
    return ImageOps.equalize(picture)


def _rotate(picture, strength):
    return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=_fill(picture))


def _solarize(picture, strength):
    return ImageOps.solarize(picture, round(256 * (1 - abs(strength))))


def _posterize(picture, strength):
    return ImageOps.posterize(picture, 8 - round(4 * abs(strength)))


def _color(picture, strength):
    return ImageEnhance.Color(picture).enhance(1 + 0.9 * strength)


def _contrast(picture, strength):
    return ImageEnhance.Contrast(picture).enhance(1 + 0.9 * strength)


def _brightness(picture, strength):
    return ImageEnhance.Brightness(picture).enhance(1 + 0.9 * strength)


def _sharpness(picture, strength):
    return ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * strength)


def _shear_x(picture, strength):
    return _affine(picture, (1, 0.3 * strength, 0, 0, 1, 0))


def _shear_y(picture, strength):
    return _affine(picture, (1, 0, 0, 0.3 * strength, 1, 0))


def _translate_x(picture, strength):
    return _affine(picture, (1, 0, round(150 / 331 * picture.width * strength), 0, 1, 0))


def _translate_y(picture, strength):
    return _affine(picture, (1, 0, 0, 0, 1, round(150 / 331 * picture.height * strength)))


def _affine(picture, matrix):
    """The picture whose point (x, y) is the given one's (a x + b y + c, d x + e y + f)."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_fill(picture)
    )


def _fill(picture):
    return (_GREY,) * len(picture.getbands())


OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    _identity,
    _autocontrast,
    _equalize,
    _rotate,
    _solarize,
    _color,
    _posterize,
    _contrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
"""The operations, each of a picture and its strength from -1 to 1; most know no direction and ignore the sign."""
