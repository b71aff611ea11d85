"""Runs with frozen parts and learning rates by layer: what moves, what they leave behind, and what they refuse."""

import io

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import attn_flax
from attn_flax import runs
from attn_flax.checks import InputError, UnknownNameError
from attn_flax.training import Checkpoints, Frozen
from experiments.classification import PRESETS, main
from tests.pictures import write_image_folder

TINY = ["widths=(8,8,8,8)", "stem_widths=(8,)", "stem=cifar"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), classes=("blue", "red"), count=24, size=(8, 8))


def run(folder, path, *options, model=("resnet18", TINY)):
    name, arguments = model
    few = ["--data.folder", str(folder), "--run", str(path), "--epochs", "2", "--batch-size", "8"]
    network = ["--model.name", name, "--model.attention", "default", "--model.arguments", *arguments]
    return main(runs.parse(PRESETS, [*few, *network, *options]), Console(file=io.StringIO(), width=200))


def named(path):
    _, leaves = Checkpoints(path / "checkpoints", read_only=True).read()
    return leaves


@pytest.mark.full
def test_a_run_of_two_frozen_stages_moves_the_others_and_goes_on_to_the_bit(folder, tmp_path):
    options = ["--model.frozen", "2", "--optimizer.layer-decay", "0.5", "--optimizer.ema-decay", "0.5"]
    result = run(folder, tmp_path / "run", *options)
    config = runs.RunFolder(tmp_path / "run").read_config(runs.ModelConfig, section="model")
    data = runs.RunFolder(tmp_path / "run").read_config(runs.DataConfig, section="data")
    at_first = runs.build_model(config, data, num_classes=2, rngs=nnx.Rngs(0))
    frozen = {name: leaf for name, leaf in named(tmp_path / "run").items() if name.startswith("model_state.")}
    kept = nnx.to_pure_dict(nnx.state(at_first, (Frozen, nnx.BatchStat)))
    for path, leaf in jax.tree.leaves_with_path(kept):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        moves = name.startswith(("layer3", "layer4"))
        assert np.array_equal(frozen[f"model_state.{name}"], leaf) != moves, name
    trained = jax.tree.leaves(nnx.state(at_first, nnx.Param))
    assert result["parameters"] - result["frozen_parameters"] == sum(p.size for p in trained)
    model = attn_flax.load_run(tmp_path / "run")
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == result["parameters"]
    np.testing.assert_array_equal(model.layer1[0].conv1.kernel[...], at_first.layer1[0].conv1.kernel[...])

    run(folder, tmp_path / "half", *options, "--epochs", "1", "--checkpoint.every-steps", "3")
    again = run(folder, tmp_path / "half", "--resume", "--epochs", "2")
    assert set(named(tmp_path / "half")) == set(named(tmp_path / "run"))
    assert again["epochs"] == 2


def test_only_the_head_learns(folder, tmp_path):
    model = ("small_resnet", ["widths=(4,6)", "depths=(1,1)", "patch=2"])
    result = run(folder, tmp_path / "run", "--model.frozen", "stem", "stages", "norms", model=model)
    assert result["parameters"] - result["frozen_parameters"] == 6 * 2 + 2
    assert {name.split(".")[1] for name in named(tmp_path / "run") if name.startswith("params.")} == {"head"}


def learning(decay, name="vit_tiny_patch16_224", arguments=("depth=2", "embed_dim=6")):
    data = runs.DataConfig(size=(32, 32))
    config = runs.ModelConfig(name=name, arguments=arguments)
    model = nnx.eval_shape(lambda: runs.build_model(config, data, num_classes=2, rngs=nnx.Rngs(0)))
    plan = attn_flax.training.Plan(examples=8, batch_size=4, epochs=1)
    options = runs.OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant", layer_decay=decay)
    return runs.build_learning(options, plan, model=model, data=data).optimizer, model


def test_the_learning_rate_of_a_block_is_lower_the_nearer_it_is_to_the_input():
    optimizer, model = learning(0.5)
    ones = jax.tree.map(lambda p: np.ones(p.shape, np.float32), nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    steps, _ = optimizer.update(ones, optimizer.init(ones), ones)
    rates = [float(-steps[part]["kernel"].ravel()[0]) for part in ("patch_embed", "head")]
    rates[1:1] = [float(-steps["blocks"][i]["norm1"]["scale"][0]) for i in range(2)]
    np.testing.assert_allclose(np.array(rates) / 0.19, [0.125, 0.25, 0.5, 1.0], rtol=1e-6)  # momentum: 0.1 · 1.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--optimizer.layer-decay", "0"], InputError, r"layer_decay must be in \(0, 1\], got 0.0"),
        (["--optimizer.layer-decay", "1.5"], InputError, r"layer_decay must be in \(0, 1\], got 1.5"),
        (["--model.frozen", "layer5"], UnknownNameError, "did you mean 'layer"),
        (["--model.frozen", "9"], InputError, "the network has 4 stages: expected at most as many, got 9"),
        (["--model.frozen", "4", "fc"], InputError, "some parameters must be left to train"),
    ],
)
def test_bad_options_are_refused_before_a_folder_is_made(folder, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(folder, tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_what_is_no_image_classifier_has_no_stages():
    data, config = runs.DataConfig(size=(16, 16)), runs.ModelConfig(name="unet_small", frozen=("1",))
    with pytest.raises(InputError, match=r"model.frozen, 1, is for image classifiers, got UNet"):
        nnx.eval_shape(lambda: runs.build_model(config, data, num_classes=2, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"layer_decay 0.5 is for image classifiers, got UNet"):
        learning(0.5, "unet_small", ())
