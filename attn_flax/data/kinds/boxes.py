"""Images with boxes around what is in them."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import tensorflow_datasets as tfds

from attn_flax.checks import check
from attn_flax.data.kinds.kind import IGNORED, MODES, Kind, Reader, check_labels, is_picture
from attn_flax.data.records import decode_image

LABEL_NAMES = ("label", "type")
"""The usual names of an object's class, among further ClassLabels such as its pose."""

ROUNDING = 1e-3
"""A box may reach so far beyond the image, in shares of it, and counts as rounded."""


@dataclasses.dataclass(frozen=True)
class Boxes(Kind):
    """Records {"image": uint8 (h, w, c), "boxes": float32 (n, 4), "labels": int32 (n,)}.

    A record's box is (top, left, bottom, right), as in TFDS, a batch's (centre x, centre y, width, height), both in
    shares of the image. Batches have "boxes" float32 (b, m, 4) and "labels" int32 (b, m), -1 where there is no box.

    A record is cleaned of boxes of unknown classes, boxes without area and boxes outside the image; those that reach
    beyond it are clipped; of more than `max_boxes` the largest stay. Boxes around crowds (COCO's `is_crowd`) are no
    objects, and left out.

    Attributes:
        max_boxes: m, the boxes that an image may have.

    Raises:
        InputError: `max_boxes` is below 1.
    """

    max_boxes: int = 32

    holds = "images with boxes"
    expected = "the features image (an 8-bit Image) and a Sequence of objects with a BBoxFeature and a ClassLabel"

    def __post_init__(self):
        check(self.max_boxes >= 1, f"max_boxes must be at least 1, got {self.max_boxes}.")

    def reader(self, info: tfds.core.DatasetInfo) -> Reader | None:
        image = dict(info.features).get("image")
        for key, feature in sorted(info.features.items()):
            box, label = _names_of_box_and_label(feature)
            if is_picture(image) and box and label:
                names = tuple(feature.feature[label].names)
                read = partial(
                    self._read, mode=MODES[image.shape[-1]], key=key, box=box, label=label, num_classes=len(names)
                )
                return Reader({label: names}, read)
        return None

    def annotations(self, records: Sequence[dict], num_classes: int | Sequence[int]) -> dict[str, np.ndarray]:
        counts = np.array([len(record["labels"]) for record in records])
        there = np.arange(self.max_boxes) < counts[:, np.newaxis]
        boxes = np.zeros((*there.shape, 4), np.float32)
        labels = np.full(there.shape, IGNORED, np.int32)
        boxes[there] = np.concatenate([record["boxes"] for record in records])
        labels[there] = check_labels(np.concatenate([record["labels"] for record in records]), num_classes)
        left_top, right_bottom = boxes[..., [1, 0]], boxes[..., [3, 2]]
        boxes = np.concatenate([(left_top + right_bottom) / 2, right_bottom - left_top], axis=-1)
        return {"boxes": boxes, "labels": labels}

    def blank(self, shape: tuple[int, int, int], num_classes: int | Sequence[int]) -> dict:
        return {
            "image": np.zeros(shape, np.uint8),
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
        }

    def _read(self, stored, *, mode, key, box, label, num_classes):
        objects = stored[key]
        boxes = np.array(objects[box], np.float32).reshape(-1, 4)
        labels = np.array(objects[label], np.int32)
        alone = ~np.array(objects.get("is_crowd", np.zeros(len(labels))), bool)
        boxes, labels, cleaned = clean_boxes(boxes[alone], labels[alone], num_classes, self.max_boxes)
        record = {"image": decode_image(stored["image"], mode), "boxes": boxes, "labels": labels}
        return record | {"cleaned": cleaned} if cleaned else record


def clean_boxes(
    boxes: np.ndarray, labels: np.ndarray, num_classes: int, max_boxes: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """The boxes (top, left, bottom, right) that can be learned from, their labels, and what was wrong, in words.

    >>> boxes = np.array([[0.1, 0.2, 0.5, 0.9], [0.4, 0.4, 0.4, 0.6], [0.5, 0.5, 1.5, 1.0]])
    >>> clean_boxes(boxes, np.array([0, 1, 1]), num_classes=2, max_boxes=9)
    (array([[0.1, 0.2, 0.5, 0.9], [0.5, 0.5, 1. , 1. ]]), array([0, 1]), '1 box without area, 1 box clipped')
    """
    inside = boxes.clip(0, 1)
    told = []

    def tell(what, affected):
        if affected.any():
            told.append(f"{affected.sum()} box{'es' if affected.sum() > 1 else ''} {what}")

    good = np.ones(len(boxes), bool)
    for what, wrong in (
        ("of an unknown class", (labels < 0) | (labels >= num_classes)),
        ("without area", ~_has_area(boxes)),
        ("outside the image", ~_has_area(inside)),
    ):
        tell(what, good & wrong)
        good &= ~wrong
    tell("clipped", good & (np.abs(inside - boxes) > ROUNDING).any(1))
    largest = np.argsort(np.where(good, -np.prod(inside[:, 2:] - inside[:, :2], axis=1), 0), kind="stable")[:max_boxes]
    too_many = good.copy()
    too_many[largest] = False
    tell(f"more than max_boxes={max_boxes}", too_many)
    good &= ~too_many
    return inside[good], labels[good], ", ".join(told)


def _has_area(boxes):
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _names_of_box_and_label(feature):
    """The names of the box and of its class in a sequence of objects; None for what there is not."""
    if not (isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.FeaturesDict)):
        return None, None
    parts = feature.feature.items()
    boxes = [name for name, part in parts if isinstance(part, tfds.features.BBoxFeature)]
    labels = [name for name, part in parts if isinstance(part, tfds.features.ClassLabel)]
    usual = [name for name in LABEL_NAMES if name in labels] or labels
    return (boxes[0] if len(boxes) == 1 else None), (usual[0] if len(usual) == 1 else None)
