"""Detection, segmentation, generation and video as experiments, on a few embedded records."""

import io
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import attn_flax
from attn_flax import runs
from attn_flax.checks import InputError
from attn_flax.data.embedded import scenes, videos
from attn_flax.tasks import gan
from attn_flax.training import Checkpoints
from experiments import detection, evaluate, generation, predict, segmentation, video
from tests.pictures import write_image_folder

DETR = ["width=16", "num_heads=2", "encoder_layers=1", "num_queries=8", *detection.ADDITIONS]
EXPERIMENTS = {
    "detection": (detection, ["--model.arguments", *DETR]),
    "segmentation": (segmentation, ["--model.arguments", "widths=(4,8,8)", "depths=(1,1,1)", "cell=2"]),
    "video": (video, ["--data.frames", "3", "--model.arguments", "embed_dim=8", "num_heads=2", "depth=1"]),
    "gan": (
        generation,
        ["--model.arguments", "generator_features=(8,8)", "discriminator_features=(8,)", "latent_features=4"],
    ),
    "vae": (generation, ["--model.kind", "vae", "--model.arguments", "features=(8,)", "latent_features=4"]),
}
PICTURES = {
    "detection": {"attention_maps.png", "boxes.png"},
    "segmentation": {"attention_maps.png", "masks.png", "confusion_matrix.png"},
    "video": {"confusion_matrix_digit.png", "confusion_matrix_direction.png", *(f"strip_{i}.png" for i in range(3))},
    "gan": {"attention_maps.png", "samples.png"},
    "vae": {"attention_maps.png", "interpolations.png", "reconstructions.png", "samples.png"},
}
EVERY = 2


@pytest.fixture(scope="module")
def few_records(tmp_path_factory):
    """A folder of embedded sets with few records, and one of a few labelled images."""
    counts = {"train": 16, "validation": 8, "test": 12}
    images = write_image_folder(tmp_path_factory.mktemp("images"), classes=("blue", "red"), count=18, size=(8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "COUNTS", counts)
        patch.setattr(videos, "COUNTS", counts)
        yield tmp_path_factory.mktemp("sets"), images


@pytest.fixture(scope="module")
def trained(few_records, tmp_path_factory):
    """Each task's run folder and result, trained when it is first asked for."""
    done = {}

    def run_of(task):
        if task not in done:
            path = tmp_path_factory.mktemp(task) / "run"
            done[task] = path, conducted(task, few_records, path)
        return done[task]

    return run_of


def conducted(task, few_records, path, *options):
    experiment, arguments = EXPERIMENTS[task]
    sets, images = few_records
    data = ["--data.dir", str(sets)]
    if experiment is generation:
        data = ["--data.folder", str(images), "--judge-epochs", "1"]
    few = ["--batch-size", "8", "--epochs", "3", "--checkpoint.every-steps", str(EVERY), "--checkpoint.keep", "9"]
    chosen_by = {"chosen_by": "--model.kind"} if experiment is generation else {}
    config = runs.parse(experiment.PRESETS, ["--run", str(path), *data, *few, *arguments, *options], **chosen_by)
    return experiment.main(config, quiet())


def quiet():
    return Console(file=io.StringIO(), width=200)


def shows_something(picture):
    return np.asarray(Image.open(picture).convert("L")).std() > 5


def curve(path):
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


@pytest.mark.full
@pytest.mark.parametrize("task", EXPERIMENTS)
def test_a_resumed_run_is_the_same_to_the_bit(few_records, trained, tmp_path, task):
    straight, result = trained(task)
    resumed = tmp_path / "run"
    shutil.copytree(straight, resumed)
    (resumed / "result.json").unlink()
    for step in Checkpoints(resumed / "checkpoints", read_only=True).steps:
        if step > EVERY:
            shutil.rmtree(resumed / "checkpoints" / str(step))
    assert Checkpoints(resumed / "checkpoints", read_only=True).steps == [EVERY]
    again = conducted(task, few_records, resumed, "--resume")
    assert again["test"] == result["test"]
    assert curve(resumed) == curve(straight)
    (_, expected), (_, leaves) = (
        Checkpoints(path / "checkpoints", read_only=True).read() for path in (straight, resumed)
    )
    assert expected.keys() == leaves.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaves[name], leaf)


@pytest.mark.full
@pytest.mark.parametrize("task", EXPERIMENTS)
def test_a_run_is_evaluated_anew_and_leaves_pictures(trained, task):
    path, result = trained(task)
    assert result == json.loads((path / "result.json").read_text())
    again = evaluate.main(evaluate.Config(run=path, batch_size=8), quiet())
    assert {name: again[name] for name in result["test"]} == pytest.approx(result["test"], rel=1e-3, abs=1e-4)
    assert {picture.name for picture in path.glob("*.png")} == {"learning_curves.png"} | PICTURES[task]
    for picture in path.glob("*.png"):
        assert shows_something(picture)


@pytest.mark.full
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_run_predicts_images_of_its_user(trained, tmp_path, task):
    path, _ = trained(task)
    photograph = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(photograph).save(tmp_path / "mine.png")
    config = predict.Config(run=path, names=(str(tmp_path / "mine.png"),), out=tmp_path / "out")
    (prediction,) = predict.main(config, quiet())
    assert shows_something(prediction["picture"])
    if task == "segmentation":
        assert sum(share for _, share in prediction["classes"]) == pytest.approx(1)
    else:
        assert all(len(one["box"]) == 4 for one in prediction["objects"])


@pytest.mark.full
@pytest.mark.parametrize("task", ["gan", "vae"])
def test_a_run_makes_images(trained, tmp_path, task):
    path, result = trained(task)
    predictions = predict.main(predict.Config(run=path, out=tmp_path / "out"), quiet())
    assert predictions
    assert all(shows_something(prediction["picture"]) for prediction in predictions)
    test = result["test"]
    if task == "gan":
        judge = json.loads((path / "judge" / "result.json").read_text())
        assert test["judge_accuracy"] == pytest.approx(judge["test"]["accuracy"])
        images = gan.sample(attn_flax.load_run(path), jax.random.key(0), jnp.array([0, 1]))
        assert images.shape == (2, 8, 8, 1)
    else:
        assert test["bits_per_dim"] == pytest.approx(test["distortion"] + test["rate"])


def test_detection_asks_for_pycocotools_before_it_trains(few_records, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match="needs pycocotools: pip install"):
        conducted("detection", few_records, tmp_path / "run")
    assert not (tmp_path / "run").exists()
