"""Labelled images, boxes, masks and videos: sets of TensorFlow Datasets and image folders, as Grain pipelines."""

from attn_flax.data.augmentation import Augmentation
from attn_flax.data.bad_records import BadRecords
from attn_flax.data.catalogue import find_builder
from attn_flax.data.clips import read_clip
from attn_flax.data.dataset import Dataset, load_dataset
from attn_flax.data.errors import (
    CorruptRecordError,
    DatasetNotPreparedError,
    EmptySplitError,
    FolderError,
    UnsupportedDatasetError,
)
from attn_flax.data.images import IMAGE_SUFFIXES, find_images, in_pixels_of_file, read_images
from attn_flax.data.kinds import BOXES, LABELLED_IMAGES, MASKS, VIDEOS, Kind
from attn_flax.data.pipeline import evaluation_batches, train_batches
from attn_flax.data.statistics import channel_statistics

__all__ = [
    "BOXES",
    "IMAGE_SUFFIXES",
    "LABELLED_IMAGES",
    "MASKS",
    "VIDEOS",
    "Augmentation",
    "BadRecords",
    "CorruptRecordError",
    "Dataset",
    "DatasetNotPreparedError",
    "EmptySplitError",
    "FolderError",
    "Kind",
    "UnsupportedDatasetError",
    "channel_statistics",
    "evaluation_batches",
    "find_builder",
    "find_images",
    "in_pixels_of_file",
    "load_dataset",
    "read_clip",
    "read_images",
    "train_batches",
]
