"""Scenes of digits on photographs, for detection and segmentation."""

from collections.abc import Iterator
from types import MappingProxyType

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from attn_flax.data.embedded.builder import Embedded, encode_png
from attn_flax.data.embedded.digits import split_scans_in_three

COUNTS = MappingProxyType({"train": 6000, "validation": 300, "test": 600})
"""How many scenes each split has."""

SIZE = 64
MOST_DIGITS = 6
SCALES = (1.5, 3.0)
CROPS = (64, 256)
INK = 128
CONTRAST = 80
OVERLAP = 0.1
TRIES = 20

_LUMA = np.array([0.299, 0.587, 0.114])


class DigitScenes(Embedded):
    """6,900 scenes of 64 × 64 pixels in colour: 1 to 6 scanned digits on a part of a photograph.

    Made of the scans of `digits` and of the two photographs that scikit-learn holds, by random draws that are always
    the same. Train and validation scenes take the train scans, of which a tenth of each label is for validation alone;
    test scenes take the test scans. All splits share the photographs.

    A scene begins with a square part of one of the photographs, 64 to 256 pixels wide, resized, and mirrored half of
    the time. Then for each of 1 to 6 digits a scan is enlarged 1.5 to 3 times (bicubic), and put where its box is
    inside the scene and overlaps with no other by more than a tenth of the smaller one; a digit that finds no such
    place in 20 draws is left out. It is drawn as ink of one random colour whose luma differs by at least 80 of 255 from
    the mean luma of what is in its box: the first of 32 draws for which that holds, else that of the greatest
    difference.

    The pixels of a digit are those with at least half of the ink. Its box is their extent; their value in the mask is
    its label + 1, and 0 is the background. Where digits overlap, the later one is on top.
    """

    name = "digit_scenes"

    def _info(self):
        objects = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=10)}
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format="png"),
            "objects": tfds.features.Sequence(objects),
            "segmentation_mask": tfds.features.Image(shape=(SIZE, SIZE, 1), dtype=np.uint8, encoding_format="png"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scanned digits on photographs, with their boxes and masks.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(class_names=["background", *map(str, range(10))]),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_sample_images

        photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
        scans = split_scans_in_three()
        return {
            split: self._generate_examples(_examples(seed, COUNTS[split], scans[split], photographs))
            for seed, split in enumerate(COUNTS)
        }


def _examples(seed, count, scans, photographs) -> Iterator[dict]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image, boxes, labels, mask = make_scene(rng, *scans, photographs)
        bboxes = [tfds.features.BBox(*(box / SIZE).tolist()) for box in boxes]
        yield {
            "image": encode_png(image),
            "objects": {"bbox": bboxes, "label": labels},
            "segmentation_mask": encode_png(mask),
        }


def make_scene(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray, photographs: list[Image.Image]
) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """The image (h, w, 3), the boxes (n, 4) as (top, left, bottom, right) in pixels, their labels, the mask (h, w)."""
    canvas = _background(rng, photographs)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    boxes, found = np.zeros((0, 4), int), []
    for _ in range(rng.integers(1, MOST_DIGITS + 1)):
        chosen = rng.integers(len(labels))
        ink = _enlarge(images[chosen], rng.uniform(*SCALES))
        box = _place(rng, boxes, ink.shape)
        if box is None:
            continue
        top, left, bottom, right = box
        part = canvas[top:bottom, left:right]
        colour = _contrasting(rng, part)
        share = ink[..., np.newaxis] / 255
        part[:] = (1 - share) * part + share * colour
        mask[top:bottom, left:right][ink >= INK] = labels[chosen] + 1
        boxes = np.vstack([boxes, box])
        found.append(int(labels[chosen]))
    return np.rint(canvas).astype(np.uint8), boxes, found, mask


def _background(rng, photographs):
    photograph = photographs[rng.integers(len(photographs))]
    width = rng.integers(CROPS[0], CROPS[1] + 1)
    left, top = rng.integers(0, (photograph.width - width + 1, photograph.height - width + 1)).tolist()
    part = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + width, top + width))
    pixels = np.asarray(part, np.float64)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _enlarge(image, scale):
    """The scan at this scale, cropped to the extent of its ink."""
    side = round(len(image) * scale)
    ink = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    rows, columns = (np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(rng, boxes, shape):
    """Where a box of this height and width may be beside the others, or None."""
    corners = rng.integers(0, (SIZE - shape[0] + 1, SIZE - shape[1] + 1), (TRIES, 2))
    common = np.minimum(boxes[:, 2:], corners[:, np.newaxis] + shape) - np.maximum(boxes[:, :2], corners[:, np.newaxis])
    common = common.clip(0)
    extents = boxes[:, 2:] - boxes[:, :2]
    smaller = np.minimum(extents[:, 0] * extents[:, 1], shape[0] * shape[1])
    free = np.flatnonzero((common[..., 0] * common[..., 1] <= OVERLAP * smaller).all(1))
    return (*corners[free[0]], *corners[free[0]] + shape) if len(free) else None


def _contrasting(rng, part):
    colours = rng.integers(0, 256, (32, 3))
    contrast = np.abs((colours * _LUMA).sum(1) - (part.mean((0, 1)) * _LUMA).sum())
    return colours[np.argmax(contrast >= CONTRAST) if (contrast >= CONTRAST).any() else np.argmax(contrast)]
