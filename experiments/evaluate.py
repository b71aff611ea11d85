"""Evaluate a trained run anew: on any split, on any data set of the same classes.

    python -m experiments.evaluate RUN
    python -m experiments.evaluate RUN --split validation
    python -m experiments.evaluate RUN --data.folder PHOTOS --out photos.json

Images and videos are prepared as in the training: its size, mean and standard deviation.
"""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console

from attn_flax import runs, training
from attn_flax.checks import InputError


@dataclasses.dataclass(frozen=True)
class OtherData:
    """Another data set than that of the run."""

    name: str | None = None
    """A set of TensorFlow Datasets, or an embedded one."""
    dir: Path | None = None
    """The folder of prepared TFDS sets."""
    folder: Path | None = None
    """A folder of labelled images instead of a named set."""
    max_bad: int = 0
    """How many damaged records to skip."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluate a trained run anew."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    split: Literal["train", "validation", "test"] = "test"
    """Which examples; a set without a test split holds some out of its training images."""
    data: OtherData = dataclasses.field(default_factory=OtherData)
    batch_size: int = 64
    """The examples of a step, over all devices."""
    out: Path | None = None
    """The JSON file to write."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """The metrics.

    Raises:
        InputError: the run or the data cannot be read, or the classes are others.
    """
    console = console or Console()
    runs.keep_compiled_programs()
    run = runs.read_run(config.run)
    module = importlib.import_module(f"experiments.{run.task}")
    experiment = module.EXPERIMENT
    data = runs.build_data(
        _data_config(run.data, config.data),
        kind=experiment.kind,
        batch_size=config.batch_size,
        tell=runs.teller(console),
    )
    if data.class_names != run.class_names:
        raise InputError(
            f"{data.dataset.name!r} has other classes than the run: expected {', '.join(run.class_names)}, "
            f"got {', '.join(data.class_names)}."
        )
    if getattr(data.dataset, config.split) is None:
        raise InputError(f"the run holds no {config.split} split out: expected --split train or test.")
    own = run.folder.read_config(module.Config)
    if run.task == "classification":
        own = dataclasses.replace(own, teacher=None)  # who has no part in it, and may be gone
    task = experiment.build_task(own, data, training.Plan(len(data.dataset.train), config.batch_size, 1))
    if experiment.prepare:
        task = experiment.prepare(own, task, run.folder, console)
    task = dataclasses.replace(task, model=run.model)
    runner = training.parallelize(task)
    runner.check_batch_size(config.batch_size)
    state = runner.place(task.init(jax.random.key(0)))
    counts: list[int] = []
    sums = training.evaluate(runner, state, _counted(data.evaluation_batches(config.split), counts))
    metrics = task.summarize(sums)
    result = {
        "run": str(config.run),
        "step": run.step,
        "data": data.dataset.name,
        "split": config.split,
        "examples": sum(counts),
        **metrics,
    }
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    shown = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    console.print(
        f"{data.dataset.name}, {config.split}: {shown} on {sum(counts):,} examples, step {run.step}", highlight=False
    )
    return result


def _counted(batches, counts):
    """The batches; how many examples each has is noted."""
    for batch in batches:
        counts.append(int(batch["weight"].sum()))
        yield batch


def _data_config(own, other):
    own = dataclasses.replace(own, max_bad=other.max_bad, dir=other.dir or own.dir)
    if other.folder:
        return dataclasses.replace(own, folder=other.folder)
    return dataclasses.replace(own, name=other.name, folder=None) if other.name else own


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
