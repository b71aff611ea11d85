"""Images of one class each."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import tensorflow_datasets as tfds

from attn_flax.data.kinds.kind import MODES, Kind, Reader, check_labels, is_picture
from attn_flax.data.records import decode_image


@dataclasses.dataclass(frozen=True)
class LabelledImages(Kind):
    """Records {"image": uint8 (h, w, c), "label": int}; batches with "label" int32 (b,)."""

    holds = "labelled images"
    expected = "the features image (an 8-bit Image) and label (a ClassLabel)"

    def reader(self, info: tfds.core.DatasetInfo) -> Reader | None:
        features = dict(info.features)
        image, label = features.get("image"), features.get("label")
        if not (is_picture(image) and isinstance(label, tfds.features.ClassLabel)):
            return None
        return Reader({"label": tuple(label.names)}, partial(_read, mode=MODES[image.shape[-1]]))

    def annotations(self, records: Sequence[dict], num_classes: int | Sequence[int]) -> dict[str, np.ndarray]:
        labels = np.array([record["label"] for record in records], np.int32)
        return {"label": check_labels(labels, num_classes)}

    def blank(self, shape: tuple[int, int, int], num_classes: int | Sequence[int]) -> dict:
        return {"image": np.zeros(shape, np.uint8), "label": 0}


def _read(stored, mode):
    return {"image": decode_image(stored["image"], mode), "label": int(stored["label"])}
