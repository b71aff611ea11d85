"""Cross-entropy, confusions and IoU of pixels against NumPy and scikit-learn, wherever the batch is split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, log_loss

from attn_flax.tasks import Segmentation
from attn_flax.tasks.segmentation import class_iou, foreground_iou, predict_mask
from attn_flax.training import Learning, parallelize

CLASSES = 4
SIZE = (7, 5)


class Pixelwise(nnx.Module):
    """One linear layer of each pixel."""

    def __init__(self, *, dtype=None, param_dtype="float32", rngs):
        self.linear = nnx.Linear(3, CLASSES, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


def segment(*, learning=None, background=None, **arguments):
    return Segmentation(Pixelwise(**arguments, rngs=nnx.Rngs(0)), learning or Learning(optax.sgd(0.1)), background)


def batch_of(size, *, dtype=np.float32, seed=0, ignored=0.3):
    """Random images; of the masks one class is missing, and the ignored pixels are more numerous in later images."""
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 3], (size, *SIZE))
    mask[rng.random(mask.shape) < ignored * np.linspace(0, 2, size)[:, None, None]] = -1
    return {"image": rng.normal(size=(size, *SIZE, 3)).astype(dtype), "mask": mask.astype(np.int32)}


def probabilities(state, images):
    kernel, bias = (np.float64(state.params["linear"][name]) for name in ("kernel", "bias"))
    e = np.exp(np.float64(images) @ kernel + bias)
    return e / e.sum(-1, keepdims=True)


def test_a_step_follows_the_mean_over_the_pixels_that_count():
    task, batch = segment(), batch_of(6)
    state = task.init(jax.random.key(0))
    after, metrics = jax.jit(task.update)(state, batch)
    counted = batch["mask"] >= 0
    p, truth = probabilities(state, batch["image"])[counted], batch["mask"][counted]
    np.testing.assert_allclose(metrics["loss"], np.mean([-np.log(q[k]) for q, k in zip(p, truth, strict=True)]), 1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (p.argmax(1) == truth).mean(), rtol=1e-6)
    gradient = (p - np.eye(CLASSES)[truth]).mean(0)
    moved = np.array(after.params["linear"]["bias"]) - np.array(state.params["linear"]["bias"])
    np.testing.assert_allclose(moved, -0.1 * gradient, atol=1e-6)


def test_without_a_pixel_that_counts_nothing_is_learned():
    task, batch = segment(), batch_of(2)
    state = task.init(jax.random.key(0))
    after, metrics = jax.jit(task.update)(state, batch | {"mask": np.full_like(batch["mask"], -1)})
    assert (float(metrics["loss"]), float(metrics["accuracy"]), bool(metrics["finite"].all())) == (0, 0, True)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def evaluated(task, batch, weight):
    state = task.init(jax.random.key(0))
    sums = jax.device_get(jax.jit(task.evaluate)(state, batch | {"weight": weight}))
    counted = (batch["mask"] >= 0) & (weight > 0)[:, None, None]
    return sums, batch["mask"][counted], probabilities(state, batch["image"])[counted]


def test_evaluation_is_that_of_scikit_learn():
    task, batch = segment(background=1), batch_of(9)
    weight = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1], np.float32)
    sums, truth, p = evaluated(task, batch, weight)
    predicted, everything = p.argmax(1), range(CLASSES)
    np.testing.assert_array_equal(sums["confusion"], confusion_matrix(truth, predicted, labels=everything))
    summary = task.summarize(sums)
    assert list(summary) == ["accuracy", "loss", "mean_iou", "foreground_iou"]
    assert summary["loss"] == pytest.approx(log_loss(truth, p, labels=everything), rel=1e-5)
    assert summary["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    there = sorted({*truth, *predicted})
    assert summary["mean_iou"] == pytest.approx(jaccard_score(truth, predicted, labels=there, average="macro"))
    assert summary["foreground_iou"] == pytest.approx(jaccard_score(truth != 1, predicted != 1))
    each = jaccard_score(truth, predicted, labels=everything, average=None, zero_division=0)
    np.testing.assert_allclose(class_iou(np.float64(sums["confusion"])), each)


def test_a_class_that_is_nowhere_is_left_out():
    """Class 1 is never, class 2 is only predicted: its IoU is zero and counts."""
    confusion = np.array([[6.0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1.0, 0, 0, 3]])
    np.testing.assert_allclose(class_iou(confusion), [6 / 9, np.nan, 0, 3 / 4])
    task = segment(background=3)
    summary = task.summarize({"loss": np.float32(0), "confusion": confusion})
    assert summary["mean_iou"] == pytest.approx((6 / 9 + 0 + 3 / 4) / 3)
    assert summary["foreground_iou"] == pytest.approx(8 / 9)
    assert np.isnan(foreground_iou(np.diag([0.0, 0, 5]), 2))
    assert "foreground_iou" not in segment().summarize({"loss": np.float32(0), "confusion": confusion})


def test_scores_rank_by_mean_iou_and_among_equals_by_loss():
    worst_first = [(0.5, 0.1), (0.9, 0.4), (0.9, 0.3), (0.95, 2.0)]
    scores = [segment().score({"mean_iou": iou, "loss": loss}) for iou, loss in worst_first]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


def test_predictions_are_the_likeliest_classes():
    task = segment()
    state, images = task.init(jax.random.key(0)), jnp.asarray(batch_of(3)["image"])
    mask = predict_mask(task.module(state), images)
    np.testing.assert_array_equal(mask, probabilities(state, images).argmax(-1))
    np.testing.assert_array_equal(predict_mask(task.module(state), images[1]), mask[1])


def test_a_bfloat16_network_has_a_float32_loss():
    task, batch = segment(dtype=jnp.bfloat16), batch_of(4)
    state = task.init(jax.random.key(0))
    logits = np.float64(task.module(state)(batch["image"]))
    after, metrics = jax.jit(task.update)(state, batch)
    counted = batch["mask"] >= 0
    logits, truth = logits[counted], batch["mask"][counted]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(truth)), truth]
    np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-6)
    assert metrics["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after.params, after.opt_state)))


@functools.cache
def trained(how, devices, accumulate=1):
    """The parameters after a few steps, in float64, and the losses on the way; devices have few pixels, or many."""
    with jax.enable_x64():
        learning = Learning(optax.sgd(0.5, momentum=0.9), accumulate=accumulate)
        task = segment(learning=learning, param_dtype="float64")
        runner = parallelize(task, how, jax.devices()[:devices])
        state, losses = runner.place(task.init(jax.random.key(0))), []
        for seed in range(5):
            batch = batch_of(8, dtype=np.float64, seed=seed, ignored=0.5)
            state, metrics = runner.update(state, runner.put(batch))
            losses.append(float(runner.fetch(metrics)["loss"]))
        return jax.tree.leaves(jax.device_get(runner.fetch(state).params)), losses


@pytest.mark.parametrize(
    ("how", "devices", "accumulate"), [("pmap", 8, 1), ("jit", 8, 1), ("jit", 1, 4), ("pmap", 2, 2)]
)
def test_the_mean_is_the_same_however_the_batch_is_split(how, devices, accumulate):
    """The last image of a batch has no pixel that counts, and some have few."""
    expected, losses = trained("jit", 1)
    leaves, split_losses = trained(how, devices, accumulate)
    np.testing.assert_allclose(split_losses, losses, rtol=1e-9)
    for one, other in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_evaluation_sums_are_those_of_one_device(how):
    task = segment()
    state, batch = task.init(jax.random.key(0)), batch_of(8) | {"weight": np.float32([1, 1, 1, 1, 1, 0, 0, 0])}
    runner = parallelize(task, how)
    sums = runner.fetch(runner.evaluate(runner.place(state), runner.put(batch)))
    expected = jax.jit(task.evaluate)(state, batch)
    np.testing.assert_array_equal(sums["confusion"], expected["confusion"])
    np.testing.assert_allclose(sums["loss"], expected["loss"], rtol=1e-5)
