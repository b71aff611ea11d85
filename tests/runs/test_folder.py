"""The run folder."""

import importlib.metadata
import json
from pathlib import Path

import jax
import pytest

from attn_flax import runs
from attn_flax.checks import InputError


def test_no_run_gets_the_folder_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [runs.RunFolder.create(None, name="digits") for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(folder.path.is_dir() and folder.path.parent == Path("runs") for folder in folders)


def test_a_taken_path_is_refused_and_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(InputError, match="exists already"):
        runs.RunFolder.create(tmp_path, name="digits")
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made: Not a directory"):
        runs.RunFolder.create(tmp_path / "file" / "run", name="digits")


def test_configurations_are_written_as_json(tmp_path):
    folder = runs.RunFolder.create(tmp_path / "run", name="digits")
    folder.write_json("config.json", runs.DataConfig(dir=Path("sets"), size=(7, 5)))
    written = json.loads((folder.path / "config.json").read_text())
    assert (written["name"], written["dir"], written["size"]) == ("digits", "sets", [7, 5])
    assert written["augment"]["flip"] is False


def test_the_environment_is_that_of_this_process():
    environment = runs.environment()
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["optax"] == importlib.metadata.version("optax")
    assert environment["device"]["platform"] == "cpu"
    assert environment["device"]["count"] == jax.device_count()
