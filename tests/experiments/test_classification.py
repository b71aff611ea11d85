"""The main job, on small real files: what it leaves behind, and what it refuses."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from attn_flax import data, runs
from attn_flax.checks import InputError, UnknownNameError
from experiments.classification import PRESETS, main
from tests.pictures import write_image_folder

ROOT = Path(__file__).parents[2]
PICTURES = {"attention_maps.png", "confusion_matrix.png", "learning_curves.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(
        tmp_path_factory.mktemp("images"), classes=("blue", "green", "red"), count=24, size=(9, 7)
    )


def configured(folder, run, *arguments):
    few = ["--data.folder", str(folder), "--run", str(run), "--epochs", "2", "--batch-size", "8"]
    return runs.parse(PRESETS, [*few, *arguments])


def run(config):
    out = io.StringIO()
    return main(config, Console(file=out, width=200)), out.getvalue()


@pytest.mark.parametrize("parallel", ["jit", pytest.param("pmap", marks=pytest.mark.full)])
def test_a_run_learns_and_leaves_everything_behind(folder, tmp_path, parallel):
    config = configured(folder, tmp_path / "run", "--parallel", parallel, "--optimizer.ema-decay", "0.5")
    result, shown = run(config)
    assert result["test"]["accuracy"] == 1.0
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["data"]["size"] == [9, 7]
    assert written["parallel"] == parallel
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if m["split"] == "validation"][-1] == metrics[-1]["step"]
    assert list((tmp_path / "run").glob("events.out.tfevents*"))
    kept = {int(kept.name) for kept in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {result["step"], metrics[-1]["step"]}
    for name in PICTURES:
        assert np.asarray(Image.open(tmp_path / "run" / name).convert("L")).std() > 10
    assert "epoch 2.0/2" in shown
    assert "images/s" in shown
    assert "ETA" in shown
    assert "test accuracy 1.0000" in shown


@pytest.mark.full
def test_without_validation_and_attention(folder, tmp_path):
    config = configured(folder, tmp_path / "run", "--data.validation", "0", "--model.attention", "none")
    result, shown = run(config)
    assert result["test"]["accuracy"] == 1.0
    assert f"after step {result['step']} of {result['step']}" in shown
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == PICTURES - {"attention_maps.png"}


@pytest.mark.full
def test_runs_with_equal_seeds_are_equal(folder, tmp_path):
    losses = [
        run(configured(folder, tmp_path / name, "--seed", seed, "--epochs", "1"))[0]["test"]["loss"]
        for name, seed in (("one", "1"), ("same", "1"), ("other", "2"))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_article_recipe_is_the_articles():
    config = PRESETS["article"]
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule) == (
        "adam",
        1e-3,
        "constant",
    )
    assert (config.epochs, config.label_smoothing, config.model.arguments) == (100, 0.0, ())
    assert (config.data.augment, config.data.validation) == (data.Augmentation(), 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--model.name", "atention_net"], UnknownNameError, "did you mean 'attention_net'"),
        (["--model.attention", "artcle"], UnknownNameError, "did you mean 'article'"),
        (["--optimizer.name", "adm"], UnknownNameError, "did you mean 'adam'"),
        (["--batch-size", "4"], InputError, "got batch size 4 on 8 devices"),
        (["--epochs", "0"], InputError, "epochs must be at least 1, got 0"),
        (["--seed", "-1"], InputError, "seed must be in"),
        (["--label-smoothing", "1.5"], InputError, "label_smoothing must be in"),
        (["--optimizer.accumulate", "0"], InputError, "accumulate must be at least 1, got 0"),
        (["--data.validation", "1"], InputError, "validation must be in"),
        (["--data.mean", "0.5"], InputError, "mean must have 3 values"),
    ],
)
def test_bad_options_are_refused_before_a_folder_is_made(folder, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        run(configured(folder, tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()


def test_a_set_that_is_not_prepared_names_the_command(tmp_path):
    config = dataclasses.replace(PRESETS["default"], data=runs.DataConfig(name="cifar10", dir=tmp_path))
    with pytest.raises(data.DatasetNotPreparedError, match=r"python -m experiments.prepare cifar10 --dir"):
        run(config)


def test_a_corrupt_image_is_named(tmp_path):
    folder = write_image_folder(tmp_path / "images", classes=("blue", "red"), count=12, size=(9, 7))
    for index in range(12):
        (folder / "red" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(data.CorruptRecordError, match=r"red/\d+\.png"):
        run(configured(folder, tmp_path / "run"))


def test_the_command_shows_errors_on_one_screen():
    command = [sys.executable, "-m", "experiments.classification", "--data.name", "digit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'digits'" in done.stderr
    assert len(done.stderr.splitlines()) < 24
    assert "Traceback" not in done.stderr
