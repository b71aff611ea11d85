"""How fast an epoch of the article's network is: this library beside the article's listing, corrected, in PyTorch.

    python -m experiments.benchmark
    python -m experiments.benchmark --torch-python ENV/bin/python --out benchmark.json

Both sides train the same network on the same standardised digits with Adam, in as many whole batches of the same size,
through all of their pipeline: here `data.train_batches` and `training.fit`, there a DataLoader and the usual loop, on
the CPU. Each side is a process that stays alive; they take turns, so that one computes at a time.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from attn_flax import data, runs
from attn_flax.checks import InputError, check

WARM_UP_EPOCHS = 2
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Config:
    """Time an epoch of the article's network on the digits, here and in PyTorch."""

    torch_python: Path = Path(sys.executable)
    """A Python interpreter that has torch and numpy; it needs nothing else."""
    epochs: int = 9
    """The epochs timed on each side, after two that warm it up."""
    batch_size: int = 128
    """The images of a step; the images that fill no batch are left out of an epoch."""
    out: Path | None = None
    """The JSON file to write."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Times both sides in alternation, and returns what `--out` gets.

    Raises:
        InputError: an option is wrong, or the interpreter has no torch.
    """
    console = console or Console()
    check(config.epochs >= 1, f"epochs must be at least 1, got {config.epochs}.")
    _require_torch(config.torch_python)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "digits.npz"
        images = _write_digits(file, config.batch_size)
        commands = {
            "attn_flax": [sys.executable, "-m", "experiments.benchmark_flax"],
            "torch": [config.torch_python, HERE / "benchmark_torch.py"],
        }
        workers = {
            side: stack.enter_context(_start([*command, file, str(config.batch_size)]))
            for side, command in commands.items()
        }
        versions = {side: _answer(worker) for side, worker in workers.items()}
        seconds = {side: [] for side in workers}
        for _ in range(WARM_UP_EPOCHS + config.epochs):
            for side, worker in workers.items():
                seconds[side].append(_epoch(worker))
    seconds = {side: times[WARM_UP_EPOCHS:] for side, times in seconds.items()}
    result = {
        "images": images,
        "batch_size": config.batch_size,
        "seconds": seconds,
        "median": _compare(seconds, statistics.median),
        "minimum": _compare(seconds, min),
        "versions": versions,
        "cpu_cores": os.cpu_count(),
    }
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print(_table(result))
    return result


def parse(argv: Sequence[str] | None = None) -> Config:
    """The configuration that a command line stands for."""
    return tyro.cli(Config, args=argv)


def _require_torch(python):
    try:
        done = subprocess.run([python, "-c", "import numpy, torch"], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--torch-python {python} cannot be run: {error.strerror}.") from None
    if done.returncode:
        raise InputError(
            f"{python} cannot be compared with: {done.stderr.strip().splitlines()[-1]}\n"
            "Name an interpreter that has torch and numpy with --torch-python PATH."
        )


def _write_digits(path, batch_size):
    """Writes the standardised training images; returns how many of them an epoch sees."""
    train = data.load_dataset("digits").train
    images = len(train) // batch_size * batch_size if batch_size >= 1 else 0
    check(images > 0, f"batch_size must be from 1 to {len(train)}, got {batch_size}.")
    mean, std = data.channel_statistics(train, 3)
    (batch,) = data.evaluation_batches(
        train, batch_size=len(train), shape=(8, 8, 3), mean=mean, std=std, num_classes=10
    )
    np.savez(path, image=batch["image"], label=batch["label"])
    return images


def _start(command):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parent
    )


def _epoch(worker):
    worker.stdin.write("epoch\n")
    worker.stdin.flush()
    return _answer(worker)


def _answer(worker):
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a side broke off with status {worker.wait()}.")
    return json.loads(line)


def _compare(seconds, statistic):
    values = {side: statistic(times) for side, times in seconds.items()}
    return values | {"ratio": values["attn_flax"] / values["torch"]}


def _table(result):
    table = Table(
        title=f"An epoch of {result['images']:,} digits in batches of {result['batch_size']}, "
        f"{len(result['seconds']['torch'])} times on {result['cpu_cores']} CPU cores"
    )
    for column in ("seconds", "median", "minimum"):
        table.add_column(column, justify="left" if column == "seconds" else "right")
    for side, versions in result["versions"].items():
        name = ", ".join(f"{package} {version}" for package, version in versions.items())
        table.add_row(name, *(f"{result[statistic][side]:.3f}" for statistic in ("median", "minimum")))
    table.add_section()
    table.add_row("ratio", *(f"{result[statistic]['ratio']:.2f}" for statistic in ("median", "minimum")))
    return table


if __name__ == "__main__":
    with runs.error_screen():
        main(parse())
