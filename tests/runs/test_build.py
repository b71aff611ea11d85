"""From configuration to data, models and optimisers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from attn_flax import nn, runs
from attn_flax.checks import InputError, UnknownNameError
from attn_flax.data import VIDEOS, Augmentation
from attn_flax.data.embedded import videos
from attn_flax.training import Plan
from tests.pictures import write_image_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), classes=("blue", "red"), count=12, size=(7, 5))


def image_data(folder, **options):
    return runs.build_data(runs.DataConfig(name="colours", folder=folder, **options), batch_size=3)


def test_size_and_statistics_are_those_of_the_training_images(folder):
    data = image_data(folder)
    pixels = np.stack([data.dataset.train[i]["image"] for i in range(len(data.dataset.train))]) / 255
    assert (data.dataset.name, data.config.size) == (folder.name, (7, 5))
    np.testing.assert_allclose(data.config.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.config.std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_given_size_and_statistics_are_kept(folder):
    given = {"size": (4, 6), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    data = image_data(folder, **given)
    assert data.config == runs.DataConfig(name="colours", folder=folder, **given)
    batch = next(iter(data.evaluation_batches("test")))
    assert batch["image"].shape == (3, 4, 6, 3)


def test_training_images_are_standardised(folder):
    with_all = dataclasses.replace(image_data(folder), batch_size=17)
    batch = next(iter(with_all.train_batches(seed=0)))
    np.testing.assert_allclose(batch["image"].mean((0, 1, 2)), 0, atol=0.2)
    np.testing.assert_allclose(batch["image"].std((0, 1, 2)), 1, atol=0.2)


def test_images_of_several_sizes_need_a_size(folder, tmp_path):
    write_image_folder(tmp_path, classes=("blue", "red"), count=12, size=(7, 5))
    Image.new("RGB", (9, 8)).save(tmp_path / "blue" / "another.png")
    with pytest.raises(
        InputError, match=r"differ in size, as 7×5 and 8×9; expected one size: make it with --data.size"
    ):
        image_data(tmp_path)
    assert image_data(tmp_path, size=(4, 4)).config.size == (4, 4)


@pytest.mark.parametrize(("options", "message"), [({"channels": 0}, "got 0"), ({"size": (0, 3)}, r"got \(0, 3\)")])
def test_sizes_below_one_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        image_data(folder, **options)


def test_the_kind_takes_its_options_from_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "COUNTS", {"train": 9, "validation": 4, "test": 4})
    config = runs.VideoDataConfig(dir=tmp_path, frames=5, stride=3, channels=1)
    data = runs.build_data(config, kind=VIDEOS, batch_size=3)
    assert (data.config.size, data.num_classes, len(data.config.mean)) == ((32, 32), 18, 1)
    assert data.class_names[9:11] == ("9", "right")
    for batch in (next(iter(data.evaluation_batches("test"))), next(iter(data.train_batches(seed=0)))):
        assert batch["frames"].shape == (3, 5, 32, 32, 1)
        assert batch["labels"].shape == (3, 2)
    with pytest.raises(InputError, match="frames must be at least 1, got 0"):
        runs.build_data(dataclasses.replace(config, frames=0), kind=VIDEOS, batch_size=3)
    distorted = dataclasses.replace(config, augment=Augmentation(randaugment=1))
    with pytest.raises(InputError, match="randaugment moves pixels"):
        runs.build_data(distorted, kind=VIDEOS, batch_size=3)


def build(**options):
    return runs.build_model(runs.ModelConfig(**options), runs.DataConfig(channels=1), num_classes=4, rngs=nnx.Rngs(0))


def test_a_model_gets_its_arguments():
    model = build(attention="article", arguments=("activation=relu",), attention_arguments=("normalizer=sum",))
    assert isinstance(model.attention, nn.Article)
    assert model.attention.normalizer == "sum"
    assert model.activation is jax.nn.relu
    assert (model.conv1.in_features, model.linear2.out_features) == (1, 4)


def test_numbers_and_booleans_are_read_as_such():
    model = build(attention="article", attention_arguments=("residual=False", "epsilon=0.25"))
    assert (model.attention.residual, model.attention.epsilon) == (False, 0.25)


def test_it_computes_in_bfloat16_over_float32_parameters():
    model = build(attention="article_gate", dtype="bfloat16")
    assert model(jnp.ones((1, 8, 8, 1))).dtype == jnp.bfloat16
    assert model.attention.reduce.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}


def test_no_attention():
    assert build(attention="none").attention is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "atention_net"}, UnknownNameError, "did you mean 'attention_net'"),
        ({"attention": "artcle_gate"}, UnknownNameError, "did you mean 'article_gate'"),
        ({"arguments": ("activaton=relu",)}, UnknownNameError, "did you mean 'activation'"),
        ({"arguments": ("relu",)}, InputError, "model.arguments must be NAME=VALUE, got 'relu'"),
        (
            {"attention": "article_gate", "attention_arguments": ("reduction=7",)},
            InputError,
            "reduction=7, channels=64",
        ),
        ({"attention_arguments": ("reduction=4",)}, InputError, "attention 'default' takes no arguments"),
        ({"attention": "none", "attention_arguments": ("reduction=4",)}, InputError, "takes no arguments"),
    ],
)
def test_what_a_model_does_not_take_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_the_schedule_lies_over_the_plan():
    config = runs.OptimizerConfig(name="lion", learning_rate=0.5, warmup=0.2)
    optimizer = runs.build_learning(config, Plan(examples=100, batch_size=10, epochs=5)).optimizer
    params, state, rates = jnp.zeros(3), optimizer.init(jnp.zeros(3)), []
    for _ in range(50):
        updates, state = optimizer.update(jnp.ones(3), state, params)
        rates.append(-updates[0])  # a step of lion is as long as its learning rate
    np.testing.assert_allclose([rates[s] for s in (0, 5, 10, 30)], [0.0, 0.25, 0.5, 0.25], atol=1e-6)
    assert rates[49] < 0.01


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_a_warm_up_is_a_share_of_the_steps(warmup):
    with pytest.raises(InputError, match=rf"warmup must be a share in \[0, 1\), got {warmup}"):
        runs.build_learning(runs.OptimizerConfig(warmup=warmup), Plan(100, 10, 5))
