"""Videos of moving digits, for recognition over time."""

from collections.abc import Iterator
from types import MappingProxyType

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from attn_flax.data.embedded.builder import Embedded, encode_png
from attn_flax.data.embedded.digits import split_scans_in_three

COUNTS = MappingProxyType({"train": 4000, "validation": 300, "test": 600})
"""How many videos each split has."""

FRAMES, SIZE = 16, 32
DIRECTIONS = MappingProxyType(
    {
        "right": (0, 1),
        "down right": (1, 1),
        "down": (1, 0),
        "down left": (1, -1),
        "left": (0, -1),
        "up left": (-1, -1),
        "up": (-1, 0),
        "up right": (-1, 1),
    }
)
"""The steps down and to the right, by their names."""

SIDES = (12, 14)
WAYS = (13, 15)
LEVELS = 16


class DigitVideos(Embedded):
    """4,900 videos of 16 frames of 32 × 32 grey pixels: one scanned digit that moves, labelled by digit and direction.

    Made of the scans of `digits` by random draws that are always the same. Train and validation videos take the train
    scans, of which a tenth of each label is for validation alone; test videos take the test scans.

    A scan is enlarged to 12 to 14 pixels (bicubic) and moves in one of 8 directions, at a constant speed that takes it
    13 to 15 pixels along each axis it moves on, from the first to the last frame: in frame t it has come
    round(way · t / 15) pixels. Along an axis it does not move on, it is inside the frame; along one it moves on, it
    begins anywhere, and what leaves the frame comes in at the other side, so that some frame shows it whole. So each
    single frame is equally likely for a direction and its opposite, and so is the set of all frames: which of the two
    it is, only their order tells.

    The background is a texture that stays, 8 × 8 random values enlarged to the frame (bicubic), from 0 to 8 of 16 grey
    levels; the digit is drawn over it as white ink; then each pixel of each frame gets a noise of -1, 0 or 1 levels.
    """

    name = "digit_videos"

    def _info(self):
        image = tfds.features.Image(shape=(SIZE, SIZE, 1), dtype=np.uint8, encoding_format="png")
        features = {
            "video": tfds.features.Sequence(image, length=FRAMES),
            "digit": tfds.features.ClassLabel(num_classes=10),
            "direction": tfds.features.ClassLabel(names=list(DIRECTIONS)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scanned digits that move.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        scans = split_scans_in_three()
        return {
            split: self._generate_examples(_examples(seed, COUNTS[split], *scans[split]))
            for seed, split in enumerate(COUNTS)
        }


def _examples(seed, count, images, labels) -> Iterator[dict]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        chosen, direction = rng.integers(0, (len(labels), len(DIRECTIONS))).tolist()
        frames = make_video(rng, images[chosen], tuple(DIRECTIONS.values())[direction])
        yield {
            "video": [encode_png(frame) for frame in frames],
            "digit": int(labels[chosen]),
            "direction": direction,
        }


def make_video(rng: np.random.Generator, image: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """The frames, uint8 (t, h, w), of a scan that moves by these steps down and to the right."""
    ink = np.zeros((SIZE, SIZE))
    side = rng.integers(SIDES[0], SIDES[1] + 1)
    ink[:side, :side] = _enlarge(image, side) / 255
    way = rng.integers(WAYS[0], WAYS[1] + 1)
    moved = np.rint(way * np.arange(FRAMES) / (FRAMES - 1)).astype(int)
    first = rng.integers(0, [SIZE if moves else SIZE - side + 1 for moves in step])
    rows, columns = ((np.arange(SIZE) - first[axis] - moved[:, np.newaxis] * step[axis]) % SIZE for axis in (0, 1))
    ink = ink[rows[:, :, np.newaxis], columns[:, np.newaxis, :]]
    texture = _enlarge(rng.integers(0, 256, (8, 8)).astype(np.uint8), SIZE) * (LEVELS / 2 / 255)
    levels = np.rint((1 - ink) * texture + ink * LEVELS) + rng.integers(-1, 2, ink.shape)
    return np.rint(levels.clip(0, LEVELS) * (255 / LEVELS)).astype(np.uint8)


def _enlarge(image, side):
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
