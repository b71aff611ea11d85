"""How fast the library is beside what people use now, side by side.

    python -m experiments.benchmark                                         every work of the table
    python -m experiments.benchmark attention-4096 'depthwise-*' --torch-python ENV/bin/python --out benchmark.json
    python -m experiments.benchmark --mechanisms article_gate --models attention_net

Each side of a work is a process of its own that stays alive; they take turns, so that one computes at a time, and the
medians over the turns are compared. The first run of a process tells by how much its memory grows at most, that of a
GPU not counted. Sides that need torch or timm are left out where the interpreter has none, and works for a GPU where
JAX sees none.
"""

import contextlib
import dataclasses
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from attn_flax import data, runs
from attn_flax.catalog import list_attentions
from attn_flax.checks import InputError, UnknownNameError, check
from attn_flax.interop import TIMM
from attn_flax.models import list_models
from attn_flax.models.cost import describe_model
from experiments.benchmarking.works import STEP, WORKS, mechanism, model

ROOT = Path(__file__).parent.parent
HEADINGS = (
    *("work", "pass", "side", "median ms", "minimum ms", "ours / its median", "peak MiB"),
    *("images/s", "TFLOP/s of the model"),
)
OPERATIONS = 6
"""Of a step of training for each multiply-add of the network: two forward, and twice as many backward."""
IMPORTS = "import importlib.util, sys, numpy, torch; sys.exit(0 if importlib.util.find_spec({!r}) else 'no {}')"
RATES = (("images_per_second", 1), ("flops", 1e12))
REST = 0.2
"""Seconds between turns, in which the threads of the side before come to rest."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Time works side by side: ours, jax.nn's, flax's, lax's, and PyTorch's and timm's where they are installed."""

    works: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of works, or patterns like 'depthwise-*'; by default all, if no mechanism and no model is named."""
    mechanisms: tuple[str, ...] = ()
    """Mechanisms of the catalogue to time, beside timm's of the same names."""
    models: tuple[str, ...] = ()
    """Networks to time, beside timm's of the same names."""
    mechanism_shape: tuple[int, ...] = (8, 32, 32, 64)
    """Of the input of mechanisms: batch, height, width, channels."""
    model_shape: tuple[int, ...] = (8, 32, 32, 3)
    """Of the input of networks: batch, height, width, channels."""
    torch_python: Path = Path(sys.executable)
    """A Python interpreter that has torch and numpy, and timm if mechanisms or models are compared with it."""
    rounds: int = 9
    """How often each side takes its turn."""
    out: Path | None = None
    """The JSON file to write."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Times all sides in alternation, prints a Markdown table, and returns what `--out` gets.

    Raises:
        InputError: an option is wrong, or nothing that was named can be timed.
    """
    console = console or Console()
    check(config.rounds >= 1, f"rounds must be at least 1, got {config.rounds}.")
    works = _chosen(config)
    missing = _missing(config.torch_python, {side for work in works for side in work.sides} & {"torch", "timm"})
    for side, reason in missing.items():
        console.print(f"{side} is left out: {reason}", highlight=False, soft_wrap=True)
    if any(work.needs_gpu for work in works) and not _sees_gpu():
        works = [work for work in works if not work.needs_gpu]
        console.print("works for a GPU are left out: JAX sees none.", highlight=False)
    console.print(_row(*HEADINGS), soft_wrap=True)
    console.print(_row(*["---"] * len(HEADINGS)), soft_wrap=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for work in works:
            for part in work.passes:
                sides = [side for side in work.sides if side not in missing]
                result = _measured(work, part, sides, config, Path(folder))
                results.append(result)
                for row in _rows(result):
                    console.print(row, highlight=False, markup=False, soft_wrap=True)
    content = {"results": results, "rounds": config.rounds, "cpu_cores": os.cpu_count(), "date": time.strftime("%F")}
    if config.out:
        config.out.write_text(json.dumps(content, indent=2) + "\n")
    return content


def parse(argv: Sequence[str] | None = None) -> Config:
    """The configuration that a command line stands for."""
    return tyro.cli(Config, args=argv)


def _chosen(config):
    asked = config.works or (() if config.mechanisms or config.models else ("*",))
    works = []
    for pattern in asked:
        names = fnmatch.filter(WORKS, pattern)
        if not names:
            raise UnknownNameError("work", pattern, WORKS)
        works += [WORKS[name] for name in names if WORKS[name] not in works]
    for kind, names, known, make, shape in (
        ("attention", config.mechanisms, list_attentions(), _mechanism, config.mechanism_shape),
        ("model", config.models, list_models(), model, config.model_shape),
    ):
        for name in names:
            if name not in known:
                raise UnknownNameError(kind, name, known)
            works.append(make(name, shape))
    return works


def _mechanism(name, shape):
    return mechanism(name, shape, in_timm=name in TIMM)


def _missing(python, sides):
    """Why the interpreter cannot be a side, for those that it cannot be."""
    reasons = {}
    for side in sides:
        try:
            done = subprocess.run([python, "-c", IMPORTS.format(side, side)], capture_output=True, text=True)
        except OSError as error:
            raise InputError(f"--torch-python {python} cannot be run: {error.strerror}.") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"{python} ends with status {done.returncode}"])[-1]
            reasons[side] = f"{reason}; --torch-python PATH names another interpreter."
    return reasons


