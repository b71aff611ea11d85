"""Evaluate a trained run anew: on any split, on any data set of the same classes.

    python -m experiments.evaluate RUN
    python -m experiments.evaluate RUN --split validation
    python -m experiments.evaluate RUN --data.folder PHOTOS --out photos.json

Images are prepared as in the training: its size, mean and standard deviation.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console

from attn_flax import runs, training
from attn_flax.checks import InputError
from attn_flax.tasks import Classification


@dataclasses.dataclass(frozen=True)
class OtherData:
    """Another data set than that of the run."""

    name: str | None = None
    """A classification set of TensorFlow Datasets, or the embedded `digits`."""
    dir: Path | None = None
    """The folder of prepared TFDS sets."""
    folder: Path | None = None
    """A folder of images instead of a named set."""
    max_bad: int = 0
    """How many damaged records to skip."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluate a trained run anew."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    split: Literal["train", "validation", "test"] = "test"
    """Which images; a set without a test split holds some out of its training images."""
    data: OtherData = dataclasses.field(default_factory=OtherData)
    batch_size: int = 64
    """The images of a step, over all devices."""
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
    data = runs.build_data(_data_config(run.data, config.data), batch_size=config.batch_size, tell=runs.teller(console))
    if data.dataset.class_names != run.class_names:
        raise InputError(
            f"{data.dataset.name!r} has other classes than the run: expected {', '.join(run.class_names)}, "
            f"got {', '.join(data.dataset.class_names)}."
        )
    if getattr(data.dataset, config.split) is None:
        raise InputError(f"the run holds no {config.split} split out: expected --split train or test.")
    task = Classification(run.model, training.Learning(training.create_optimizer("sgd", 1.0)), data.num_classes)
    runner = training.parallelize(task)
    runner.check_batch_size(config.batch_size)
    state = runner.place(task.init(jax.random.key(0)))
    sums = training.evaluate(runner, state, data.evaluation_batches(config.split))
    result = {
        "run": str(config.run),
        "step": run.step,
        "data": data.dataset.name,
        "split": config.split,
        "images": int(sums["confusion"].sum()),
        **task.summarize(sums),
    }
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print(
        "{data}, {split}: accuracy {accuracy:.4f} loss {loss:.4f} on {images:,} images, step {step}".format(**result),
        highlight=False,
    )
    return result


def _data_config(own, other):
    own = dataclasses.replace(own, max_bad=other.max_bad, dir=other.dir or own.dir)
    if other.folder:
        return dataclasses.replace(own, folder=other.folder)
    return dataclasses.replace(own, name=other.name, folder=None) if other.name else own


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
