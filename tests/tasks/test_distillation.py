"""Distillation by hard labels against NumPy: the loss of one head and of two, and a teacher that stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.tasks import Distillation
from attn_flax.training import Learning, parallelize
from tests.tasks.test_classification import CLASSES, Flat, probabilities
from tests.training.networks import SmallNet, plain, random_batches


class TwoHeads(nnx.Module):
    """One linear layer over all pixels for the labels, and one for the teacher's."""

    def __init__(self, *, rngs):
        self.of_labels, self.of_teacher = Flat(rngs=rngs), Flat(rngs=rngs)

    def logits_of_heads(self, x):
        return self.of_labels(x), self.of_teacher(x)

    def __call__(self, x):
        return sum(self.logits_of_heads(x)) / 2


STUDENTS = {
    "one head": (Flat, lambda model: (model, model)),
    "two heads": (TwoHeads, lambda model: (model.of_labels, model.of_teacher)),
}


def distill(student, teacher, **arguments):
    return Distillation(student, Learning(optax.sgd(0.1)), CLASSES, teacher=teacher, **arguments)


def teacher_with_dropout():
    """One whose batch statistics and dropout would show if it were in training."""
    teacher = SmallNet(dropout=0.5, rngs=nnx.Rngs(7))
    teacher.norm.mean.set_value(jnp.linspace(-1, 1, 8))
    return teacher


def in_numpy(head, image):
    kernel, bias = (np.float64(p[...]) for p in (head.linear.kernel, head.linear.bias))
    return probabilities(np.float64(image).reshape(len(image), -1) @ kernel + bias)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_step_follows_half_of_each_cross_entropy(student):
    create, heads = STUDENTS[student]
    model, teacher = create(rngs=nnx.Rngs(0)), teacher_with_dropout()
    task = distill(model, teacher, label_smoothing=0.2)
    (batch,) = random_batches(1, 11)
    state = task.init(jax.random.key(0))
    after, metrics = task.update(state, batch)

    said = np.asarray(nnx.view(teacher, deterministic=True, use_running_average=True)(batch["image"])).argmax(1)
    assert 0 < (said == batch["label"]).mean() < 1
    targets = 0.8 * np.eye(CLASSES)[batch["label"]] + 0.2 / CLASSES, np.eye(CLASSES)[said]
    p = [in_numpy(head, batch["image"]) for head in heads(model)]
    losses = [-(target * np.log(of_head)).sum(1).mean() for target, of_head in zip(targets, p, strict=True)]
    np.testing.assert_allclose(metrics["loss"], sum(losses) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (p[0].argmax(1) == batch["label"]).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["agreement"], (p[1].argmax(1) == said).mean(), rtol=1e-6)

    gradients = [(of_head - target).mean(0) / 2 for target, of_head in zip(targets, p, strict=True)]
    moved = [
        np.asarray(new.linear.bias) - old.linear.bias
        for new, old in zip(heads(task.module(after)), heads(model), strict=True)
    ]
    expected = [sum(gradients)] * 2 if student == "one head" else gradients
    np.testing.assert_allclose(moved, -0.1 * np.array(expected), atol=1e-6)


@pytest.mark.parametrize("how", ["jit", pytest.param("pmap", marks=pytest.mark.full)])
def test_the_teacher_stays_as_it_is_and_is_learned_from(how):
    """The labels are noise: what the student learns, the teacher has said."""
    teacher = teacher_with_dropout()
    before = plain(nnx.to_pure_dict(nnx.state(teacher)))
    task = distill(TwoHeads(rngs=nnx.Rngs(0)), teacher)
    runner = parallelize(task, how, jax.devices()[:2])
    state = runner.place(task.init(jax.random.key(0)))
    (batch,) = random_batches(1, 24)
    agreement = []
    for _ in range(30):
        state, metrics = runner.update(state, runner.put(batch))
        agreement.append(float(runner.fetch(metrics)["agreement"]))
    assert agreement[0] < 0.5
    assert agreement[-1] == 1
    jax.tree.map(np.testing.assert_array_equal, plain(nnx.to_pure_dict(nnx.state(teacher))), before)
    assert teacher.drop1.deterministic is False


def test_mixed_images_are_what_the_teacher_sees():
    seen = []

    class Teacher(Flat):
        def __call__(self, x):
            seen.append(x)
            return super().__call__(x)

    (batch,) = random_batches(1, 6)
    task = distill(Flat(rngs=nnx.Rngs(0)), Teacher(rngs=nnx.Rngs(1)), mixup_alpha=1.0)
    images, _ = task.examples(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(seen[0], images)
    assert np.abs(images - batch["image"]).max() > 0.1


def test_evaluation_is_the_networks_alone():
    model = TwoHeads(rngs=nnx.Rngs(0))
    task = distill(model, teacher_with_dropout())
    (batch,) = random_batches(1, 6)
    sums = task.evaluate(task.init(jax.random.key(0)), batch | {"weight": np.ones(6, np.float32)})
    predicted = np.asarray(model(batch["image"])).argmax(1)
    expected = np.zeros((CLASSES, CLASSES))
    np.add.at(expected, (batch["label"], predicted), 1)
    np.testing.assert_array_equal(sums["confusion"], expected)


def test_a_teacher_of_other_classes_is_refused():
    task = Distillation(Flat(rngs=nnx.Rngs(0)), Learning(optax.sgd(0.1)), 3, teacher=Flat(rngs=nnx.Rngs(1)))
    (batch,) = random_batches(1, 6)
    with pytest.raises(InputError, match="teacher must give logits of 3 classes, got 5"):
        task.update(task.init(jax.random.key(0)), batch)
