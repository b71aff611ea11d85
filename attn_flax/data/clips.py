"""Single videos, prepared as those of a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from attn_flax.data.collate import Collate
from attn_flax.data.errors import reading
from attn_flax.data.images import find_images
from attn_flax.data.kinds.videos import Videos, repeat_last
from attn_flax.data.records import decode_image
from attn_flax.data.transforms import ResizeAndCrop


def read_clip(
    path: Path,
    *,
    frames: int,
    stride: int,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """A clip as float32 (frames, h, w, c), taken, resized, cropped and standardised as `evaluation_batches` does.

    Args:
        path: an animated GIF, PNG or WebP, or a folder of images, which are its frames in the order of their names.
        frames: how many the clip has.
        stride: the clip has every so many-th frame.
        shape: height, width and channels that the frames get.
        mean: the channels' means, in [0, 1].
        std: the channels' standard deviations, likewise.

    Raises:
        CorruptRecordError: it cannot be read, has no frames, or frames of several sizes; the message names it.
        InputError: a number of frames or a stride below 1, or statistics that do not fit the channels.
    """
    kind = Videos(frames, stride)
    with reading(f"video {path}"):
        video = _frames_of_folder(path) if path.is_dir() else _frames_of_file(path)
    record = {"frames": repeat_last(video, kind.span), "labels": np.zeros(1, np.int32)}
    for step in [*kind.sampling(training=False), ResizeAndCrop(*shape[:2])]:
        record = step.map(record)
    return Collate(shape, mean, std, num_classes=1, kind=kind)([record])["frames"][0]


def _frames_of_folder(path):
    return np.stack([decode_image(file, "RGB") for file in find_images([str(path)])])


def _frames_of_file(path):
    with Image.open(path) as video:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)])
