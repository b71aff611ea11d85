"""Every drop-in mechanism in the same place of the same network: does it train?

    python -m experiments.drop_ins
    python -m experiments.drop_ins se cbam --dataset cifar10 --data-dir FOLDER --out drop_ins.json

AttentionNet with each mechanism, everything else equal, for a few hundred steps: the loss of the first step, the mean
of the last twenty, and the time of a step; or why the mechanism refuses the maps.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import data, runs, training
from attn_flax.catalog import list_attentions
from attn_flax.checks import InputError, UnknownNameError, check
from attn_flax.models import create_model
from attn_flax.tasks import Classification

LAST = 20
HEADINGS = ("mechanism", "first loss", f"last {LAST}", "ms a step")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train AttentionNet with each drop-in mechanism of the catalogue."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Mechanisms to train with; by default all that fit any map."""
    dataset: str = "digits"
    """A labelled image set."""
    data_dir: Path | None = None
    """Where sets are prepared, by default where TFDS keeps them."""
    steps: int = 200
    """Of each training."""
    batch_size: int = 32
    """Of each step."""
    learning_rate: float = 1e-3
    """Adam's."""
    out: Path | None = None
    """The JSON file to write."""


class Losses(training.Callback):
    """The loss of every step."""

    def __init__(self):
        self.values: list[float] = []

    def on_report(self, report: training.Report, state: training.TrainState) -> None:
        """Takes the step's loss."""
        self.values.append(report.metrics["loss"])


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains with each, prints a Markdown table, and returns what `--out` gets.

    Raises:
        InputError: an option is wrong.
        NonFiniteError: a loss or a gradient is not finite.
    """
    console = console or Console()
    check(config.steps >= LAST, f"steps must be at least {LAST}, got {config.steps}.")
    known = list_attentions(drop_in=True)
    names = config.names or known
    for name in names:
        if name not in known:
            raise UnknownNameError("drop-in attention", name, known)
    dataset = data.load_dataset(config.dataset, data_dir=config.data_dir)
    console.print(_row(*HEADINGS), soft_wrap=True)
    console.print(_row(*["---"] * len(HEADINGS)), soft_wrap=True)
    classes, shape = len(dataset.class_names), (*dataset.train[0]["image"].shape[:2], 3)
    results = {}
    for name in names:
        network = create_model("attention_net", num_classes=classes, attention=name, rngs=nnx.Rngs(0))
        if refusal := _refusal(network, shape):
            results[name] = {"refused": refusal}
            console.print(_row(name, f"refused: {refusal}", "", ""), soft_wrap=True, highlight=False)
            continue
        losses, seconds = _trained(network, dataset, shape, config)
        first, last = losses[0], statistics.mean(losses[-LAST:])
        results[name] = {"losses": losses, "first": first, "last": last, "seconds": seconds}
        cells = name, f"{first:.3f}", f"{last:.3f}", f"{1000 * seconds:.1f}"
        console.print(_row(*cells), soft_wrap=True, highlight=False)
    if config.out:
        config.out.write_text(
            json.dumps({"config": dataclasses.asdict(config), "results": results}, default=str) + "\n"
        )
    return results


def _refusal(network, shape):
    """Why it takes no images of this shape, as those whose maps are smaller than its window; None if it takes them."""
    try:
        nnx.eval_shape(network, jax.ShapeDtypeStruct((1, *shape), np.float32))
    except InputError as error:
        return str(error)
    return None


def _trained(network, dataset, shape, config):
    """The losses of all steps, and the median seconds of one."""
    classes = len(dataset.class_names)
    learning = training.Learning(training.create_optimizer("adam", config.learning_rate))
    task = Classification(network, learning, num_classes=classes)
    runner = training.parallelize(task, devices=jax.devices()[:1])
    state = runner.place(task.init(jax.random.key(0)))
    mean, std = data.channel_statistics(dataset.train, 3)
    batches = data.train_batches(
        dataset.train,
        batch_size=config.batch_size,
        seed=0,
        shape=shape,
        mean=mean,
        std=std,
        num_classes=classes,
    )
    losses, times = Losses(), []
    plan = training.Plan(config.steps * config.batch_size, config.batch_size, 1, report_every=1)
    with contextlib.closing(_timed(batches, times)) as timed:
        training.fit(runner, state, timed, plan, callbacks=[losses])
    return losses.values, float(np.median(np.diff(times)))


def _timed(batches, times):
    """The batches; when each was asked for is noted."""
    with contextlib.closing(batches):
        for batch in batches:
            times.append(time.perf_counter())
            yield batch


def parse(argv: list[str] | None = None) -> Config:
    """The configuration that a command line stands for."""
    return tyro.cli(Config, args=argv)


def _row(*cells):
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    with runs.error_screen():
        main(parse())
