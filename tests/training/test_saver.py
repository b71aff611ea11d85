"""When checkpoints are written, and that training goes on from any of them as if nothing had been."""

import os
import signal

import chex
import jax
import numpy as np
import pytest

from attn_flax.checks import InputError
from attn_flax.training import (
    Callback,
    Checkpoints,
    NonFiniteError,
    Plan,
    Saver,
    StoppedError,
    StopRequest,
    fit,
    parallelize,
)
from tests.training.networks import plain
from tests.training.toys import Mean, values

PLAN = Plan(examples=24, batch_size=8, epochs=5, report_every=4)  # epochs end with the steps 3, 6, 9, 12 and 15


class Terminator(Callback):
    """Sends SIGTERM after a step."""

    def __init__(self, step):
        self._step = step

    def on_step(self, step, state, tally):
        if step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


class Recorder(Callback):
    """Keeps the reports, and may fail after a step."""

    def __init__(self, *, fail_at=None):
        self.reports, self._fail_at = [], fail_at

    def on_step(self, step, state, tally):
        if step == self._fail_at:
            raise OSError("the disk is full")

    def on_report(self, report, state):
        self.reports.append((report.step, report.split, dict(report.metrics)))


def train(folder, *, how="jit", devices=1, recorder=None, terminate_at=None, validates=True, batches=None, **intervals):
    """Trains in the folder, from the latest checkpoint if there is one; the last state in NumPy and the reports."""
    task, recorder = Mean(), recorder or Recorder()
    runner = parallelize(task, how, jax.devices()[:devices])
    checkpoints = Checkpoints(folder, keep=50)
    state, past = runner.place(task.init(jax.random.key(0))), ()
    if checkpoints.steps:
        restored = checkpoints.restore(runner.portable(state))
        checkpoints.forget_after(restored.step)
        state, past = runner.place(restored.state), restored.past
    start = int(runner.fetch(state.step))

    def validate(state):
        return {"accuracy": -float(np.abs(runner.fetch(state).params["centre"]).sum()), "loss": 0.0}

    with StopRequest() as stop:
        saver = Saver(
            checkpoints,
            runner,
            PLAN,
            score=task.score if validates else None,
            stop=stop,
            **({"every_steps": None, "every_minutes": None} | intervals),
        )
        state = fit(
            runner,
            state,
            batches or values(PLAN.steps - start, 8, start=start),
            PLAN,
            validate=validate if validates else None,
            callbacks=[Terminator(terminate_at), saver, recorder],
            past=past,
        )
    return plain(runner.fetch(state)), recorder.reports


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize(("how", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8), ("fsdp", 8)])
@pytest.mark.parametrize("broken_at", [1, 4, 6, 14, 15])
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, how, devices, broken_at):
    expected, reports = train(tmp_path / "whole", how=how, devices=devices)
    recorder = Recorder()
    with pytest.raises(StoppedError) as caught:
        train(tmp_path / "broken", how=how, devices=devices, recorder=recorder, terminate_at=broken_at)
    assert caught.value.signal == signal.SIGTERM
    assert steps_in(tmp_path / "broken")[-1] == broken_at
    state, rest = train(tmp_path / "broken", how=how, devices=devices)
    chex.assert_trees_all_equal(state, expected)
    assert recorder.reports + rest == reports
    best = [Checkpoints(tmp_path / name).read(best=True)[0] for name in ("whole", "broken")]
    assert best[0] == best[1]


def test_checkpoints_at_intervals_the_best_and_the_last(tmp_path):
    train(tmp_path / "steps", validates=False, every_steps=4)
    assert steps_in(tmp_path / "steps") == [4, 8, 12, 15]
    train(tmp_path / "minutes", validates=False, every_minutes=1e-9)
    assert steps_in(tmp_path / "minutes") == list(range(1, 16))
    train(tmp_path / "last", validates=False)
    assert steps_in(tmp_path / "last") == [15]
    _, reports = train(tmp_path / "best")
    scores = {step: metrics["accuracy"] for step, split, metrics in reports if split == "validation"}
    rising = [step for step in scores if all(scores[step] > scores[other] for other in scores if other < step)]
    assert steps_in(tmp_path / "best") == sorted({*rising, 15})
    assert Checkpoints(tmp_path / "best").best_score == (max(scores.values()), 0.0)


def test_a_fault_loses_no_step(tmp_path):
    with pytest.raises(OSError, match="the disk is full"):
        train(tmp_path / "run", recorder=Recorder(fail_at=8))
    assert steps_in(tmp_path / "run")[-1] == 8
    expected, _ = train(tmp_path / "whole")
    chex.assert_trees_all_equal(train(tmp_path / "run")[0], expected)


def test_the_data_break_off_and_no_step_is_lost(tmp_path):
    def broken():
        yield from values(10, 8)
        raise InputError("a record cannot be read.")

    with pytest.raises(InputError, match="a record cannot be read"):
        train(tmp_path / "run", batches=broken())
    assert steps_in(tmp_path / "run")[-1] == 10


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize(("how", "devices"), [("jit", 1), ("pmap", 8)])
def test_a_divergence_names_step_and_gradients_and_is_not_saved(tmp_path, bad, how, devices):
    def diverging():
        for step, batch in enumerate(values(15, 8), 1):
            batch["value"][5, 1] = bad if step == 8 else batch["value"][5, 1]
            yield batch

    message = r"training diverged at step 8: loss (nan|inf); gradients that are not finite in 1 of 1 leaves: centre\."
    with pytest.raises(NonFiniteError, match=message):
        train(tmp_path / "run", how=how, devices=devices, batches=diverging(), every_steps=5)
    assert steps_in(tmp_path / "run")[-1] == 5
    expected, _ = train(tmp_path / "whole", how=how, devices=devices)
    chex.assert_trees_all_equal(train(tmp_path / "run", how=how, devices=devices)[0], expected)
