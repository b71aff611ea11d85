"""What a kind of records is."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from grain.transforms import Map, RandomMap

from attn_flax.checks import InputError

IGNORED = -1
"""The label of a box that is none, and the class of a pixel that nobody knows."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of so many channels."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the stored records of one data set become records.

    Attributes:
        labellings: the class names of each labelling, by its name.
        read: (what TFDS gives, images still encoded) -> the record; what was wrong with it and is cleaned, in words,
            is under "cleaned". Raises any exception for what cannot be read.
    """

    labellings: Mapping[str, tuple[str, ...]]
    read: Callable[[Mapping[str, Any]], dict]


class Kind(abc.ABC):
    """A kind of records, {pictures: uint8 array (…, height, width, channels), annotation}.

    Attributes:
        holds: what its data sets hold.
        expected: the features of TFDS that they are found by.
        pictures: where a record has its pixels, "image" or "frames".
    """

    holds: ClassVar[str]
    expected: ClassVar[str]
    pictures: ClassVar[str] = "image"

    @abc.abstractmethod
    def reader(self, info: tfds.core.DatasetInfo) -> Reader | None:
        """How to read a data set, or None if it is of another kind."""

    @abc.abstractmethod
    def annotations(self, records: Sequence[dict], num_classes: int | Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of what the records have beside their pictures.

        Raises:
            InputError: a class is not below `num_classes`.
        """

    @abc.abstractmethod
    def blank(self, shape: tuple[int, int, int], num_classes: int | Sequence[int]) -> dict:
        """A record without content, its pictures of this height, width and channels, that fills a batch."""

    def sampling(self, *, training: bool) -> list[Map | RandomMap]:
        """What is taken of a record before its pictures are changed; by default all."""
        return []


def is_picture(feature: Any) -> bool:
    """Whether it is an Image of TFDS with 8 bits per channel."""
    return isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8 and feature.shape[-1] in MODES


def check_labels(labels: np.ndarray, num_classes: int | Sequence[int]) -> np.ndarray:
    """The labels (…,) or (…, labellings), if each is below the number of classes, of its labelling.

    Raises:
        InputError: there is a label that is not.

    >>> check_labels(np.array([[3, 1], [0, 2]]), (4, 2))
    Traceback (most recent call last):
    ...
    attn_flax.checks.InputError: labels must be in [0, 2), got 2.
    """
    limits = np.broadcast_to(num_classes, labels.shape)
    wrong = (labels < 0) | (labels >= limits)
    if wrong.any():
        raise InputError(f"labels must be in [0, {limits[wrong][0]}), got {labels[wrong][0]}.")
    return labels
