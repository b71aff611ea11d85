"""How images are prepared for a network that was trained on such."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from attn_flax.checks import InputError, check


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Images resized, cropped to their centre and standardised, (x / 255 - mean) / std.

    Attributes:
        mean: of the channels, in [0, 1].
        std: the channels' standard deviations, likewise.
        size: the height and width of the images that the network gets.
        crop: their share of the resized image, along each axis.
        interpolation: how Pillow resizes: "bicubic", "bilinear", "lanczos", "nearest", …

    Raises:
        InputError: a value out of its range, or an interpolation that Pillow does not have.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    crop: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self):
        known = [kernel.name.lower() for kernel in Image.Resampling]
        check(len(self.mean) == len(self.std), f"mean and std must be as many, got {self.mean} and {self.std}.")
        check(min(self.std) > 0, f"std must be positive, got {self.std}.")
        check(len(self.size) == 2 and min(self.size) >= 1, f"size must be a height and a width, got {self.size}.")
        check(0 < self.crop <= 1, f"crop must be in (0, 1], got {self.crop}.")
        check(
            self.interpolation in known,
            f"interpolation must be one of {', '.join(known)}, got {self.interpolation!r}.",
        )

    def apply(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """The images as float32 (b, h, w, c).

        Args:
            images: of Pillow, or uint8 (h, w, c), each of any size.

        Raises:
            InputError: an array of another type or shape.

        >>> prepare = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, size=(2, 2))
        >>> prepare.apply([np.full((7, 5, 3), 255, np.uint8)]).tolist()[0][0]
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        pixels = np.stack([self._cropped(self._as_image(image)) for image in images]).astype(np.float32)
        return (pixels / 255 - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _as_image(self, image):
        if isinstance(image, np.ndarray):
            check(
                image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3),
                f"images must be uint8 (h, w, 1 or 3), got {image.dtype} {image.shape}.",
            )
            image = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        channels = len(self.mean)
        check(channels in (1, 3), f"mean must have 1 or 3 values to prepare images, got {channels}.")
        return image.convert("L" if channels == 1 else "RGB")

    def _cropped(self, image):
        """The pixels (h, w, c) of the centre of the resized image."""
        height, width = self._resized(image.height, image.width)
        resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        top, left = (round((whole - part) / 2) for whole, part in zip((height, width), self.size, strict=True))
        pixels = np.asarray(resized.crop((left, top, left + self.size[1], top + self.size[0])))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def _resized(self, height, width):
        """The least height and width, in the image's proportion, of which `size` is the share `crop`."""
        least_height, least_width = (math.floor(side / self.crop) for side in self.size)
        if least_height * width >= least_width * height:
            return least_height, least_height * width // height
        return least_width * height // width, least_width


def read_preprocessing(settings: dict) -> Preprocessing:
    """What the "pretrained_cfg" of timm's config.json says.

    Raises:
        InputError: it says nothing of it, or something that is not known here.
    """
    try:
        _, *size = settings["input_size"]
        crop_mode = settings.get("crop_mode", "center")
        check(crop_mode == "center", f"images are cropped in the mode {crop_mode!r}; only 'center' is known.")
        return Preprocessing(
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            size=tuple(size),
            crop=settings["crop_pct"],
            interpolation=settings["interpolation"],
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"it does not say how images are prepared: {error!r}.") from None
