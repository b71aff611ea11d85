"""Runs that start from a pretrained network."""

import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from safetensors.numpy import save_file

from attn_flax import interop, runs
from attn_flax.checks import InputError
from attn_flax.models import create_model
from experiments.classification import PRESETS, main
from tests.pictures import write_image_folder

NAME = "vit_tiny_patch16_224"
SIZES = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4}
PREPARED = {
    "input_size": [3, 8, 8],
    "mean": [0.5, 0.25, 0.125],
    "std": [0.2, 0.3, 0.4],
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}


@pytest.fixture
def pretrained(tmp_path):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    network = create_model(NAME, **SIZES, image_size=8, num_classes=5, rngs=nnx.Rngs(0))
    save_file(interop.to_timm(network), folder / "model.safetensors")
    content = {"architecture": NAME, "num_classes": 5, "pretrained_cfg": PREPARED}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def run(*arguments):
    out = io.StringIO()
    config = runs.parse(PRESETS, arguments)
    return main(config, Console(file=out, width=300)), out.getvalue()


def begin(tmp_path, pretrained, *arguments):
    images = tmp_path / "images"
    if not images.exists():
        write_image_folder(images, classes=("blue", "red"), count=12, size=(9, 7))
    return run(
        "--data.folder", str(images), "--run", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8",
        "--model.name", NAME, "--model.attention", "default", "--model.pretrained", str(pretrained),
        "--model.arguments", *(f"{name}={size}" for name, size in SIZES.items()), *arguments,
    )  # fmt: skip


def test_a_run_starts_from_it_and_needs_it_no_more(tmp_path, pretrained):
    _, shown = begin(tmp_path, pretrained)
    assert f"{pretrained} is for 5 classes: the head for 2 is new and untrained." in shown
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["model"]["pretrained"] == str(pretrained)
    assert [written["data"][name] for name in ("size", "mean", "std")] == [[8, 8], PREPARED["mean"], PREPARED["std"]]
    shutil.rmtree(pretrained)
    model = runs.load_run(tmp_path / "run")
    assert np.isfinite(np.asarray(model(jnp.zeros((1, 8, 8, 3))))).all()
    result, _ = run("--run", str(tmp_path / "run"), "--resume", "--epochs", "2")
    assert result["epochs"] == 2


@pytest.mark.full
def test_what_is_given_of_the_images_is_kept(tmp_path, pretrained):
    begin(tmp_path, pretrained, "--data.size", "12", "8", "--data.mean", "0.1", "0.2", "0.3")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [written["data"][name] for name in ("size", "mean", "std")] == [[12, 8], [0.1, 0.2, 0.3], PREPARED["std"]]


def test_a_path_that_is_not_there_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*numbers\.safetensors"):
        begin(tmp_path, tmp_path / "numbers.safetensors")
    assert not (tmp_path / "run").exists()
