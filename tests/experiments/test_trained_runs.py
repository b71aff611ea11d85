"""A run in use: loaded in one line, evaluated anew, asked about images."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import attn_flax
from attn_flax import data, interop, runs
from attn_flax.checks import InputError
from attn_flax.training import ArchitectureError, Checkpoints
from experiments import classification, evaluate, export, predict
from tests.pictures import write_image_folder

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), classes=CLASSES, count=24, size=(9, 7))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder of a run, and its result."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["--data.folder", str(folder), "--run", str(path), "--epochs", "2", "--batch-size", "8"]
    config = runs.parse(classification.PRESETS, [*options, "--optimizer.ema-decay", "0.5"])
    return path, classification.main(config, Console(quiet=True))


def evaluated(path, **options):
    return evaluate.main(evaluate.Config(run=path, batch_size=8, **options), Console(quiet=True))


def predicted(path, *images, **options):
    console = Console(file=io.StringIO(), width=200)
    names = tuple(map(str, images))
    return predict.main(predict.Config(run=path, names=names, **options), console), console.file.getvalue()


def test_evaluation_gives_the_result_of_the_run(trained, tmp_path):
    path, result = trained
    again = evaluated(path, out=tmp_path / "out.json")
    assert {name: again[name] for name in ("loss", "accuracy")} == pytest.approx(result["test"], abs=1e-6)
    assert (again["step"], again["examples"], again["split"]) == (result["step"], 15, "test")
    assert json.loads((tmp_path / "out.json").read_text()) == again


def test_any_split_and_other_data_of_the_same_classes(trained, tmp_path):
    path, _ = trained
    assert evaluated(path, split="train")["examples"] + evaluated(path, split="validation")["examples"] == 57
    other = write_image_folder(tmp_path / "other", classes=CLASSES, count=10, size=(18, 14))
    result = evaluated(path, data=evaluate.OtherData(folder=other))
    assert (result["data"], result["examples"], result["accuracy"]) == ("other", 6, 1.0)


def test_other_classes_are_refused(trained, tmp_path):
    other = write_image_folder(tmp_path / "other", classes=("blue", "red"), count=10, size=(9, 7))
    with pytest.raises(InputError, match="other classes than the run: expected blue, green, red, got blue, red"):
        evaluated(trained[0], data=evaluate.OtherData(folder=other))


@pytest.mark.full
def test_a_run_teaches_another(trained, folder, tmp_path):
    teacher, student = shutil.copytree(trained[0], tmp_path / "teacher"), tmp_path / "student"
    options = ["--data.folder", str(folder), "--run", str(student), "--epochs", "1", "--batch-size", "8"]
    config = runs.parse(classification.PRESETS, [*options, "--teacher", str(teacher)])
    result = classification.main(config, Console(quiet=True))
    assert result["test"]["accuracy"] == 1.0
    assert "agreement" in runs.RunFolder(student).read_metrics()[0]
    shutil.rmtree(teacher)
    assert evaluated(student)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.size", "7", "9"], r"otherwise: expected size \(7, 9\), got \(9, 7\); --data\.size sets it"),
        (["--data.channels", "1"], "otherwise: expected channels 1, got 3"),
        (["--data.mean", "0.5", "0.5", "0.5"], r"otherwise: expected mean \(0\.5, 0\.5, 0\.5\), got"),
        (["--data.std", "0.5", "0.5", "0.5"], r"otherwise: expected std \(0\.5, 0\.5, 0\.5\), got"),
    ],
)
def test_a_teacher_of_images_prepared_in_another_way_is_refused(trained, folder, tmp_path, arguments, message):
    options = ["--data.folder", str(folder), "--run", str(tmp_path / "run"), "--batch-size", "8", *arguments]
    with pytest.raises(InputError, match=message):
        classification.main(runs.parse(classification.PRESETS, [*options, "--teacher", str(trained[0])]))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_refused(trained, tmp_path):
    other = write_image_folder(tmp_path / "other", classes=("blue", "red"), count=10, size=(9, 7))
    config = runs.parse(classification.PRESETS, ["--data.folder", str(other), "--teacher", str(trained[0])])
    with pytest.raises(InputError, match="other classes than the data: expected blue, red, got blue, green, red"):
        classification.main(config)


def test_a_run_of_another_task_is_no_teacher(trained, folder, tmp_path):
    shutil.copytree(trained[0], tmp_path / "teacher")
    config = tmp_path / "teacher" / "config.json"
    config.write_text(config.read_text().replace('"classification"', '"segmentation"'))
    options = ["--data.folder", str(folder), "--teacher", str(tmp_path / "teacher")]
    with pytest.raises(InputError, match="expected a run of classification, got segmentation"):
        classification.main(runs.parse(classification.PRESETS, options))


def test_a_run_is_loaded_in_one_line(trained, folder):
    path, _ = trained
    model = attn_flax.load_run(path)
    _, leaves = Checkpoints(path / "checkpoints").read(best=True)
    np.testing.assert_array_equal(model.conv1.kernel[...], leaves["ema.0.conv1.kernel"])
    assert np.abs(leaves["ema.0.conv1.kernel"] - leaves["params.conv1.kernel"]).max() > 0


def test_predictions_are_those_of_the_network(trained, folder, tmp_path):
    path, _ = trained
    files = [folder / "red" / "3.png", folder / "blue" / "1.png"]
    predictions, shown = predicted(path, *files, out=tmp_path / "out")
    config = json.loads((path / "config.json").read_text())["data"]
    model = attn_flax.load_run(path)
    for file, prediction in zip(files, predictions, strict=True):
        pixels = np.asarray(Image.open(file).convert("RGB")) / 255
        image = (pixels - config["mean"]) / config["std"]
        logits = model(jnp.asarray(image[None], jnp.float32))[0]
        probabilities = np.asarray(jax.nn.softmax(logits))
        order = np.argsort(-probabilities)
        assert [name for name, _ in prediction["classes"]] == [CLASSES[label] for label in order]
        np.testing.assert_allclose([p for _, p in prediction["classes"]], probabilities[order], atol=1e-5)
        assert f"{file}  {file.parent.name} " in shown
        assert np.asarray(Image.open(prediction["picture"]).convert("L")).std() > 10


def test_images_of_any_size_and_mode_in_folders_and_patterns(trained, tmp_path):
    for number, (mode, size) in enumerate([("RGBA", (30, 20)), ("L", (7, 9)), ("P", (64, 64)), ("RGB", (5, 300))]):
        Image.new("RGB", size, (200, 30, 30)).convert(mode).save(tmp_path / f"{number}-{mode}.png")
    predictions, _ = predicted(trained[0], tmp_path, tmp_path / "*-L.png", out=tmp_path / "out")
    assert [prediction["classes"][0][0] for prediction in predictions][::2] == ["red", "red"]
    assert len(predictions) == 4
    assert len({prediction["picture"] for prediction in predictions}) == 4


@pytest.mark.parametrize("name", ["nothing.png", "*.nothing", "."])
def test_a_name_of_no_image_is_refused(trained, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="stands for no image"):
        predicted(trained[0].absolute(), name)


def test_a_damaged_image_is_named(trained, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(data.CorruptRecordError, match=r"broken\.png cannot be read"):
        predicted(trained[0], tmp_path / "broken.png")


def test_what_is_no_run_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match=r"is no folder of a run: config\.json cannot be read"):
        attn_flax.load_run(tmp_path)
    shutil.copytree(trained[0], tmp_path / "without", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        attn_flax.load_run(tmp_path / "without")


def test_another_network_is_refused_by_path_and_shape(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["model"]["attention"] = "none"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError, match=r"attention\.\S+: expected nothing, got float32"):
        attn_flax.load_run(tmp_path / "other")


@pytest.mark.full
def test_it_is_exported_with_what_its_users_need(trained, tmp_path):
    path, _ = trained
    file = tmp_path / "network.stablehlo"
    console = Console(file=io.StringIO(), width=200)
    description = export.main(export.Config(run=path, out=file), console)
    assert json.loads((tmp_path / "network.stablehlo.json").read_text()) == json.loads(json.dumps(description))
    assert (description["class_names"], description["shape"]) == (CLASSES, (9, 7, 3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 7, 3)), jnp.float32)
    np.testing.assert_allclose(
        interop.from_stablehlo(file.read_bytes())(x), attn_flax.load_run(path)(x), rtol=1e-5, atol=1e-5
    )
    assert "the network's outputs to" in console.file.getvalue()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("network.pb", r"--out must end with one of .stablehlo, .onnx, got 'network.pb'"),
        ("network.onnx", "ONNX needs "),
    ],
)
def test_what_cannot_be_exported(trained, tmp_path, file, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        export.main(export.Config(run=trained[0], out=tmp_path / file), Console(quiet=True))
    assert not list(tmp_path.iterdir())
