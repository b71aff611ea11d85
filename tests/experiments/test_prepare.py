"""The command that prepares data sets."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.data import DatasetNotPreparedError, load_dataset
from attn_flax.data.kinds import Videos
from experiments import prepare
from experiments.prepare import Config, describe_videos_as_images, main, parse
from tests.data.annotated import encode, write_set


class Remote(tfds.core.GeneratorBasedBuilder):
    """Ten grey images, if they can be had."""

    name = "remote"
    VERSION = tfds.core.Version("1.0.0")
    reachable = True

    def _info(self):
        features = {"image": tfds.features.Image(shape=(3, 3, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        if not self.reachable:
            raise ConnectionError("no route to host")
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(10):
            file = io.BytesIO()
            Image.fromarray(np.full((3, 3), index, np.uint8)).save(file, "png")
            yield index, {"image": file.getvalue(), "label": index % 2}


@pytest.fixture
def console():
    return Console(file=io.StringIO())


def test_digits_need_nothing(tmp_path, console):
    assert main(Config("digits", tmp_path), console) == tmp_path / "digits" / "1.0.0"
    assert console.file.getvalue() == f"digits is in {tmp_path}/digits/1.0.0\n"
    assert len(load_dataset("digits", data_dir=tmp_path).test) == 360


def test_a_set_of_the_catalogue(tmp_path, console, monkeypatch):
    monkeypatch.setattr(prepare, "_require_tensorflow", lambda name: None)
    main(Config("remote", tmp_path), console)
    dataset = load_dataset("remote", data_dir=tmp_path, validation=0.0)
    assert (len(dataset.train), len(dataset.test)) == (8, 2)


def test_download_that_fails(tmp_path, console, monkeypatch):
    monkeypatch.setattr(prepare, "_require_tensorflow", lambda name: None)
    monkeypatch.setattr(Remote, "reachable", False)
    with pytest.raises(DatasetNotPreparedError, match="'remote' could not be prepared: no route to host"):
        main(Config("remote", tmp_path), console)


def test_without_tensorflow(tmp_path, console, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"preparing mnist needs tensorflow[^$]*pip install 'attn_flax\[prepare\]'"):
        main(Config("mnist", tmp_path), console)


class Film(tfds.features.Video):
    """TFDS's videos, whose constructor needs tensorflow, as they are where it is installed."""

    def __init__(self, shape):
        super(tfds.features.Video, self).__init__(tfds.features.Image(shape=shape[1:]), length=shape[0])

    to_json_content = tfds.features.Sequence.to_json_content


@pytest.mark.parametrize("length", [None, 3])
def test_videos_become_sequences_of_images(tmp_path, length):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (10, 3, 5, 4, 1), np.uint8)
    features = {"video": Film((length, 5, 4, 1)), "label": tfds.features.ClassLabel(names=["still", "wild"])}
    examples = [{"video": [io.BytesIO(encode(f)) for f in video], "label": i % 2} for i, video in enumerate(frames)]
    builder = write_set(tmp_path, "cinema", features, {"train": examples})
    description = Path(builder.data_dir) / "features.json"
    assert "test_prepare.Film" in description.read_text()
    describe_videos_as_images(builder.info.features, description.parent)
    assert "test_prepare.Film" not in description.read_text()
    dataset = load_dataset("cinema", kind=Videos(frames=3), data_dir=tmp_path, validation=0.0)
    assert dataset.labellings == {"label": ("still", "wild")}
    for number, index in enumerate(dataset.train.indices):
        assert np.array_equal(dataset.train[number]["frames"], frames[index])
        assert dataset.train[number]["labels"].tolist() == [index % 2]


def test_videos_need_tensorflow(tmp_path, console, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="preparing ucf101 needs tensorflow"):
        main(Config("ucf101", tmp_path), console)


def test_unknown_name(tmp_path, console):
    with pytest.raises(UnknownNameError, match=r"unknown data set 'mnits': did you mean .*'mnist'"):
        main(Config("mnits", tmp_path), console)


def test_command_line(tmp_path):
    assert parse(["cifar10", "--dir", str(tmp_path)]) == Config("cifar10", tmp_path)
    assert parse(["cmaterdb/bangla"]) == Config("cmaterdb/bangla")
