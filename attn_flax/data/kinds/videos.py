"""Videos of one class in each of one or more labellings."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import tensorflow_datasets as tfds
from grain.transforms import Map, RandomMap

from attn_flax.checks import check
from attn_flax.data.kinds.kind import MODES, Kind, Reader, check_labels, is_picture
from attn_flax.data.records import decode_image


@dataclasses.dataclass(frozen=True)
class Videos(Kind):
    """Records {"frames": uint8 (t, h, w, c), "labels": int32 (n,)}, one label in each of n labellings.

    The labellings are in the order of their names. Batches are clips of the videos, "frames" float32
    (b, frames, h, w, c), with "labels" int32 (b, n): in training they begin anywhere, in evaluation they come from the
    middle. Of a video that is shorter than a clip the last frame is repeated.

    Attributes:
        frames: how many a clip has.
        stride: a clip has every so many-th frame.

    Raises:
        InputError: `frames` or `stride` is below 1.
    """

    frames: int = 16
    stride: int = 1

    holds = "labelled videos"
    expected = "a Sequence of 8-bit Images and at least one ClassLabel"
    pictures = "frames"

    def __post_init__(self):
        check(self.frames >= 1, f"frames must be at least 1, got {self.frames}.")
        check(self.stride >= 1, f"stride must be at least 1, got {self.stride}.")

    @property
    def span(self) -> int:
        """How many frames of a video a clip reaches over."""
        return (self.frames - 1) * self.stride + 1

    def reader(self, info: tfds.core.DatasetInfo) -> Reader | None:
        videos = [key for key, feature in info.features.items() if _is_video(feature)]
        labels = {
            key: tuple(feature.names)
            for key, feature in sorted(info.features.items())  # out of a file they come in any order
            if isinstance(feature, tfds.features.ClassLabel)
        }
        if len(videos) != 1 or not labels:
            return None
        mode = MODES[info.features[videos[0]].feature.shape[-1]]
        return Reader(labels, partial(self._read, key=videos[0], mode=mode, labels=tuple(labels)))

    def annotations(self, records: Sequence[dict], num_classes: int | Sequence[int]) -> dict[str, np.ndarray]:
        return {"labels": check_labels(np.stack([record["labels"] for record in records]), num_classes)}

    def blank(self, shape: tuple[int, int, int], num_classes: int | Sequence[int]) -> dict:
        return {
            "frames": np.zeros((self.frames, *shape), np.uint8),
            "labels": np.zeros(np.size(num_classes), np.int32),
        }

    def sampling(self, *, training: bool) -> list[Map | RandomMap]:
        return [RandomClip(self.frames, self.stride) if training else CentreClip(self.frames, self.stride)]

    def _read(self, stored, *, key, mode, labels):
        frames = np.stack([decode_image(frame, mode) for frame in stored[key]])
        record = {
            "frames": repeat_last(frames, self.span),
            "labels": np.array([stored[label] for label in labels], np.int32),
        }
        if len(frames) >= self.span:
            return record
        return record | {"cleaned": f"{len(frames)} of {self.span} frames, the last repeated"}


def repeat_last(frames: np.ndarray, count: int) -> np.ndarray:
    """The frames (t, …), the last of them as often as it takes to be so many."""
    return np.concatenate([frames, frames[-1:].repeat(max(0, count - len(frames)), axis=0)])


@dataclasses.dataclass(frozen=True)
class RandomClip(RandomMap):
    """Every `stride`-th frame, `frames` of them, from a random one on."""

    frames: int
    stride: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        start = rng.integers(0, len(record["frames"]) - (self.frames - 1) * self.stride)
        return _clip(record, start, self.frames, self.stride)


@dataclasses.dataclass(frozen=True)
class CentreClip(Map):
    """Every `stride`-th frame, `frames` of them, from the middle of the video."""

    frames: int
    stride: int

    def map(self, record: dict) -> dict:
        start = (len(record["frames"]) - (self.frames - 1) * self.stride - 1) // 2
        return _clip(record, start, self.frames, self.stride)


def _clip(record, start, frames, stride):
    return record | {"frames": record["frames"][start : start + (frames - 1) * stride + 1 : stride]}


def _is_video(feature):
    return isinstance(feature, tfds.features.Sequence) and is_picture(feature.feature)
