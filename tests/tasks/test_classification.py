"""Cross-entropy, confusions and metrics against NumPy and scikit-learn, and a network that learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from attn_flax.tasks import Classification
from attn_flax.training import Learning, parallelize
from tests.training.networks import SmallNet, random_batches

CLASSES = 5


class Flat(nnx.Module):
    """One linear layer over all pixels."""

    def __init__(self, *, dtype=None, features=7 * 6 * 3, rngs):
        self.linear = nnx.Linear(features, CLASSES, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.linear(x.reshape(len(x), -1))


class Pooled(nnx.Module):
    """One linear layer of the mean pixel."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(CLASSES, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.linear(x.mean((1, 2)))


def classify(model, **arguments):
    return Classification(model, Learning(optax.sgd(0.1)), CLASSES, **arguments)


def probabilities(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits_of(state, image):
    kernel, bias = (np.float64(state.params["linear"][name]) for name in ("kernel", "bias"))
    return np.float64(image).reshape(len(image), -1) @ kernel + bias


def batch_of(size, seed=0):
    return next(random_batches(1, size, seed=seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_a_step_follows_the_smoothed_cross_entropy(smoothing):
    task = classify(Flat(rngs=nnx.Rngs(0)), label_smoothing=smoothing)
    state, batch = task.init(jax.random.key(0)), batch_of(11)
    after, metrics = task.update(state, batch)
    p = probabilities(logits_of(state, batch["image"]))
    targets = (1 - smoothing) * np.eye(CLASSES)[batch["label"]] + smoothing / CLASSES
    np.testing.assert_allclose(metrics["loss"], -(targets * np.log(p)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (p.argmax(1) == batch["label"]).mean(), rtol=1e-6)
    gradient = (p - targets).mean(0)
    moved = np.array(after.params["linear"]["bias"]) - np.array(state.params["linear"]["bias"])
    np.testing.assert_allclose(moved, -0.1 * gradient, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_mixed_images_have_mixed_targets(arguments):
    """Images that spell their target, and parameters of zero: the kernel's gradient is the mean of t (1/5 - t)ᵀ."""
    task = classify(Pooled(rngs=nnx.Rngs(0)), **arguments)
    state = task.init(jax.random.key(0))
    state = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    image = np.broadcast_to(np.eye(CLASSES, dtype=np.float32)[[1, 3], None, None], (2, 9, 7, CLASSES))
    after, metrics = jax.jit(task.update)(state, {"image": image, "label": np.array([1, 3], np.int32)})
    gradient = np.array(after.params["linear"]["kernel"]) / -0.1
    product = 0.1 - gradient[1, 3]
    assert 0.001 < product <= 0.25
    share = (1 + np.sqrt(1 - 4 * product)) / 2
    t = share * np.eye(CLASSES)[[1, 3]] + (1 - share) * np.eye(CLASSES)[[3, 1]]
    np.testing.assert_allclose(gradient, t.T @ (1 / CLASSES - t) / 2, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.log(CLASSES), rtol=1e-6)


def test_evaluation_counts_confusions_and_losses_by_weight():
    task = classify(Flat(rngs=nnx.Rngs(0)))
    state, batch = task.init(jax.random.key(0)), batch_of(60)
    weight = np.random.default_rng(1).integers(0, 2, 60).astype(np.float32)
    sums = task.evaluate(state, batch | {"weight": weight})
    p, counted = probabilities(logits_of(state, batch["image"])), weight > 0
    labels, predicted, p = batch["label"][counted], p.argmax(1)[counted], p[counted]
    everything = list(range(CLASSES))
    np.testing.assert_array_equal(sums["confusion"], confusion_matrix(labels, predicted, labels=everything))
    np.testing.assert_allclose(sums["loss"], log_loss(labels, p, labels=everything, normalize=False), rtol=1e-5)
    summary = task.summarize(jax.device_get(sums))
    assert summary["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert summary["loss"] == pytest.approx(log_loss(labels, p, labels=everything), rel=1e-5)


def test_evaluation_leaves_smoothing_mixing_and_dropout_out():
    plain, odd = (SmallNet(dropout=dropout, rngs=nnx.Rngs(0)) for dropout in (0.0, 0.5))
    batch = batch_of(13) | {"weight": np.ones(13, np.float32)}
    expected, sums = (
        jax.jit(task.evaluate)(task.init(jax.random.key(0)), batch)
        for task in (classify(plain), classify(odd, label_smoothing=0.3, mixup_alpha=1.0, cutmix_alpha=1.0))
    )
    np.testing.assert_array_equal(sums["loss"], expected["loss"])
    np.testing.assert_array_equal(sums["confusion"], expected["confusion"])


def test_averages_are_evaluated_where_there_are_any():
    model = Flat(rngs=nnx.Rngs(0))
    task = Classification(model, Learning(optax.sgd(5.0), ema_decay=0.9), CLASSES)
    state = task.init(jax.random.key(0))
    for batch in random_batches(3, 8):
        state, _ = task.update(state, batch)
    image = batch_of(4, seed=9)["image"]
    params = state.ema[0]["linear"]
    np.testing.assert_allclose(
        task.module(state)(image), image.reshape(4, -1) @ params["kernel"] + params["bias"], rtol=1e-5, atol=1e-5
    )
    assert np.abs(params["kernel"] - state.params["linear"]["kernel"]).max() > 0.01


def test_scores_rank_by_accuracy_and_among_equals_by_loss():
    score = classify(Flat(rngs=nnx.Rngs(0))).score
    worst_first = [(0.5, 0.1), (0.9, 0.4), (0.9, 0.3), (0.95, 2.0)]
    scores = [score({"accuracy": accuracy, "loss": loss}) for accuracy, loss in worst_first]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


def test_a_bfloat16_network_has_float32_parameters_and_loss():
    task = classify(Flat(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    state, batch = task.init(jax.random.key(0)), batch_of(11)
    logits = np.array(task.module(state)(batch["image"]))
    assert logits.dtype == jnp.bfloat16
    after, metrics = task.update(state, batch)
    p = probabilities(np.float64(logits))
    expected = -np.log(p[np.arange(11), batch["label"]])
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-6)
    sums = task.evaluate(state, batch | {"weight": np.ones(11, np.float32)})
    np.testing.assert_allclose(sums["loss"], expected.sum(), rtol=1e-6)
    assert metrics["loss"].dtype == sums["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after.params, after.opt_state)))


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_a_separable_problem_is_learned(how):
    """The class is the brightest of five squares."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, 64).astype(np.int32)
    image = rng.normal(scale=0.2, size=(64, 1, CLASSES, 1)).astype(np.float32)
    image[np.arange(64), 0, label] += 2
    task = Classification(
        Flat(features=CLASSES, rngs=nnx.Rngs(0)),
        Learning(optax.adam(0.1)),
        CLASSES,
        label_smoothing=0.1,
        mixup_alpha=0.2,
    )
    runner = parallelize(task, how, jax.devices()[:2])
    state = runner.place(task.init(jax.random.key(0)))
    batch = runner.put({"image": image, "label": label})
    for _ in range(40):
        state, _ = runner.update(state, batch)
    weighted = runner.put({"image": image, "label": label, "weight": np.ones(64, np.float32)})
    summary = task.summarize(jax.device_get(runner.fetch(runner.evaluate(state, weighted))))
    assert summary["accuracy"] == 1.0
    assert summary["loss"] < 0.3
