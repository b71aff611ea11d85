"""What is done to training images, as a configuration."""

import dataclasses

from grain.transforms import Map, RandomMap

from attn_flax.checks import check
from attn_flax.data.kinds import LABELLED_IMAGES, Kind, LabelledImages
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


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; by default none. Boxes, masks and all frames of a video move along.

    Raises:
        InputError: a value is out of its range.
    """

    shift: int = 0
    """Move images by up to so many pixels each way, zeros coming in: the padded random crop of residual networks."""
    pad_crop: int = 0
    """The same with mirrored borders coming in."""
    resized_crop: bool = False
    """Cut a random part out and resize it, instead of resizing and cropping the centre."""
    flip: bool = False
    """Mirror every other image, left to right: not where classes tell left from right."""
    randaugment: int = 0
    """Apply so many operations of RandAugment; for labelled images only."""
    magnitude: float = 9.0
    """The strength of RandAugment's operations, 0 to 10."""
    permute_colors: bool = False
    """Put the colour channels into a random order."""
    invert: bool = False
    """Make a negative of every other image."""
    erase: float = 0.0
    """The probability to fill a rectangle with noise."""

    def __post_init__(self):
        for name in ("shift", "pad_crop", "randaugment"):
            check(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}.")
        check(0 <= self.magnitude <= 10, f"magnitude must be in [0, 10], got {self.magnitude}.")
        check(0 <= self.erase <= 1, f"erase must be a probability in [0, 1], got {self.erase}.")

    def transforms(self, height: int, width: int, kind: Kind = LABELLED_IMAGES) -> list[Map | RandomMap]:
        """The transforms, in their order, that make pictures of this size.

        Args:
            height: of the pictures.
            width: of the pictures.
            kind: of the records.

        Raises:
            InputError: RandAugment for another kind than labelled images, as it moves nothing along with the pixels.

        >>> Augmentation(shift=1).transforms(8, 8)
        [ResizeAndCrop(height=8, width=8), Shift(pixels=1)]
        """
        check(
            not self.randaugment or isinstance(kind, LabelledImages),
            f"randaugment moves pixels and nothing along with them: expected 0 for {kind.holds}, "
            f"got {self.randaugment}.",
        )
        steps = [RandomResizedCrop(height, width) if self.resized_crop else ResizeAndCrop(height, width)]
        if self.shift:
            steps.append(Shift(self.shift))
        if self.pad_crop:
            steps.append(PaddedCrop(self.pad_crop))
        if self.flip:
            steps.append(Flip())
        if self.randaugment:
            steps.append(RandAugment(self.randaugment, self.magnitude))
        if self.permute_colors:
            steps.append(PermuteColors())
        if self.invert:
            steps.append(Invert())
        if self.erase:
            steps.append(RandomErasing(self.erase))
        return steps
