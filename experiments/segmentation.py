"""Train a network to tell the class of every pixel, and see what it learned.

    python -m experiments.segmentation                                     a U-Net with attention gates on digit scenes
    python -m experiments.segmentation --model.arguments gates=False       the same without gates
    python -m experiments.segmentation --data.name camvid --data.dir DIR --model.name resnet18_segmenter
    python -m experiments.segmentation --model.name segmenter_tiny_patch16 --model.arguments patch_size=8

The run folder gets config.json, metrics.jsonl, TensorBoard event files, the best checkpoint, result.json with the test
metrics, class_iou.json with the IoU of each class, and pictures: learning curves, the confusion matrix, masks beside
their images, attention maps. A class that is called "background" is left out of the foreground's IoU.
"""

import dataclasses
import math
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
from attn_flax.data import MASKS, Augmentation, find_images, read_images
from attn_flax.tasks import Segmentation
from attn_flax.tasks.segmentation import class_iou, predict_mask

BACKGROUND = "background"
CLASSES_SHOWN = 5
CURVES = ("loss", "accuracy", "mean_iou", "foreground_iou")
IMAGES_DRAWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(runs.TrainingConfig):
    """Train a network to tell the class of every pixel, and see what it learned."""

    task: tyro.conf.Suppress[Literal["segmentation"]] = "segmentation"
    preset: Literal["default"] = "default"
    data: runs.DataConfig = dataclasses.field(default_factory=partial(runs.DataConfig, name="digit_scenes"))
    model: runs.ModelConfig = dataclasses.field(default_factory=partial(runs.ModelConfig, name="unet_small"))
    optimizer: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)


PRESETS = {
    "default": Config(
        data=runs.DataConfig(name="digit_scenes", augment=Augmentation(permute_colors=True, invert=True)),
        optimizer=runs.OptimizerConfig(
            learning_rate=3e-3, warmup=0.1, weight_decay=0.01, clip_norm=1.0, ema_decay=0.99
        ),
        epochs=15,
        batch_size=16,
    ),
}


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder; returns the content of result.json.

    Raises:
        InputError: something in the configuration, or an image, is wrong.
        StoppedError: a signal ended the training.
    """
    return runs.conduct(EXPERIMENT, config, console)


def build_task(config: Config, data: runs.TaskData, plan: training.Plan) -> Segmentation:
    """The segmentation of the data's images."""
    model = runs.build_model(
        config.model, data.config, num_classes=data.num_classes, rngs=nnx.Rngs(config.seed), tell=data.tell
    )
    learning = runs.build_learning(config.optimizer, plan)
    names = data.class_names
    return Segmentation(model, learning, background=names.index(BACKGROUND) if BACKGROUND in names else None)


def draw(folder: runs.RunFolder, data: runs.TaskData, trained: runs.Trained, console: Console) -> None:
    """The run's pictures, and the IoU of each class."""
    explain.draw_learning_curves(folder.read_metrics(), folder.path / "learning_curves.png", CURVES)
    confusion = np.asarray(trained.sums["confusion"], np.float64)
    explain.draw_confusion_matrix(confusion, data.class_names, folder.path / "confusion_matrix.png")
    ious = zip(data.class_names, class_iou(confusion).tolist(), strict=True)
    folder.write_json("class_iou.json", {name: None if math.isnan(iou) else round(iou, 4) for name, iou in ious})
    batch = next(iter(data.evaluation_batches("test")))
    images, truth = (batch[key][batch["weight"] > 0][:IMAGES_DRAWN] for key in ("image", "mask"))
    model = trained.task.module(trained.state)
    standardized = {"mean": data.config.mean, "std": data.config.std}
    masks = {"truth": truth, "prediction": np.asarray(predict_mask(model, jnp.asarray(images)))}
    explain.draw_masks(images, masks, data.class_names, folder.path / "masks.png", **standardized)
    runs.draw_maps(folder, model, images, data.config, console)


def predict(run: runs.TrainedRun, names: Sequence[str], out: Path, console: Console) -> list[dict[str, Any]]:
    """For each image its file, the share of its pixels that each class has, largest first, and its picture.

    Raises:
        InputError: a name stands for no image, or an image is damaged; those before it are done then.
    """
    predictions = []
    for index, file in enumerate(find_images(names)):
        image = read_images([file], **run.format)
        mask = np.asarray(_masks(run.model, jnp.asarray(image)))
        picture = out / f"{index:04}-{file.stem}.png"
        standardized = {"mean": run.data.mean, "std": run.data.std}
        explain.draw_masks(image, {"prediction": mask}, run.class_names, picture, **standardized)
        shares = np.bincount(mask.ravel(), minlength=len(run.class_names)) / mask.size
        classes = [(run.class_names[label], float(shares[label])) for label in np.argsort(-shares) if shares[label]]
        predictions.append({"file": str(file), "classes": classes, "picture": str(picture)})
        shown = "  ".join(f"{name} {share:.4f}" for name, share in classes[:CLASSES_SHOWN])
        console.print(f"{file}  {shown}", highlight=False, markup=False, soft_wrap=True)
    return predictions


@nnx.jit
def _masks(model, images):
    return predict_mask(model, images)


EXPERIMENT = runs.Experiment(MASKS, build_task, draw)

if __name__ == "__main__":
    with runs.error_screen():
        main(runs.parse(PRESETS))