def _sees_gpu():
    """Asks a process that ends, since one that has asked holds on to the GPU's memory."""
    code = "import jax; print(jax.default_backend())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "gpu"


def _measured(work, part, sides, config, folder):
    arguments = dict(work.arguments)
    if work.function == "epoch":
        arguments["file"] = str(_write_digits(folder / "digits.npz", arguments["batch_size"]))
    with contextlib.ExitStack() as stack:
        processes, answers = {}, {}
        for side in sides:
            spec = {"function": work.function, "side": side, "pass": part, "arguments": arguments}
            process = stack.enter_context(_start(spec, config.torch_python))
            answers[side] = _answer(process)
            check("error" not in answers[side], f"{work.title}, {side}: {answers[side].get('error')}")
            if answers[side]:
                processes[side] = process
        seconds = {side: [] for side in processes}
        for _ in range(config.rounds):
            for side, process in processes.items():
                time.sleep(REST)
                process.stdin.write("run\n")
                process.stdin.flush()
                seconds[side].append(_answer(process))
    median = {side: statistics.median(times) for side, times in seconds.items()}
    return {
        "work": work.title,
        "pass": part,
        "arguments": work.arguments,
        "seconds": seconds,
        "median": median,
        "minimum": {side: min(times) for side, times in seconds.items()},
        "peak_mib": {side: answers[side]["peak_mib"] for side in processes},
        "versions": {side: answers[side]["versions"] for side in processes},
        **(_rates(work.arguments, median) if part == STEP else {}),
    }


def _rates(arguments, median):
    """The images of a second, and the operations of a second that the network needs for them."""
    batch, *size, _ = arguments["shape"]
    operations = OPERATIONS * describe_model(arguments["name"], image_size=tuple(size)).multiply_adds
    images = {side: batch / seconds for side, seconds in median.items()}
    return {"images_per_second": images, "flops": {side: rate * operations for side, rate in images.items()}}


@contextlib.contextmanager
def _start(spec, torch_python) -> Iterator[subprocess.Popen]:
    is_torch = spec["side"] in ("torch", "timm")
    module = "torch_side" if is_torch else "jax_side"
    python = torch_python if is_torch else sys.executable
    command = [python, "-m", f"experiments.benchmarking.{module}", json.dumps(spec)]
    shares_gpu = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | shares_gpu
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _answer(process):
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a side broke off with status {process.wait()}.")
    return json.loads(line)


def _write_digits(path, batch_size):
    """Writes the standardised training images."""
    train = data.load_dataset("digits").train
    mean, std = data.channel_statistics(train, 3)
    (batch,) = data.evaluation_batches(
        train, batch_size=len(train), shape=(8, 8, 3), mean=mean, std=std, num_classes=10
    )
    np.savez(path, image=batch["image"], label=batch["label"])
    return path


def _rows(result):
    ours = next(iter(result["median"].values()))
    for side, median in result["median"].items():
        ratio = "" if median is ours else f"{ours / median:.2f}"
        peak = result["peak_mib"][side]
        yield _row(
            result["work"],
            result["pass"],
            side,
            f"{1000 * median:.1f}",
            f"{1000 * result['minimum'][side]:.1f}",
            ratio,
            "" if peak is None else f"{peak:,.0f}",
            *([f"{result[rate][side] / unit:,.1f}" for rate, unit in RATES] if result["pass"] == STEP else ["", ""]),
        )


def _row(*cells):
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    with runs.error_screen():
        main(parse())
