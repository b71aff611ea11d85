"""Labelled images: data sets of TensorFlow Datasets and image folders, as Grain pipelines of NumPy batches."""

from attn_flax.data.augmentation import Augmentation
from attn_flax.data.bad_records import BadRecords
from attn_flax.data.catalogue import find_builder
from attn_flax.data.dataset import Dataset, load_dataset
from attn_flax.data.errors import (
    CorruptRecordError,
    DatasetNotPreparedError,
    EmptySplitError,
    FolderError,
    UnsupportedDatasetError,
)
from attn_flax.data.images import IMAGE_SUFFIXES, read_images
from attn_flax.data.pipeline import evaluation_batches, train_batches
from attn_flax.data.statistics import channel_statistics

__all__ = [
    "IMAGE_SUFFIXES",
    "Augmentation",
    "BadRecords",
    "CorruptRecordError",
    "Dataset",
    "DatasetNotPreparedError",
    "EmptySplitError",
    "FolderError",
    "UnsupportedDatasetError",
    "channel_statistics",
    "evaluation_batches",
    "find_builder",
    "load_dataset",
    "read_images",
    "train_batches",
]
