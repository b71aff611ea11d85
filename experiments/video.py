"""Train a network to recognise what happens in videos, and see what it learned.

    python -m experiments.video                                            TimeSformer on moving digits
    python -m experiments.video --model.arguments temporal=False           the same as a bag of frames
    python -m experiments.video --model.name vivit
    python -m experiments.video --data.name ucf101 --data.dir DIR --data.size 112 112 --data.frames 16

The run folder gets config.json, metrics.jsonl, TensorBoard event files, the best checkpoint, result.json with the test
metrics, and pictures: learning curves, a confusion matrix for each labelling, and strips of frames with the attention
within them and over time.
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
from attn_flax.checks import InputError, check
from attn_flax.data import VIDEOS, Augmentation, read_clip
from attn_flax.tasks import VideoClassification
from attn_flax.tasks.video import cut_logits

CLASSES_SHOWN = 2
STRIPS_DRAWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(runs.TrainingConfig):
    """Train a network to recognise what happens in videos, and see what it learned."""

    task: tyro.conf.Suppress[Literal["video"]] = "video"
    preset: Literal["default"] = "default"
    data: runs.VideoDataConfig = dataclasses.field(default_factory=runs.VideoDataConfig)
    model: runs.ModelConfig = dataclasses.field(default_factory=partial(runs.ModelConfig, name="timesformer"))
    optimizer: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)
    label_smoothing: float = 0.0
    """The share of the target spread evenly over all classes."""


PRESETS = {
    "default": Config(
        data=runs.VideoDataConfig(channels=1, frames=8, stride=2, augment=Augmentation(shift=4)),
        optimizer=runs.OptimizerConfig(learning_rate=2e-3, weight_decay=0.05, warmup=0.1, clip_norm=1.0),
        label_smoothing=0.1,
        epochs=12,
        batch_size=32,
    ),
}


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder; returns the content of result.json.

    Raises:
        InputError: something in the configuration, or a video, is wrong.
        StoppedError: a signal ended the training.
    """
    return runs.conduct(EXPERIMENT, config, console)


def build_task(config: Config, data: runs.TaskData, plan: training.Plan) -> VideoClassification:
    """The classification of the data's videos, in all of its labellings."""
    model = runs.build_model(
        config.model, data.config, num_classes=data.num_classes, rngs=nnx.Rngs(config.seed), tell=data.tell
    )
    learning = runs.build_learning(config.optimizer, plan)
    return VideoClassification(model, learning, _sizes(data.dataset.labellings), config.label_smoothing)


def draw(folder: runs.RunFolder, data: runs.TaskData, trained: runs.Trained, console: Console) -> None:
    """The run's pictures."""
    labellings = data.dataset.labellings
    metrics = ["loss", *(f"{name}_accuracy" for name in labellings)]
    explain.draw_learning_curves(folder.read_metrics(), folder.path / "learning_curves.png", metrics)
    for name, class_names in labellings.items():
        confusion = trained.sums[name]["confusion"]
        explain.draw_confusion_matrix(confusion, class_names, folder.path / f"confusion_matrix_{name}.png")
    model = trained.task.module(trained.state)
    batch = next(iter(data.evaluation_batches("test")))
    for index, frames in enumerate(batch["frames"][batch["weight"] > 0][:STRIPS_DRAWN]):
        path = folder.path / f"strip_{index}.png"
        try:
            _draw_strip(model, frames, path, data.config)
        except InputError as error:
            console.print(f"no strip of frames: {error}", highlight=False)
            return


def predict(run: runs.TrainedRun, names: Sequence[str], out: Path, console: Console) -> list[dict[str, Any]]:
    """For each video its file, the classes of each labelling with their probabilities, highest first, and its strip.

    Args:
        run: what was trained.
        names: animated GIFs, PNGs or WebPs, and folders of frames.
        out: the folder of the strips.
        console: gets a line for each video.

    Raises:
        InputError: there is no name, or a video cannot be read; those before it are done then.
    """
    check(len(names) > 0, "expected videos to look at, got none.")
    predictions = []
    for index, name in enumerate(names):
        frames = read_clip(Path(name), frames=run.data.frames, stride=run.data.stride, **run.format)
        logits = cut_logits(_logits(run.model, jnp.asarray(frames)), _sizes(run.labellings))
        classes = {labelling: _ranked(row, run.labellings[labelling]) for labelling, row in logits.items()}
        picture = out / f"{index:04}-{Path(name).stem}.png"
        _draw_strip(run.model, frames, picture, run.data)
        predictions.append({"file": name, "classes": classes, "picture": str(picture)})
        shown = "   ".join(f"{labelling}: {_shown(ranked)}" for labelling, ranked in classes.items())
        console.print(f"{name}  {shown}", highlight=False, markup=False, soft_wrap=True)
    return predictions


def _sizes(labellings):
    return {name: len(class_names) for name, class_names in labellings.items()}


@nnx.jit
def _logits(model, frames):
    return model(frames)


def _ranked(logits, class_names):
    """The classes with their probabilities, the most probable first."""
    probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32)))
    return [(class_names[label], float(probabilities[label])) for label in np.argsort(-probabilities)]


def _shown(ranked):
    return "  ".join(f"{name} {probability:.4f}" for name, probability in ranked[:CLASSES_SHOWN])


def _draw_strip(model, frames, path, config):
    maps = explain.attention_maps(model, jnp.asarray(frames)[None])
    explain.draw_strip(frames, maps, path, mean=config.mean, std=config.std)


EXPERIMENT = runs.Experiment(VIDEOS, build_task, draw)

if __name__ == "__main__":
    with runs.error_screen():
        main(runs.parse(PRESETS))
