"""How a data set is made and written without network and without tensorflow."""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from attn_flax.data.errors import DatasetNotPreparedError


class Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose records are made here, in an order of their own."""

    VERSION = tfds.core.Version("1.0.0")

    def _generate_examples(self, examples):
        yield from enumerate(examples)


def prepare(builder: type[Embedded], data_dir: str | os.PathLike | None = None) -> Embedded:
    """The builder of an embedded data set, which is written to disk unless it is there already.

    Several processes may call this at once: one of them wins, and all read what it wrote.

    Args:
        builder: its class.
        data_dir: the folder of prepared sets, by default TFDS's own.

    Raises:
        DatasetNotPreparedError: the folder cannot be written.
    """
    with _quiet():
        try:
            made = builder(data_dir=data_dir, file_format="array_record")
            made.download_and_prepare()
        except OSError as error:  # another process was faster, or the folder cannot be written
            made = builder(data_dir=data_dir, file_format="array_record")
            if not made.is_prepared():
                raise DatasetNotPreparedError(
                    f"{builder.name} cannot be written to {made.data_dir}: {error}. Choose a folder that can be."
                ) from error
        return made


def encode_png(pixels: np.ndarray) -> io.BytesIO:
    """The image (h, w) or (h, w, 3) as a file that TFDS takes without tensorflow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    file.seek(0)
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, announcements and log lines for what takes seconds, once."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
