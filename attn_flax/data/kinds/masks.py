"""Images with a class for each pixel."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from attn_flax.checks import InputError
from attn_flax.data.kinds.kind import IGNORED, MODES, Kind, Reader, is_picture
from attn_flax.data.records import decode_image


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the values of a data set's masks mean.

    Attributes:
        names: the classes' names.
        values: their values in a mask.
        void: the value of pixels that belong to no class, if there are any.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    void: int | None = None

    def of_pixels(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """The class of each pixel, -1 for void and for unknown values, and how many of these there are."""
        table = np.full(256, _UNKNOWN, np.int16)
        table[list(self.values)] = np.arange(len(self.values))
        if self.void is not None:
            table[self.void] = IGNORED
        mask = table[values.astype(np.intp)]
        return np.maximum(mask, IGNORED), int(np.count_nonzero(mask == _UNKNOWN))


CLASSES: Mapping[str, Classes] = MappingProxyType(
    {"oxford_iiit_pet": Classes(("pet", "background", "border"), values=(1, 2, 3))}
)
"""Of data sets whose metadata do not tell."""

_UNKNOWN = -2


@dataclasses.dataclass(frozen=True)
class Masks(Kind):
    """Records {"image": uint8 (h, w, c), "mask": int16 (h, w)}; batches with "mask" int32 (b, h, w).

    -1 are pixels to ignore: those of the class void, and those of unknown classes, of which a record is cleaned.
    What the values of a mask mean is in a data set's metadata: `class_names` and, where pixels may belong to no class,
    `void_id`.
    """

    holds = "images with masks"
    expected = (
        "the features image and segmentation_mask (8-bit Images, this of one channel), and class_names in its metadata"
    )

    def reader(self, info: tfds.core.DatasetInfo) -> Reader | None:
        features = dict(info.features)
        image, mask = features.get("image"), features.get("segmentation_mask")
        classes = CLASSES.get(info.name) or _classes(info.metadata or {})
        if not (is_picture(image) and is_picture(mask) and mask.shape[-1] == 1 and classes):
            return None
        read = partial(_read, mode=MODES[image.shape[-1]], classes=classes)
        return Reader({"class": classes.names}, read)

    def annotations(self, records: Sequence[dict], num_classes: int | Sequence[int]) -> dict[str, np.ndarray]:
        masks = np.stack([record["mask"] for record in records]).astype(np.int32)
        limit = int(np.squeeze(num_classes))
        if masks.min() < IGNORED or masks.max() >= limit:
            raise InputError(f"masks must be in [{IGNORED}, {limit}), got {masks.min()} to {masks.max()}.")
        return {"mask": masks}

    def blank(self, shape: tuple[int, int, int], num_classes: int | Sequence[int]) -> dict:
        return {"image": np.zeros(shape, np.uint8), "mask": np.full(shape[:2], IGNORED, np.int16)}


def _classes(metadata):
    if "class_names" not in metadata:
        return None
    void = metadata.get("void_id")
    named = {value: name for value, name in enumerate(metadata["class_names"]) if value != void}
    return Classes(tuple(named.values()), tuple(named), void)


def _read(stored, *, mode, classes):
    image = decode_image(stored["image"], mode)
    if not stored["segmentation_mask"]:
        raise ValueError("it has no mask")
    with Image.open(io.BytesIO(stored["segmentation_mask"])) as file:
        values = np.asarray(file)  # of a palette the indices
    if values.shape != image.shape[:2]:
        raise ValueError(f"its mask has shape {values.shape}, its image {image.shape[:2]}")
    mask, unknown = classes.of_pixels(values)
    record = {"image": image, "mask": mask}
    return (
        record | {"cleaned": f"{unknown} pixel{'s' if unknown > 1 else ''} of unknown classes"} if unknown else record
    )
