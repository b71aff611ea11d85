r"""Train a detection transformer to find objects in images, and see what it found.

    python -m experiments.detection                                        digits on photographs
    python -m experiments.detection --preset plain                         the same by DETR without additions
    python -m experiments.detection --data.name bccd --data.dir DIR --data.size 128 128 --data.max-boxes 30 \
        --model.arguments num_queries=40 two_stage=True refine=True modulate=True focal=True

The run folder gets config.json, metrics.jsonl, TensorBoard event files, the best checkpoint, result.json with the
average precisions of the test split, and pictures: learning curves, boxes beside the truth, attention maps. Average
precision needs pycocotools, the extra `detection`. A detector needs as many queries as an image may have boxes.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import explain, runs, training
from attn_flax.data import BOXES, Augmentation, find_images, in_pixels_of_file, read_images
from attn_flax.tasks import Detection
from attn_flax.tasks.detection import Detections, in_pixels, load_pycocotools, predict_boxes

CURVES = ("loss", "ap", "ap50")
IMAGES_DRAWN = 8
THRESHOLD = 0.5
"""The least score of a box that is printed and drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(runs.TrainingConfig):
    """Train a detection transformer to find objects in images, and see what it found."""

    task: tyro.conf.Suppress[Literal["detection"]] = "detection"
    preset: Literal["default", "plain"] = "default"
    """What the other options start from: DETR with additions that make it learn fast, or DETR as it was first."""
    data: runs.BoxDataConfig = dataclasses.field(default_factory=runs.BoxDataConfig)
    model: runs.ModelConfig = dataclasses.field(default_factory=partial(runs.ModelConfig, name="detr_small"))
    optimizer: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)
    denoising: int = 0
    """How many groups of denoising queries learn beside the others."""
    label_noise: float = 0.2
    """The share of the denoising queries whose class is any."""


ADDITIONS = ("two_stage=True", "refine=True", "modulate=True", "focal=True")
PLAIN = Config(
    preset="plain",
    data=runs.BoxDataConfig(max_boxes=6, augment=Augmentation(shift=4, permute_colors=True, invert=True)),
    model=runs.ModelConfig(name="detr_small"),
    optimizer=runs.OptimizerConfig(learning_rate=1e-3, warmup=0.03, weight_decay=0.05, clip_norm=1.0, ema_decay=0.998),
    epochs=18,
    batch_size=16,
)
PRESETS = {
    "default": dataclasses.replace(
        PLAIN,
        preset="default",
        model=runs.ModelConfig(name="detr_small", arguments=ADDITIONS),
        denoising=4,
        label_noise=0.8,
    ),
    "plain": PLAIN,
}


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder; returns the content of result.json.

    Raises:
        InputError: something in the configuration, or a record, is wrong.
        StoppedError: a signal ended the training.
    """
    return runs.conduct(EXPERIMENT, config, console)


def build_task(config: Config, data: runs.TaskData, plan: training.Plan) -> Detection:
    """The detection of the data's objects, once it is known that they can be counted."""
    load_pycocotools()
    model = runs.build_model(
        config.model, data.config, num_classes=data.num_classes, rngs=nnx.Rngs(config.seed), tell=data.tell
    )
    learning = runs.build_learning(config.optimizer, plan)
    return Detection(model, learning, denoising=config.denoising, label_noise=config.label_noise)


def draw(folder: runs.RunFolder, data: runs.TaskData, trained: runs.Trained, console: Console) -> None:
    """The run's pictures."""
    explain.draw_learning_curves(folder.read_metrics(), folder.path / "learning_curves.png", CURVES)
    batch = next(iter(data.evaluation_batches("test")))
    images, boxes, labels = (batch[key][batch["weight"] > 0][:IMAGES_DRAWN] for key in ("image", "boxes", "labels"))
    model = trained.task.module(trained.state)
    standardized = {"mean": data.config.mean, "std": data.config.std}
    size = data.config.size
    there = Detections(*map(jnp.asarray, (boxes, labels, (labels >= 0).astype(np.float32))))
    sets = {
        "truth": [(corners, names, None) for corners, names, _ in in_pixels(there, size, threshold=1.0)],
        "found": in_pixels(predict_boxes(model, jnp.asarray(images)), size, threshold=THRESHOLD),
    }
    explain.draw_boxes(images, sets, data.class_names, folder.path / "boxes.png", **standardized)
    runs.draw_maps(
        folder, model, images, data.config, console, over_images=lambda path: not path.endswith("self_attention")
    )


def predict(run: runs.TrainedRun, names: Sequence[str], out: Path, console: Console) -> list[dict[str, Any]]:
    """For each image its file, what was found, the surest first, with boxes in pixels of the file, and its picture.

    Raises:
        InputError: a name stands for no image, or an image is damaged; those before it are done then.
    """
    predictions = []
    for index, file in enumerate(find_images(names)):
        image = read_images([file], **run.format)
        (found,) = in_pixels(_found(run.model, jnp.asarray(image)), run.data.size, threshold=THRESHOLD)
        picture = out / f"{index:04}-{file.stem}.png"
        standardized = {"mean": run.data.mean, "std": run.data.std}
        explain.draw_boxes(image, {"found": [found]}, run.class_names, picture, **standardized)
        boxes = in_pixels_of_file(found.boxes, file, size=run.data.size)
        objects = [
            {"class": run.class_names[label], "score": float(score), "box": box.tolist()}
            for box, label, score in zip(boxes, found.labels, found.scores, strict=True)
        ]
        predictions.append({"file": str(file), "objects": objects, "picture": str(picture)})
        shown = "  ".join(f"{one['class']} {one['score']:.4f}" for one in objects) or "nothing"
        console.print(f"{file}  {shown}", highlight=False, markup=False, soft_wrap=True)
    return predictions


@nnx.jit
def _found(model, images):
    return predict_boxes(model, images)


EXPERIMENT = runs.Experiment(BOXES, build_task, draw)

if __name__ == "__main__":
    with runs.error_screen():
        main(runs.parse(PRESETS))
