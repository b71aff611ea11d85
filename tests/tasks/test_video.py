"""The labellings of videos against NumPy and scikit-learn, and a network that learns two at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from attn_flax.checks import InputError
from attn_flax.tasks import VideoClassification
from attn_flax.tasks.video import cut_logits
from attn_flax.training import Learning, parallelize

LABELLINGS = {"digit": 5, "direction": 3}
CUTS = {"digit": slice(0, 5), "direction": slice(5, 8)}
SHAPE = (3, 5, 4, 2)


class Flat(nnx.Module):
    """One linear layer over all pixels of all frames."""

    def __init__(self, shape=SHAPE, *, rngs):
        self.linear = nnx.Linear(int(np.prod(shape)), 8, rngs=rngs)

    def __call__(self, x):
        return self.linear(x.reshape(len(x), -1))


def task(model=None, **arguments):
    return VideoClassification(
        model or Flat(rngs=nnx.Rngs(0)), Learning(optax.sgd(0.1, momentum=0.9)), LABELLINGS, **arguments
    )


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, size) for n in LABELLINGS.values()], -1)
    return {"frames": rng.normal(size=(size, *SHAPE)).astype(np.float32), "labels": labels.astype(np.int32)}


def probabilities(state, frames):
    """Of each labelling, by its name."""
    kernel, bias = (np.float64(state.params["linear"][name]) for name in ("kernel", "bias"))
    e = np.exp(np.float64(frames).reshape(len(frames), -1) @ kernel + bias)
    return {name: e[:, cut] / e[:, cut].sum(1, keepdims=True) for name, cut in CUTS.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_step_follows_the_sum_of_the_smoothed_cross_entropies(smoothing):
    a_task = task(label_smoothing=smoothing)
    state, batch = a_task.init(jax.random.key(0)), batch_of(11)
    after, metrics = a_task.update(state, batch)
    losses, gradient = [], np.zeros(8)
    for column, (name, n) in enumerate(LABELLINGS.items()):
        p, labels = probabilities(state, batch["frames"])[name], batch["labels"][:, column]
        targets = (1 - smoothing) * np.eye(n)[labels] + smoothing / n
        losses.append(-(targets * np.log(p)).sum(1).mean())
        gradient[CUTS[name]] = (p - targets).mean(0)
        np.testing.assert_allclose(metrics[f"{name}_accuracy"], (p.argmax(1) == labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], sum(losses), rtol=1e-5)
    moved = np.array(after.params["linear"]["bias"]) - np.array(state.params["linear"]["bias"])
    np.testing.assert_allclose(moved, -0.1 * gradient, atol=1e-6)


def test_evaluation_counts_each_labelling_by_weight():
    a_task = task(label_smoothing=0.3)
    state, batch = a_task.init(jax.random.key(0)), batch_of(60)
    weight = np.random.default_rng(1).integers(0, 2, 60).astype(np.float32)
    sums, counted = a_task.evaluate(state, batch | {"weight": weight}), weight > 0
    summary, losses = a_task.summarize(jax.device_get(sums)), []
    for column, (name, n) in enumerate(LABELLINGS.items()):
        p, labels = probabilities(state, batch["frames"])[name][counted], batch["labels"][counted, column]
        everything = list(range(n))
        expected = confusion_matrix(labels, p.argmax(1), labels=everything)
        np.testing.assert_array_equal(sums[name]["confusion"], expected)
        losses.append(log_loss(labels, p, labels=everything))
        assert summary[f"{name}_accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)))
    assert summary["loss"] == pytest.approx(sum(losses), rel=1e-5)
    assert set(summary) == {"loss", "digit_accuracy", "direction_accuracy"}


def test_scores_rank_by_the_mean_accuracy_and_among_equals_by_loss():
    worst_first = [(0.9, 0.2, 0.1), (0.5, 0.7, 0.4), (0.7, 0.5, 0.3), (0.6, 0.7, 2.0)]
    scores = [
        task().score({"digit_accuracy": digit, "direction_accuracy": direction, "loss": loss})
        for digit, direction, loss in worst_first
    ]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


def trained(how, devices):
    a_task = task(label_smoothing=0.1)
    runner = parallelize(a_task, how, jax.devices()[:devices])
    state, losses = runner.place(a_task.init(jax.random.key(3))), []
    for step in range(5):
        state, metrics = runner.update(state, runner.put(batch_of(16, seed=step)))
        losses.append(float(runner.fetch(metrics)["loss"]))
    weighted = batch_of(16, seed=9) | {"weight": np.array([1.0] * 13 + [0.0] * 3, np.float32)}
    return runner.fetch(state).params, losses, runner.fetch(runner.evaluate(state, runner.put(weighted)))


@pytest.mark.parametrize(("how", "devices"), [("jit", 8), ("pmap", 8)])
def test_devices_agree_with_one(how, devices):
    one, several = trained("jit", 1), trained(how, devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, several)
    assert float(several[2]["direction"]["confusion"].sum()) == 13


def test_two_labellings_are_learned_at_once():
    """Which of five columns is bright, and in which of three frames."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(0, n, 64) for n in LABELLINGS.values()], -1).astype(np.int32)
    frames = rng.normal(scale=0.2, size=(64, 3, 1, 5, 1)).astype(np.float32)
    frames[np.arange(64), labels[:, 1], 0, labels[:, 0]] += 2
    model = Flat((3, 1, 5, 1), rngs=nnx.Rngs(0))
    a_task = VideoClassification(model, Learning(optax.adam(0.1)), LABELLINGS)
    state, update = a_task.init(jax.random.key(0)), jax.jit(a_task.update)
    for _ in range(60):
        state, metrics = update(state, {"frames": frames, "labels": labels})
    assert metrics["digit_accuracy"] == metrics["direction_accuracy"] == 1
    assert metrics["loss"] < 0.3


def test_one_labelling_is_plain_classification():
    a_task = VideoClassification(Flat(rngs=nnx.Rngs(0)), Learning(optax.sgd(0.1)), {"action": 8})
    batch = batch_of(7)
    _, metrics = a_task.update(a_task.init(jax.random.key(0)), batch | {"labels": batch["labels"][:, :1]})
    assert set(metrics) == {"loss", "action_accuracy", "finite"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labellings": {}}, r"labellings must be one or more, each of at least 1 class, got \{\}"),
        ({"labellings": {"digit": 0}}, "at least 1 class, got {'digit': 0}"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        VideoClassification(
            Flat(rngs=nnx.Rngs(0)), Learning(optax.sgd(0.1)), **({"labellings": LABELLINGS} | arguments)
        )


def test_logits_of_other_classes_are_refused():
    with pytest.raises(InputError, match=r"logits must be of 8 classes, those of digit, direction, got shape \(2, 9\)"):
        cut_logits(jnp.ones((2, 9)), LABELLINGS)
