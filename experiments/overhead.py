"""What the loop costs: training through all of it beside the bare jitted step with its data in memory.

    python -m experiments.overhead --data.name cifar10 --data.dir DIR

In one process and in alternation: the compiled step on batches that are on the device already, then `training.fit` with
reports, event files, metrics, a watchdog and a checkpoint, with 0 and with 2 data workers. Medians over the rounds.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import runs, training
from attn_flax.tasks import Classification

WORKERS = (0, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the training loop beside the bare step."""

    data: runs.DataConfig = dataclasses.field(default_factory=lambda: runs.DataConfig(name="cifar10", validation=0.0))
    model: runs.ModelConfig = dataclasses.field(default_factory=runs.ModelConfig)
    batch_size: int = 128
    """The images of a step."""
    steps: int = 24
    """The steps of a round, which ends with a report and a checkpoint."""
    rounds: int = 7
    """How often each side is timed, after one round that warms it up."""
    out: Path | None = None
    """The JSON file to write."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Times the sides in alternation, and returns what `--out` gets."""
    console = console or Console()
    data = runs.build_data(config.data, batch_size=config.batch_size)
    model = runs.build_model(config.model, data.config, num_classes=data.num_classes, rngs=nnx.Rngs(0))
    learning = training.Learning(training.create_optimizer("adamw", 1e-3))
    task = Classification(model, learning, data.num_classes)
    runner = training.parallelize(task, devices=jax.devices()[:1])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {"bare step": _bare(runner, task, data, config)}
        for workers in WORKERS:
            loop = _loop(runner, task, data, config, workers, folder / str(workers))
            sides[f"loop, {workers} workers"] = stack.enter_context(contextlib.closing(loop))
        seconds = {side: [] for side in sides}
        for _ in range(1 + config.rounds):
            for side, rounds in sides.items():
                seconds[side].append(next(rounds) / config.steps)
    seconds = {side: times[1:] for side, times in seconds.items()}
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    result = {
        "seconds_per_step": seconds,
        "median": medians,
        "ratio": {side: median / medians["bare step"] for side, median in medians.items()},
        "batch_size": config.batch_size,
        "load": os.getloadavg()[0],
        **runs.environment(),
    }
    for side, median in medians.items():
        console.print(f"{side}: {1000 * median:.1f} ms a step, ratio {result['ratio'][side]:.3f}", highlight=False)
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _bare(runner, task, data, config):
    with contextlib.closing(data.train_batches(seed=0)) as batches:
        ready = [runner.put(batch) for batch in itertools.islice(batches, config.steps)]
    state = runner.place(task.init(jax.random.key(0)))
    while True:
        start = time.perf_counter()
        for batch in ready:
            state, _ = runner.update(state, batch)
        jax.block_until_ready(state)
        yield time.perf_counter() - start


def _loop(runner, task, data, config, workers, folder):
    folder.mkdir()
    checkpoints = training.Checkpoints(folder / "checkpoints")
    data = dataclasses.replace(data, config=dataclasses.replace(data.config, workers=workers))
    state = runner.place(task.init(jax.random.key(0)))
    with contextlib.closing(data.train_batches(seed=0)) as batches:
        for turn in itertools.count(1):
            plan = training.Plan(config.steps * config.batch_size, config.batch_size, turn, config.steps)
            callbacks = [
                training.Saver(
                    checkpoints,
                    runner,
                    plan,
                    score=None,
                    stop=training.StopRequest(),
                    every_steps=None,
                    every_minutes=None,
                ),
                training.Watchdog(600, folder / "hung.txt", print),
                training.ProgressBar(plan, Console(quiet=True)),
                training.MetricsFile(folder / "metrics.jsonl"),
                training.EventFiles(folder),
            ]
            start = time.perf_counter()
            state = training.fit(runner, state, batches, plan, callbacks=callbacks)
            jax.block_until_ready(state)
            yield time.perf_counter() - start


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
