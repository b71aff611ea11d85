"""The watchdog tells of what hangs, and of nothing else."""

import threading
import time

import jax
import pytest

from attn_flax.training import Tally, Watchdog, parallelize
from tests.processes import in_two_processes
from tests.training.toys import Mean


def hang(seconds):
    threading.Event().wait(seconds)


def test_a_step_that_hangs_is_told_of_with_the_stacks(tmp_path):
    told = []
    runner = parallelize(Mean(), "jit", jax.devices()[:1])
    state = runner.place(Mean().init(jax.random.key(0)))
    tally = Tally(runner, state)
    watchdog = Watchdog(0.3, tmp_path / "hung.txt", told.append)
    watchdog.on_step(7, state, tally)
    hang(1.8)  # tells after 0.3, 0.6 and 1.2 s
    watchdog.close()
    assert len(told) == 3
    assert told[0] == (
        f"no progress for 0 s after step 7 was handed to the devices: "
        f"the stacks of all threads are in {tmp_path / 'hung.txt'}."
    )
    stacks = (tmp_path / "hung.txt").read_text()
    assert "in hang" in stacks
    assert stacks.count("Current thread") + stacks.count("Thread 0x") >= 6


def test_progress_keeps_it_quiet(tmp_path):
    told = []
    watchdog = Watchdog(0.3, tmp_path / "hung.txt", told.append)
    for _ in watchdog.watch(range(8)):
        time.sleep(0.1)
    watchdog.close()
    assert told == []
    assert not (tmp_path / "hung.txt").exists()


def test_a_step_after_a_hang_starts_its_patience_anew(tmp_path):
    told = []
    watchdog = Watchdog(0.2, tmp_path / "hung.txt", told.append)
    for _ in range(2):
        watchdog.beat()
        hang(0.3)
    watchdog.close()
    assert len(told) == 2


@pytest.mark.full
def test_a_collective_that_hangs_is_told_of_by_all_that_wait_in_it(tmp_path):
    outputs = in_two_processes("tests.training.hung_process", tmp_path)
    for process, (output, handed) in enumerate(zip(outputs, (3, 2), strict=True)):
        path = tmp_path / f"hung-{process}.txt"
        assert f"no progress for 2 s after step {handed} was handed to the devices: the stacks of all" in output
        assert ("block_until_ready" in path.read_text()) == (process == 0)
