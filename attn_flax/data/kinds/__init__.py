"""The kinds of records: what a data set holds beside its pictures."""

from attn_flax.data.kinds.boxes import Boxes
from attn_flax.data.kinds.kind import Kind
from attn_flax.data.kinds.labelled_images import LabelledImages
from attn_flax.data.kinds.masks import Masks
from attn_flax.data.kinds.videos import Videos

LABELLED_IMAGES = LabelledImages()
"""Images of one class each, for classification and generation."""
BOXES = Boxes()
"""Images with boxes around what is in them, for detection."""
MASKS = Masks()
"""Images with a class for each pixel, for segmentation."""
VIDEOS = Videos()
"""Videos of one class in each of one or more labellings."""

__all__ = ["BOXES", "LABELLED_IMAGES", "MASKS", "VIDEOS", "Boxes", "Kind", "LabelledImages", "Masks", "Videos"]
