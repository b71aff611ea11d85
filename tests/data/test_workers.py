"""Worker processes live as long as the main one: neither signals to all nor its sudden death change that."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.chaos import processes_of

ROOT = Path(__file__).parents[2]
SCRIPT = """
import signal, sys
from attn_flax.data import train_batches
from tests.data.sources import numbered

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    batches = train_batches(
        numbered(20), batch_size=4, seed=0, shape=(5, 3, 1), mean=(0.0,), std=(1.0,), num_classes=10, workers=2
    )
    next(batches)
    print("begun", flush=True)
    for line in sys.stdin:
        seen = sum(len(next(batches)["label"]) for _ in range(50))
        print(seen, flush=True)
    batches.close()
"""


@pytest.fixture
def process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def others(process):
    """The living processes of the same group beside the main one."""
    return [other for other in processes_of(process.pid) if other.pid != process.pid]


def seconds_until_gone(process):
    start = time.monotonic()
    while others(process):
        assert time.monotonic() - start < 10, others(process)
        time.sleep(0.02)
    return time.monotonic() - start


def ask(process):
    process.stdin.write("more\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_workers_die_with_a_killed_main_process(process):
    assert process.stdout.readline() == "begun\n"
    assert len(others(process)) >= 2
    process.kill()
    process.wait()
    assert seconds_until_gone(process) < 5


@pytest.mark.parametrize("delay", [0.5, 1.5])
def test_workers_die_with_a_main_process_killed_while_they_start(process, delay):
    time.sleep(delay)
    process.kill()
    process.wait()
    assert seconds_until_gone(process) < 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_workers_start_do_not_reach_them(process, number):
    while len(others(process)) < 3:  # the resource tracker is one
        time.sleep(0.001)
    for _ in range(20):
        os.killpg(process.pid, number)
        time.sleep(0.01)
    assert process.stdout.readline() == "begun\n"
    assert ask(process) == "200"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_main_process_business(process, number):
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, number)
    assert [ask(process) for _ in range(3)] == ["200"] * 3


def test_a_closed_iterator_leaves_nothing_behind_and_nothing_to_say(process):
    assert process.stdout.readline() == "begun\n"
    assert ask(process) == "200"
    _, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, "")
    assert seconds_until_gone(process) < 1
