"""The configuration becomes transforms, or is refused."""

import pytest

from attn_flax.checks import InputError
from attn_flax.data import BOXES, MASKS, VIDEOS, Augmentation
from attn_flax.data.randaugment import RandAugment
from attn_flax.data.transforms import (
    Flip,
    Invert,
    PaddedCrop,
    PermuteColors,
    RandomErasing,
    RandomResizedCrop,
    ResizeAndCrop,
    Shift,
)


def test_nothing_but_the_size():
    assert Augmentation().transforms(7, 5) == [ResizeAndCrop(7, 5)]


def test_everything_in_its_order():
    augmentation = Augmentation(
        shift=1,
        pad_crop=2,
        resized_crop=True,
        flip=True,
        randaugment=3,
        magnitude=4.0,
        permute_colors=True,
        invert=True,
        erase=0.5,
    )
    assert augmentation.transforms(7, 5) == [
        RandomResizedCrop(7, 5),
        Shift(1),
        PaddedCrop(2),
        Flip(),
        RandAugment(3, 4.0),
        PermuteColors(),
        Invert(),
        RandomErasing(0.5),
    ]


@pytest.mark.parametrize("kind", [BOXES, MASKS, VIDEOS])
def test_randaugment_is_for_labelled_images(kind):
    with pytest.raises(InputError, match=f"randaugment moves pixels and nothing .* expected 0 for {kind.holds}, got 2"):
        Augmentation(randaugment=2).transforms(7, 5, kind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": -1}, "shift must be at least 0, got -1"),
        ({"pad_crop": -2}, "pad_crop must be at least 0, got -2"),
        ({"randaugment": -3}, "randaugment must be at least 0, got -3"),
        ({"magnitude": 10.5}, r"magnitude must be in \[0, 10\], got 10.5"),
        ({"erase": 1.5}, r"erase must be a probability in \[0, 1\], got 1.5"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**arguments)
