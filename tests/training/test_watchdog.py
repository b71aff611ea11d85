"""The watchdog tells of what hangs, and of nothing else."""

import threading
import time

import jax

from attn_flax.training import Tally, Watchdog, parallelize
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
