"""Making images: the options, their defaults and what is refused."""

import io

import pytest
from rich.console import Console

from attn_flax import runs
from attn_flax.checks import InputError
from experiments import generation
from tests.pictures import write_image_folder

CLASSES = ("blue", "green", "red")
NETWORKS = {
    "gan": ["generator_features=(8,8)", "discriminator_features=(8,)", "latent_features=4"],
    "vae": ["features=(8,)", "latent_features=4"],
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
