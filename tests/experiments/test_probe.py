"""Probes of features: against votes by hand and known answers, of runs and of networks, and what is refused."""

import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import runs
from attn_flax.checks import InputError, UnknownNameError
from attn_flax.models import create_model
from experiments import classification, probe
from experiments.probe import Config, ProbeData, Split, main
from tests.pictures import write_image_folder

SMALL = runs.ModelConfig(arguments=("widths=(4,6)", "depths=(1,1)", "patch=2"))


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), classes=("blue", "red"), count=24, size=(9, 7))


def split(features, labels):
    return Split(np.array(features, np.float32), np.array(labels))


def test_votes_are_those_of_the_equation():
    rng = np.random.default_rng(0)
    train, queries, k = split(rng.normal(size=(11, 5)), rng.integers(0, 3, 11)), rng.normal(size=(4, 5)), 4
    expected = np.zeros((4, 3))
    for i, query in enumerate(queries):
        cosines = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in train.features]
        for j in sorted(range(11), key=lambda j: -cosines[j])[:k]:
            expected[i, train.labels[j]] += np.exp(cosines[j] / 0.07)
    votes = probe.neighbor_votes(train, queries.astype(np.float32), k, 3)
    np.testing.assert_allclose(votes, expected, rtol=1e-4)


def test_votes_of_many_queries_are_those_of_each(monkeypatch):
    monkeypatch.setattr(probe, "QUERIES_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    train, queries = split(rng.normal(size=(9, 2)), rng.integers(0, 3, 9)), rng.normal(size=(7, 2)).astype(np.float32)
    each = [probe.neighbor_votes(train, query[None], 2, 3)[0] for query in queries]
    np.testing.assert_allclose(probe.neighbor_votes(train, queries, 2, 3), each, rtol=1e-5)


def test_k_and_c_are_those_that_are_best_on_the_validation_images():
    """One outlier beside each query: one neighbour is wrong, five are right; the reverse among the test images."""
    angles, labels = [0, 1, 2, 3, 4, 5, 90, 91, 92, 93, 94, 95], [1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    circle = lambda degrees: np.stack([f(np.deg2rad(degrees)) for f in (np.cos, np.sin)], -1)  # noqa: E731
    splits = {"train": split(circle(angles), labels), "validation": split(circle([0, 90]), [0, 1])}
    splits["test"] = split(circle([0, 90, 3]), [0, 1, 0])
    assert probe.nearest_neighbors(splits, None, 2) == {"right": 3, "k": 5}
    assert probe.nearest_neighbors(splits, 1, 2) == {"right": 1, "k": 1}
    chosen = probe.linear_probe(splits, None, 1000)
    assert chosen["right"] == 3
    assert chosen["converged"]
    assert probe.linear_probe(splits, 0.5, 1)["converged"] is False


def test_features_are_those_before_the_head_each_image_once(folder):
    data = runs.build_data(runs.DataConfig(folder=folder), batch_size=5)
    model = create_model("attention_net", num_classes=2, rngs=nnx.Rngs(0))
    features, labels = probe.extract(model, data, "validation")
    assert len(labels) == len(data.dataset.validation) % 5 + len(data.dataset.validation) // 5 * 5
    batch = next(iter(data.evaluation_batches("validation")))
    np.testing.assert_allclose(model.head(features[:4]), model(jnp.asarray(batch["image"][:4])), rtol=1e-4, atol=1e-5)
    assert list(labels) == [record["label"] for record in map(data.dataset.validation.__getitem__, range(len(labels)))]


@pytest.mark.full
def test_a_run_and_its_untrained_network(folder, tmp_path, console):
    options = ["--data.folder", str(folder), "--epochs", "1", "--batch-size", "8", "--data.validation", "0"]
    config = runs.parse(classification.PRESETS, ["--run", str(tmp_path / "run"), *options])
    classification.main(config, Console(file=io.StringIO()))
    names = (str(tmp_path / "run"),)
    trained, untrained = main(Config(names, baseline=True, k=3, out=tmp_path / "probe.json"), console)
    assert untrained["network"] == f"{names[0]}, untrained"
    assert trained["features"] == untrained["features"] == 512
    assert trained["linear"]["accuracy"] == trained["neighbors"]["accuracy"] == 1.0
    n = trained["images"]["test"]
    assert trained["linear"]["interval"] == pytest.approx([n / (n + 1.959964**2), 1.0])  # Wilson's, of n right of n
    assert sum(trained["images"].values()) == 48
    assert json.loads((tmp_path / "probe.json").read_text())["results"] == [trained, untrained]
    assert f"1.0000 ({trained['linear']['interval'][0]:.4f}–1.0000)" in console.file.getvalue()


def test_a_network_by_its_name_has_initial_parameters(folder, console):
    config = Config(("small_resnet",), model=SMALL, data=ProbeData(folder=folder, size=(8, 8)), regularization=1.0)
    (result,) = main(config, console)
    assert (result["network"], result["features"]) == ("small_resnet, untrained", 6)
    assert result["linear"]["regularization"] == 1.0
    assert result["linear"]["accuracy"] > 0.9
    assert (result["neighbors"]["k"], result["data"]) == (20, folder.name)


def test_options_of_the_command_line():
    config = tyro.cli(Config, args=["runs/a", "resnet18", "--k", "None", "--data.name", "digits", "--baseline"])
    assert (config.networks, config.k, config.data.name, config.baseline) == (
        ("runs/a", "resnet18"),
        None,
        "digits",
        True,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"networks": ("unet_small",)}, InputError, "networks that classify images, got UNet"),
        ({"networks": ("atention_net",)}, UnknownNameError, "did you mean 'attention_net'"),
        ({"networks": ()}, InputError, "expected run folders or names of networks, got none"),
        ({"k": 0}, InputError, "k must be at least 1, got 0"),
        ({"k": 1000}, InputError, r"k must be at most the number of training images, \d+, got 1000"),
        ({"regularization": 0.0}, InputError, "regularization must be positive, got 0"),
    ],
)
def test_refusals(folder, console, options, error, message):
    config = Config(("attention_net",), data=ProbeData(folder=folder, size=(8, 8)))
    with pytest.raises(error, match=message):
        main(dataclasses.replace(config, **options), console)
