"""Download a data set of TensorFlow Datasets and write it for random access, so that training needs no tensorflow.

    python -m experiments.prepare cifar10
    python -m experiments.prepare cmaterdb/bangla --dir DIR

Preparing needs tensorflow: pip install 'attn_flax[prepare]'. Training then runs with or without it: videos (ucf101,
moving_mnist) are described anew as what they are stored as, sequences of images.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
import tyro
from rich.console import Console

from attn_flax import runs
from attn_flax.checks import InputError
from attn_flax.data import DatasetNotPreparedError, find_builder


@dataclasses.dataclass(frozen=True)
class Config:
    """Download a data set of TensorFlow Datasets and write it for random access."""

    name: tyro.conf.Positional[str]
    """The set, as TFDS writes it: cifar10, cmaterdb/bangla, cifar10:3.0.2."""
    dir: Path | None = None
    """The folder of prepared sets; by default TFDS's own."""


def main(config: Config, console: Console | None = None) -> Path:
    """Prepares the set and returns its folder.

    Raises:
        UnknownNameError: there is no such set; the message lists close names.
        InputError: tensorflow is missing.
        DatasetNotPreparedError: it could not be downloaded or written.
    """
    console = console or Console()
    try:
        builder = find_builder(config.name, config.dir, file_format="array_record")
    except DatasetNotPreparedError:  # TFDS cannot even name the set
        _require_tensorflow(config.name)
        raise
    if not builder.is_prepared():
        _require_tensorflow(config.name)
        _prepare(builder)
        describe_videos_as_images(builder.info.features, Path(builder.data_dir))
    console.print(f"{config.name} is in {builder.data_dir}", highlight=False, soft_wrap=True)
    return Path(builder.data_dir)


def describe_videos_as_images(features: tfds.features.FeaturesDict, folder: Path) -> None:
    """Makes a prepared set with videos readable without tensorflow.

    TFDS stores a Video as it stores a Sequence of Images, but reads it with tensorflow alone. So only the description
    of the set is written anew.

    Args:
        features: those of the set.
        folder: where it is prepared.
    """
    videos = {key: feature for key, feature in features.items() if isinstance(feature, tfds.features.Video)}
    if videos:
        images = {key: tfds.features.Sequence(video.feature, length=video.shape[0]) for key, video in videos.items()}
        tfds.features.FeaturesDict({**features, **images}).save_config(folder)


def parse(argv: Sequence[str] | None = None) -> Config:
    """The configuration that a command line stands for."""
    return tyro.cli(Config, args=argv)


def _prepare(builder):
    try:
        builder.download_and_prepare()
    except Exception as error:  # from the network, the disk, or any of TFDS's 250 builders
        raise DatasetNotPreparedError(f"data set {builder.name!r} could not be prepared: {error}") from error


def _require_tensorflow(name):
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"preparing {name} needs tensorflow, which is not installed. Install it with\n"
            "    pip install 'attn_flax[prepare]'\n"
            "It may live in another environment: training reads prepared sets without it."
        )


if __name__ == "__main__":
    with runs.error_screen():
        main(parse())
