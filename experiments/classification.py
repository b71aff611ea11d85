"""Train an image classifier with attention, and see what it learned.

    python -m experiments.classification                                   the article's network on scanned digits
    python -m experiments.classification --preset article                  the article's recipe to the letter
    python -m experiments.classification --data.name cifar10 --data.dir DIR

The run folder gets config.json, metrics.jsonl, TensorBoard event files, the best checkpoint, result.json with the test
accuracy, and pictures: learning curves, the confusion matrix, attention maps beside their inputs.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from attn_flax import explain, runs, training
from attn_flax.checks import InputError
from attn_flax.data import Augmentation
from attn_flax.tasks import Classification

IMAGES_DRAWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(runs.TrainingConfig):
    """Train an image classifier with attention, and see what it learned."""

    preset: Literal["default", "article"] = "default"
    """What the other options start from: our recipe for the article's network, or the article's own."""
    data: runs.DataConfig = dataclasses.field(default_factory=runs.DataConfig)
    model: runs.ModelConfig = dataclasses.field(default_factory=runs.ModelConfig)
    optimizer: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)
    label_smoothing: float = 0.0
    """The share of the target spread evenly over all classes."""
    mixup: float = 0.0
    """α of mixup; 0 for none."""
    cutmix: float = 0.0
    """α of CutMix; 0 for none. With both, each batch takes one of them."""


PRESETS = {
    "default": Config(
        data=runs.DataConfig(augment=Augmentation(shift=1)),
        model=runs.ModelConfig(arguments=("activation=relu",)),
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
    start = time.perf_counter()
    runs.connect(config.distributed)
    runs.keep_compiled_programs()
    console = runs.quiet_unless_first(console)
    runs.check_training(config)
    if runs.is_finished(config):
        console.print(f"{config.run} is finished: there is nothing left to do.", soft_wrap=True)
        return runs.RunFolder(config.run).read_json("result.json")
    data = runs.build_data(config.data, batch_size=config.batch_size, tell=runs.teller(console))
    plan = training.Plan(len(data.dataset.train), config.batch_size, config.epochs, config.report_every)
    model = runs.build_model(
        config.model, num_classes=data.num_classes, in_channels=config.data.channels, rngs=nnx.Rngs(config.seed)
    )
    learning = runs.build_learning(config.optimizer, plan)
    task = Classification(model, learning, data.num_classes, config.label_smoothing, config.mixup, config.cutmix)
    runner = training.parallelize(task, config.parallel, fsdp=config.fsdp_devices)
    runner.check_batch_size(config.batch_size)

    name = data.dataset.name.replace("/", "-")  # of cmaterdb/bangla
    folder = runs.RunFolder.open(config.run, name=f"{name}-{config.model.name}", resume=config.resume)
    with runs.resumable(folder):
        folder.write_json("classes.json", data.dataset.class_names)
        folder.write_json("config.json", dataclasses.replace(config, data=data.config))
        step, state = runs.train(config, task, runner, data, plan, folder, console)
        sums = training.evaluate(runner, state, data.evaluation_batches("test"))
        result = {
            "test": task.summarize(sums),
            "step": step,
            "epochs": config.epochs,
            "skipped_records": data.bad.count,
            "parameters": sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))),
            "seed": config.seed,
            "wall_seconds": round(time.perf_counter() - start, 2),
            **runs.environment(),
        }
        best = task.module(runner.fetch(state))
        if runs.is_first():
            draw(folder, data, best, sums["confusion"], console)
        folder.write_json("result.json", result)
    accuracy, loss = result["test"]["accuracy"], result["test"]["loss"]
    console.print(
        f"test accuracy {accuracy:.4f} loss {loss:.4f} after step {step} of {plan.steps}\n{folder.path}",
        highlight=False,
        soft_wrap=True,
    )
    return result


def draw(
    folder: runs.RunFolder, data: runs.ImageData, model: nnx.Module, confusion: np.ndarray, console: Console
) -> None:
    """The run's pictures."""
    explain.draw_learning_curves(folder.read_metrics(), folder.path / "learning_curves.png")
    explain.draw_confusion_matrix(confusion, data.dataset.class_names, folder.path / "confusion_matrix.png")
    batch = next(iter(data.evaluation_batches("test")))
    images = batch["image"][batch["weight"] > 0][:IMAGES_DRAWN]
    try:
        maps = explain.attention_maps(model, jnp.asarray(images))
    except InputError as error:
        console.print(f"no attention maps: {error}", highlight=False)
        return
    if maps:
        path = folder.path / "attention_maps.png"
        explain.draw_attention_maps(images, maps, path, mean=data.config.mean, std=data.config.std)


if __name__ == "__main__":
    with runs.error_screen():
        main(runs.parse(PRESETS))
