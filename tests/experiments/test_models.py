"""The table of what networks cost: its rows, its files, and what it refuses."""

import csv
import io
import json

import pytest
import tyro
from rich.console import Console

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.models.cost import describe_model
from experiments import models
from experiments.models import Config, main

SMALL = {"size": (8, 8), "batch_size": 2, "rounds": 1}


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


def test_rows_are_what_the_networks_cost(console, tmp_path):
    rows = main(Config(("resnet18", "swin_t*", "resnet?8"), size=(64, 96), out=tmp_path / "out.md"), console)
    assert [row["name"] for row in rows] == ["resnet18", "swin_tiny_patch4_window7_224"]
    cost = describe_model("resnet18", image_size=(64, 96))
    assert rows[0] == {
        "name": "resnet18",
        "image_size": (64, 96),
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "activations": cost.activations,
    }
    heading, rule, first, _ = (tmp_path / "out.md").read_text().splitlines()
    assert heading == "| network | image | parameters | multiply-adds | activations |"
    assert rule == "| --- | --- | --- | --- | --- |"
    shown = f"| resnet18 | 64×96 | 11,689,512 | {cost.multiply_adds / 1e9:.3f} G | {cost.activations / 1e6:.2f} M |"
    assert first == shown
    assert "11,689,512" in console.file.getvalue()


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.full)])
def test_networks_are_measured(console, tmp_path, training):
    out = tmp_path / "out.json"
    config = Config(("attention_net",), measure=True, training=training, out=out, **SMALL)
    (row,) = main(config, console)
    assert row["compile_seconds"] > 0
    assert row["images_per_second"] > 0
    written = json.loads(out.read_text())
    assert written["models"][0]["images_per_second"] == row["images_per_second"]
    assert written["config"]["batch_size"] == 2
    assert "jax" in written["versions"]
    assert f"{row['images_per_second']:.1f}" in console.file.getvalue()


def test_what_refuses_the_size_says_so(console, tmp_path):
    names = ("resnet18", "vit_tiny_patch16_224")
    small, refused = main(Config(names, size=(40, 40), out=tmp_path / "out.csv"), console)
    assert refused["note"] == "images must be of patches of 16×16, got 40×40."
    with (tmp_path / "out.csv").open() as file:
        written = list(csv.DictReader(file))
    assert written[0]["multiply_adds"] == str(small["multiply_adds"])
    assert written[0]["image_size"] == "40x40"
    assert written[1]["note"] == refused["note"]


def test_by_default_all_that_classify_images():
    names = models._chosen(())
    assert {"resnet50", "vit_base_patch16_224", "attention_net"} <= set(names)
    assert not {"unet", "timesformer", "gan"} & set(names)


def test_options_of_the_command_line():
    argv = ["swin*", "--size", "64", "32", "--measure", "--dtype", "bfloat16", "--out", "x.md"]
    config = tyro.cli(Config, args=argv)
    assert (config.names, config.size, config.measure, config.dtype) == (("swin*",), (64, 32), True, "bfloat16")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(("resnet_50",)), "did you mean 'resnet50'"),
        (Config(("unet",)), "'unet' is no image classifier"),
        (Config(rounds=0), "rounds must be at least 1, got 0"),
        (Config(batch_size=0), "batch_size must be at least 1, got 0"),
        (Config(training=True), "expected --measure"),
    ],
)
def test_bad_options(config, message, console):
    with pytest.raises((InputError, UnknownNameError), match=message):
        main(config, console)


def test_another_kind_of_file_is_refused(console, tmp_path):
    with pytest.raises(InputError, match=r"\.md, \.csv or \.json, got .*out\.txt"):
        main(Config(out=tmp_path / "out.txt"), console)
