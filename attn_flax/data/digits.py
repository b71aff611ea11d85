"""Scanned digits, the data set that needs no network: scikit-learn's copy as a TFDS data set."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from attn_flax.data.errors import DatasetNotPreparedError


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 scans of handwritten digits, 8 × 8 pixels of 17 grey levels (Alpaydin and Kaynak, UCI, 1998).

    Test are the 360 of `train_test_split(test_size=360, stratify=labels, random_state=0)`, train the other 1,437, both
    in that function's order.
    """

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

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
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        train_images, test_images, train_labels, test_labels = train_test_split(
            images, labels, test_size=360, stratify=labels, random_state=0
        )
        return {
            "train": self._generate_examples(train_images, train_labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": _encode_png(image), "label": int(label)}


def prepare_digits(data_dir: str | os.PathLike | None = None) -> Digits:
    """The builder of the digits, written to disk unless they are there already.

    Several processes may call this at once: one of them wins, and all read what it wrote.

    Args:
        data_dir: the folder of prepared sets, by default TFDS's own.

    Raises:
        DatasetNotPreparedError: the folder cannot be written.
    """
    with _quiet():
        try:
            builder = Digits(data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
        except OSError as error:  # another process was faster, or the folder cannot be written
            builder = Digits(data_dir=data_dir, file_format="array_record")
            if not builder.is_prepared():
                raise DatasetNotPreparedError(
                    f"digits cannot be written to {builder.data_dir}: {error}. Choose a folder that can be."
                ) from error
        return builder


def _encode_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, announcements and log lines for what takes a second, once."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
