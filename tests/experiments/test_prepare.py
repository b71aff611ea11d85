"""The command that prepares data sets."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.data import DatasetNotPreparedError, load_dataset
from experiments import prepare
from experiments.prepare import Config, main, parse


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


def test_unknown_name(tmp_path, console):
    with pytest.raises(UnknownNameError, match=r"unknown data set 'mnits': did you mean .*'mnist'"):
        main(Config("mnits", tmp_path), console)


def test_command_line(tmp_path):
    assert parse(["cifar10", "--dir", str(tmp_path)]) == Config("cifar10", tmp_path)
    assert parse(["cmaterdb/bangla"]) == Config("cmaterdb/bangla")
