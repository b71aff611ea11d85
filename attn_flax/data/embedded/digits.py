"""Scanned digits: scikit-learn's copy as a TFDS data set."""

import numpy as np
import tensorflow_datasets as tfds

from attn_flax.data.embedded.builder import Embedded, encode_png
from attn_flax.data.records import hold_out

HELD_OUT = 0.1
"""The share of the train scans that the validation scenes and videos are made of."""


class Digits(Embedded):
    """1,797 scans of handwritten digits, 8 × 8 pixels of 17 grey levels (Alpaydin and Kaynak, UCI, 1998).

    Test are the 360 of `train_test_split(test_size=360, stratify=labels, random_state=0)`, train the other 1,437, both
    in that function's order.
    """

    name = "digits"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scanned handwritten digits, as scikit-learn holds them.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(_examples(*scans)) for split, scans in split_scans().items()}


def split_scans() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The scans uint8 (n, 8, 8) and the labels (n,) of train and test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    return {"train": (train_images, train_labels), "test": (test_images, test_labels)}


def split_scans_in_three() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same, with a tenth of each label's train scans as those of validation: 1,295, 142 and 360."""
    scans = split_scans()
    images, labels = scans["train"]
    kept, held = hold_out(len(labels), HELD_OUT, labels)
    return scans | {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held])}


def _examples(images, labels):
    for image, label in zip(images, labels, strict=True):
        yield {"image": encode_png(image), "label": int(label)}
