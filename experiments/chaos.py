"""Kill a training at random moments, go on with it each time, and compare with one that nobody disturbed.

    python -m experiments.chaos --kills 50
    python -m experiments.chaos --kills 10 --workers 2 --parallel pmap

Runs of experiments.classification on the digits are ended by kill -9, SIGTERM or Ctrl-C and taken up again until so
many have been ended; whenever one reaches its end, another begins. Each must go on where its last finished checkpoint
is, leave no process behind, and end with the state, the metrics and the result of the undisturbed run, bit for bit.
"""

import collections
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from rich.console import Console

from attn_flax import runs, training
from attn_flax.checks import InputError, check
from attn_flax.training.parallel import Parallelism

ROOT = Path(__file__).parent.parent
SIGNALS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.15, signal.SIGINT: 0.15}
SECONDS_TO_DISAPPEAR = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Kill a training at random moments, go on with it each time, and compare with one that nobody disturbed."""

    kills: int = 50
    """How often to end a run."""
    seed: int = 0
    """Of the moments and the signals."""
    epochs: int = 4
    """Of each run."""
    checkpoint_steps: int = 4
    """Steps between checkpoints; with few, many kills fall into a save."""
    workers: int = 0
    """Processes that prepare the data, in every second start; the others use none."""
    parallel: Parallelism = "jit"
    """Where each run computes."""
    folder: Path | None = None
    """Where to keep the runs; by default a temporary folder that is removed."""


class DifferenceError(InputError):
    """A run that was disturbed is not what it would have been."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """The campaign's figures.

    Raises:
        DifferenceError: a run differs from the undisturbed one, lost more than it may, or left a process behind.
    """
    check(config.kills >= 1, f"kills must be at least 1, got {config.kills}.")
    console = console or Console()
    with contextlib.ExitStack() as stack:
        folder = config.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _campaign(config, folder, console)


def _campaign(config, folder, console):
    rng = np.random.default_rng(config.seed)
    start = time.monotonic()
    undisturbed = Run(config, folder / "undisturbed")
    undisturbed.go_on(kill_after=None)
    expected, seconds = undisturbed.outcome(), time.monotonic() - start
    console.print(f"undisturbed: {seconds:.0f} s, {expected['step']} steps", highlight=False)
    kills, resumed, finished = collections.Counter(), [], 0
    while kills.total() < config.kills:
        run = Run(config, folder / f"disturbed-{finished}")
        while not run.is_finished():
            number = signal.Signals(rng.choice(list(SIGNALS), p=list(SIGNALS.values())))
            last = kills.total() == config.kills
            ended = run.go_on(kill_after=None if last else rng.uniform(0, seconds), number=number)
            resumed.append(run.resumed_from)
            if ended:
                kills[number.name] += 1
                console.print(
                    f"{kills.total()}/{config.kills}  {number.name} after {run.lived:.1f} s; "
                    f"began at step {run.resumed_from}, checkpoints {run.checkpoints()}",
                    highlight=False,
                )
        compare(run.outcome(), expected)
        shutil.rmtree(run.folder)
        finished += 1
    result = {
        "kills": dict(kills),
        "runs": finished,
        "starts": len(resumed),
        "starts_from_a_checkpoint": sum(step > 0 for step in resumed),
        "steps": expected["step"],
        "seconds": round(time.monotonic() - start),
    }
    console.print(f"{finished} runs, each bit for bit the undisturbed one: {json.dumps(result)}", highlight=False)
    return result


class Run:
    """A run that is started again and again."""

    def __init__(self, config, folder):
        self._config = config
        self.folder = folder
        self._starts = 0

    def go_on(self, kill_after, number=signal.SIGKILL):
        """Starts the run or goes on with it; whether it was ended by the signal before its own end."""
        before = self.checkpoints()
        start = time.monotonic()
        process = subprocess.Popen(
            self._command(),
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._starts += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=kill_after)
        ended = process.poll() is None
        if ended:
            self._end(process, number)
        shown, _ = process.communicate()
        self.lived = time.monotonic() - start
        self._check_end(process, ended and number, shown)
        self._check_step(before, shown)
        return ended

    def is_finished(self):
        """Whether it came to its end."""
        return (self.folder / "result.json").exists()

    def checkpoints(self):
        """The steps of its finished checkpoints."""
        path = self.folder / "checkpoints"
        return sorted(int(entry.name) for entry in path.iterdir() if entry.name.isdigit()) if path.exists() else []

    def outcome(self):
        """What two runs must have in common."""
        step, leaves = training.Checkpoints(self.folder / "checkpoints", read_only=True).read()
        folder = runs.RunFolder(self.folder)
        result, records = folder.read_json("result.json"), folder.read_metrics()
        for record in records:
            del record["examples_per_second"]
        return {"step": step, "leaves": leaves, "test": result["test"], "best": result["step"], "metrics": records}

    def _command(self):
        workers = self._config.workers * (self._starts % 2)
        return [
            *(sys.executable, "-m", "experiments.classification", "--run", self.folder, "--resume"),
            *("--epochs", str(self._config.epochs), "--parallel", self._config.parallel),
            *("--report-every", "7", "--data.workers", str(workers), "--optimizer.ema-decay", "0.9"),
            *("--checkpoint.every-steps", str(self._config.checkpoint_steps)),
        ]

    def _end(self, process, number):
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)

    def _check_end(self, process, number, shown):
        expected = {False: (0,), signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15, 0), signal.SIGINT: (130, -2, 0)}
        if process.returncode not in expected[number]:
            raise DifferenceError(
                f"the run ended with status {process.returncode}, expected {expected[number]}:\n{shown}"
            )
        deadline = time.monotonic() + SECONDS_TO_DISAPPEAR
        while left := processes_of(process.pid):
            if time.monotonic() > deadline:
                raise DifferenceError(f"{len(left)} processes were left behind: {left}")
            time.sleep(0.05)

    def _check_step(self, before, shown):
        found = re.search(r"going on after step (\d+)", shown)
        self.resumed_from = int(found[1]) if found else 0
        if found and self.resumed_from != max(before):
            raise DifferenceError(f"went on after step {self.resumed_from}, expected the last checkpoint of {before}.")


def processes_of(group: int) -> list[psutil.Process]:
    """The living processes of a process group."""
    living = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def compare(outcome: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises DifferenceError unless two runs had the same outcome, bit for bit."""
    for name in ("step", "best", "test", "metrics"):
        if outcome[name] != expected[name]:
            raise DifferenceError(f"{name}: expected {expected[name]}, got {outcome[name]}")
    for name, leaf in expected["leaves"].items():
        if leaf.tobytes() != outcome["leaves"][name].tobytes():
            raise DifferenceError(f"{name} differs: expected {leaf}, got {outcome['leaves'][name]}")


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
