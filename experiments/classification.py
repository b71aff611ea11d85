"""Train an image classifier with attention, and see what it learned.

    python -m experiments.classification                                   the article's network on scanned digits
    python -m experiments.classification --preset article                  the article's recipe to the letter
    python -m experiments.classification --data.name cifar10 --data.dir DIR
    python -m experiments.classification --teacher RUN                     from another run's network and the labels

The run folder gets config.json, metrics.jsonl, TensorBoard event files, the best checkpoint, result.json with the test
accuracy, and pictures: learning curves, the confusion matrix, attention maps beside their inputs.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import explain, runs, training
from attn_flax.checks import check
from attn_flax.data import LABELLED_IMAGES, Augmentation, find_images, read_images
from attn_flax.tasks import Classification, Distillation

BATCH = 32
CLASSES_SHOWN = 3
IMAGES_DRAWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(runs.TrainingConfig):
    """Train an image classifier with attention, and see what it learned."""

    task: tyro.conf.Suppress[Literal["classification"]] = "classification"
    preset: Literal["default", "article"] = "default"
    """What the other options start from: our recipe for the article's network, or the article's own."""
    data: runs.DataConfig = dataclasses.field(default_factory=runs.DataConfig)
    model: runs.ModelConfig = dataclasses.field(default_factory=partial(runs.ModelConfig, attention="article_gate"))
    optimizer: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)
    label_smoothing: float = 0.0
    """The share of the target spread evenly over all classes."""
    mixup: float = 0.0
    """α of mixup; 0 for none."""
    cutmix: float = 0.0
    """α of CutMix; 0 for none. With both, each batch takes one of them."""
    teacher: Path | None = None
    """The folder of a run whose network teaches this one: half of the loss is then against what that says of an image.
    It must have been trained on the same classes, with images prepared in the same way."""


PRESETS = {
    "default": Config(
        data=runs.DataConfig(augment=Augmentation(shift=1)),
        model=runs.ModelConfig(attention="article_gate", arguments=("activation=relu",)),
        optimizer=runs.OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.05, warmup=0.08),
        label_smoothing=0.1,
    ),
    "article": Config(
        preset="article",
        data=runs.DataConfig(validation=0.0),  # the article holds nothing out, and takes the last epoch
        optimizer=runs.OptimizerConfig(name="adam", learning_rate=1e-3, schedule="constant"),
        epochs=100,
        batch_size=128,
    ),
}


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder; returns the content of result.json.

    Raises:
        InputError: something in the configuration, or an image, is wrong.
        StoppedError: a signal ended the training.
    """
    return runs.conduct(EXPERIMENT, config, console)


def build_task(config: Config, data: runs.TaskData, plan: training.Plan) -> Classification:
    """The classification of the data's images, with a teacher if there is one."""
    model = runs.build_model(
        config.model, data.config, num_classes=data.num_classes, rngs=nnx.Rngs(config.seed), tell=data.tell
    )
    learning = runs.build_learning(config.optimizer, plan, model=model, data=data.config)
    settings = (model, learning, data.num_classes, config.label_smoothing, config.mixup, config.cutmix)
    if config.teacher:
        return Distillation(*settings, teacher=_teacher(config.teacher, data))
    return Classification(*settings)


def _teacher(folder, data):
    """The network of a run that was about the same classes, of images prepared in the same way."""
    run = runs.read_run(folder)
    check(run.task == "classification", f"{folder} is no teacher: expected a run of classification, got {run.task}.")
    check(
        run.class_names == data.class_names,
        f"the teacher {folder} has other classes than the data: expected {', '.join(data.class_names)}, "
        f"got {', '.join(run.class_names)}.",
    )
    for name in ("size", "channels", "mean", "std"):
        own, taught = getattr(data.config, name), getattr(run.data, name)
        check(
            own == taught,
            f"the teacher {folder} has images prepared otherwise: expected {name} {own}, got {taught}; --data.{name} "
            "sets it.",
        )
    return run.model


def draw(folder: runs.RunFolder, data: runs.TaskData, trained: runs.Trained, console: Console) -> None:
    """The run's pictures."""
    explain.draw_learning_curves(folder.read_metrics(), folder.path / "learning_curves.png")
    confusion = trained.sums["confusion"]
    explain.draw_confusion_matrix(confusion, data.class_names, folder.path / "confusion_matrix.png")
    batch = next(iter(data.evaluation_batches("test")))
    images = batch["image"][batch["weight"] > 0][:IMAGES_DRAWN]
    runs.draw_maps(folder, trained.task.module(trained.state), images, data.config, console)


def predict(run: runs.TrainedRun, names: Sequence[str], out: Path, console: Console) -> list[dict[str, Any]]:
    """For each image its file, its classes with their probabilities, highest first, and the picture of its maps.

    The pictures show what each mechanism attends to, which positions of its output speak for the class, and the rollout
    where there are maps among tokens. The images before a damaged one are done when that is met.

    Raises:
        InputError: a name stands for no image, or an image is damaged.
    """
    files = find_images(names)
    predictions = []
    for some in (files[i : i + BATCH] for i in range(0, len(files), BATCH)):
        pixels = read_images(some, **run.format)
        images = jnp.asarray(pixels)
        probabilities = np.asarray(jax.nn.softmax(_logits(run.model, images).astype(jnp.float32)))
        maps = explain.explanations(run.model, images)
        for index, (file, row) in enumerate(zip(some, probabilities, strict=True)):
            picture = out / f"{len(predictions):04}-{file.stem}.png" if maps else None
            if picture:
                _draw(run, pixels, maps, index, picture)
            classes = [(run.class_names[label], float(row[label])) for label in np.argsort(-row)]
            predictions.append({"file": str(file), "classes": classes, "picture": picture and str(picture)})
            shown = "  ".join(f"{name} {probability:.4f}" for name, probability in classes[:CLASSES_SHOWN])
            console.print(f"{file}  {shown}", highlight=False, markup=False, soft_wrap=True)
    return predictions


@nnx.jit
def _logits(model, images):
    return model(images)


def _draw(run, images, maps, index, path):
    """The maps of one image of a batch."""
    one = slice(index, index + 1)
    maps = jax.tree.map(lambda weights: weights[one] if weights.shape[0] == len(images) else weights, maps)
    explain.draw_attention_maps(images[one], maps, path, mean=run.data.mean, std=run.data.std, overlay=True)


EXPERIMENT = runs.Experiment(LABELLED_IMAGES, build_task, draw)

if __name__ == "__main__":
    with runs.error_screen():
        main(runs.parse(PRESETS))
