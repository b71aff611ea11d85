"""Making images, on small real files: what a run leaves behind, and what it refuses."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import attn_flax
from attn_flax import runs
from attn_flax.checks import InputError
from attn_flax.tasks import gan
from experiments import evaluate, generation, predict
from tests.pictures import write_image_folder

CLASSES = ("blue", "green", "red")
NETWORKS = {
    "gan": ["generator_features=(8,8)", "discriminator_features=(8,)", "latent_features=4"],
    "vae": ["features=(8,)", "latent_features=4"],
}
PICTURES = {
    "gan": {"attention_maps.png", "learning_curves.png", "samples.png"},
    "vae": {"attention_maps.png", "interpolations.png", "learning_curves.png", "reconstructions.png", "samples.png"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), classes=CLASSES, count=24, size=(4, 4))


def configured(kind, folder, run, *arguments):
    few = ["--data.folder", str(folder), "--run", str(run), "--epochs", "1", "--judge-epochs", "1", "--batch-size", "8"]
    options = ["--model.kind", kind, "--data.channels", "3", "--model.arguments", *NETWORKS[kind], *few, *arguments]
    return runs.parse(generation.PRESETS, options, chosen_by="--model.kind")


def quiet():
    return Console(file=io.StringIO(), width=200)


@pytest.mark.full
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_run_leaves_everything_behind_and_can_be_used(folder, tmp_path, kind):
    path = tmp_path / "run"
    result = generation.main(configured(kind, folder, path), quiet())
    assert result == json.loads((path / "result.json").read_text())
    assert {file.name for file in path.glob("*.png")} == PICTURES[kind]
    for name in PICTURES[kind]:
        assert np.asarray(Image.open(path / name).convert("L")).std() > 5
    again = evaluate.main(evaluate.Config(run=path, batch_size=8), quiet())
    assert {name: again[name] for name in result["test"]} == pytest.approx(result["test"], rel=1e-3, abs=1e-3)
    model = attn_flax.load_run(path)
    if kind == "gan":
        judge = json.loads((path / "judge" / "result.json").read_text())
        assert result["test"]["judge_accuracy"] == pytest.approx(judge["test"]["accuracy"])
        assert gan.sample(model, jax.random.key(0), jnp.array([0, 2])).shape == (2, 4, 4, 3)
    else:
        assert result["test"]["bits_per_dim"] == pytest.approx(result["test"]["distortion"] + result["test"]["rate"])
    predictions = predict.main(predict.Config(run=path), quiet())
    for prediction in predictions:
        assert np.asarray(Image.open(prediction["picture"]).convert("L")).std() > 5


def test_the_kind_chooses_the_defaults():
    for kind, config in generation.PRESETS.items():
        assert runs.parse(generation.PRESETS, ["--model.kind", kind], chosen_by="--model.kind") == config
    assert runs.parse(generation.PRESETS, [], chosen_by="--model.kind") == generation.PRESETS["gan"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("gan", ["--judge-epochs", "0"], "judge_epochs must be at least 1, got 0"),
        ("gan", ["--samples", "0"], "samples must be at least 1, got 0"),
        ("gan", ["--data.size", "5", "4"], "multiples of 2"),
        ("gan", ["--discriminator.ema-decay", "0.9"], "discriminator's ema_decay must be 0, got 0.9"),
        ("vae", ["--levels", "1"], "levels must be at least 2, got 1"),
        ("vae", ["--beta", "-1"], "beta must not be negative, got -1"),
    ],
)
def test_bad_options_are_refused_before_a_folder_is_made(folder, tmp_path, kind, arguments, message):
    with pytest.raises(InputError, match=message):
        generation.main(configured(kind, folder, tmp_path / "run", *arguments), quiet())
    assert not (tmp_path / "run").exists()
