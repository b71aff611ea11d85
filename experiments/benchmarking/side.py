"""What all sides of a benchmark do: one process each, which computes when it is told to. The standard library only."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SECONDS_A_TURN = 0.1
"""A turn repeats what takes less, after one run that is not timed: the others had the caches and cores before."""


def serve(run: Callable[[], float], versions: Mapping[str, str]) -> None:
    """Says its versions and peak memory, then answers each line of the standard input with the seconds of one run.

    Args:
        run: computes to the end, and returns how long that took.
        versions: of what computes.
    """
    answer({"versions": dict(versions), "peak_mib": peak_mib(run)})
    repeats = max(1, math.ceil(SECONDS_A_TURN / min(run(), run())))
    for _ in sys.stdin:
        run()
        answer(sum(run() for _ in range(repeats)) / repeats)


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The function as `serve` takes it."""

    def run():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run


def peak_mib(run: Callable[[], object]) -> float | None:
    """By how many MiB the process's memory grows at most meanwhile; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return round((_status("VmHWM") - before) / 1024, 1)
    except OSError:
        run()
        return None


def answer(value: object) -> None:
    """A line of JSON."""
    print(json.dumps(value), flush=True)


def _status(name):
    """KiB of a line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))
