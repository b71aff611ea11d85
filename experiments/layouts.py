"""The losses of one training on every layout of devices and processes, beside those of a single device.

    python -m experiments.layouts
    python -m experiments.layouts --out layouts.json

Each layout is a run of experiments.classification on the digits, on up to eight virtual devices of the CPU, in one or
two processes on this machine.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from attn_flax import runs
from attn_flax.checks import check

ROOT = Path(__file__).parent.parent
SHOWN = (1, 5, 10, 20)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a training computes."""

    parallel: str = "jit"
    devices: int = 8
    fsdp: int | None = None
    processes: int = 1

    def __str__(self):
        mesh = f"fsdp, {self.devices // self.fsdp} × {self.fsdp}" if self.fsdp else self.parallel
        devices = f"{self.devices} devices" if self.devices > 1 else "1 device"
        return f"{mesh}, {devices}" + (f" of {self.processes} processes" if self.processes > 1 else "")


LAYOUTS = (
    Layout(devices=1),
    Layout(),
    *(Layout("fsdp", fsdp=fsdp) for fsdp in (1, 2, 8)),
    Layout("pmap"),
    Layout(processes=2),
    *(Layout("fsdp", fsdp=fsdp, processes=2) for fsdp in (2, 8)),
    Layout("pmap", processes=2),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the losses of all layouts of devices and processes."""

    epochs: int = 1
    """Of each run; one is 21 steps."""
    out: Path | None = None
    """The JSON file to write."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains on each layout, compares it with the first in a Markdown table, and returns what `--out` gets."""
    check(config.epochs >= 1, f"epochs must be at least 1, got {config.epochs}.")
    console = console or Console()
    console.print(_row("layout", *(f"step {step}" for step in SHOWN), "largest difference"), soft_wrap=True)
    console.print(_row(*["---"] * (len(SHOWN) + 2)), soft_wrap=True)
    losses, differences = {}, {}
    for layout in LAYOUTS:
        name, trained = str(layout), np.array(_trained(layout, config.epochs))
        differences[name] = float(abs(trained - next(iter(losses.values()), trained)).max())
        losses[name] = trained.tolist()
        shown = (f"{losses[name][step - 1]:.6f}" for step in SHOWN)
        console.print(_row(name, *shown, f"{differences[name]:.1e}"), soft_wrap=True, highlight=False)
    result = {"losses": losses, "largest_difference": differences, **runs.environment()}
    if config.out:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _trained(layout, epochs):
    """The loss of every step."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        port = _free_port()
        processes = [
            stack.enter_context(_start(_command(layout, epochs, folder, port, index), layout))
            for index in range(layout.processes)
        ]
        outcomes = [process.communicate()[0] for process in processes]
        for process, shown in zip(processes, outcomes, strict=True):
            if process.returncode:
                raise RuntimeError(f"{layout} ended with status {process.returncode}:\n{shown}")
        records = runs.RunFolder(Path(folder) / "run").read_metrics()
    return [record["loss"] for record in records if record["split"] == "train"]


def _command(layout, epochs, folder, port, index):
    command = [
        *(sys.executable, "-m", "experiments.classification", "--run", f"{folder}/run"),
        *("--epochs", str(epochs), "--report-every", "1", "--parallel", layout.parallel),
    ]
    if layout.fsdp:
        command += ["--fsdp-devices", str(layout.fsdp)]
    if layout.processes > 1:
        command += ["--distributed.coordinator", f"127.0.0.1:{port}"]
        command += ["--distributed.num-processes", str(layout.processes), "--distributed.process-id", str(index)]
    return command


def _start(command, layout):
    devices = layout.devices // layout.processes
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "NPROC": str(2 * devices),  # with one thread for each, XLA of jax 0.10 can wait for ever in a collective
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _row(*cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
