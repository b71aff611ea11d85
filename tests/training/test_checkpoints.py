"""The best checkpoint: which one is kept, bit for bit, while training goes on over its buffers."""

import chex
import jax
import numpy as np
import optax
import pytest

from attn_flax.training import BestCheckpoint, Learning, Report, parallelize
from tests.training.toys import Mean, values

RUNNERS = [("jit", 1), ("jit", 8), ("pmap", 1), ("pmap", 8)]


def report(step, accuracy, loss=1.0, split="validation"):
    return Report(step, step / 2, split, {"accuracy": accuracy, "loss": loss}, 100.0)


def trained(folder, reports, *, task=None, how="jit", devices=1):
    """The restored (step, evaluated), and what was to be evaluated after each step."""
    task = task or Mean()
    runner = parallelize(task, how, jax.devices()[:devices])
    checkpoint = BestCheckpoint(folder, runner, task.score)
    state, history = runner.place(task.init(jax.random.key(0))), {}
    for step, batch in enumerate(values(len(reports), 8), 1):
        state, _ = runner.update(state, runner.put(batch))
        history[step] = jax.tree.map(np.array, runner.fetch(state).evaluated)
        checkpoint.on_report(reports[step - 1], state)
    checkpoint.close()
    step, restored = checkpoint.restore(state)
    return step, runner.fetch(restored).evaluated, history


RISING_AND_FALLING = [report(1, 0.5), report(2, 0.7), report(3, 0.9), report(4, 0.8), report(5, 0.6)]


@pytest.mark.parametrize(("how", "devices"), RUNNERS)
def test_the_best_is_kept_bit_for_bit(tmp_path, how, devices):
    step, restored, history = trained(tmp_path / "best", RISING_AND_FALLING, how=how, devices=devices)
    assert step == 3
    chex.assert_trees_all_equal(restored, history[3])
    assert np.abs(history[3][0]["centre"] - history[5][0]["centre"]).max() > 0.01


@pytest.mark.parametrize(("how", "devices"), RUNNERS)
def test_the_averages_are_what_is_kept(tmp_path, how, devices):
    task = Mean(Learning(optax.sgd(0.3), ema_decay=0.9))
    step, restored, history = trained(tmp_path / "best", RISING_AND_FALLING, task=task, how=how, devices=devices)
    assert step == 3
    chex.assert_trees_all_equal(restored, history[3])


def test_a_network_without_state(tmp_path):
    step, restored, history = trained(tmp_path / "best", RISING_AND_FALLING, task=Mean(stateless=True))
    assert step == 3
    assert restored[1] == {}
    chex.assert_trees_all_equal(restored, history[3])


def test_equals_are_told_apart_by_their_loss(tmp_path):
    reports = [report(1, 0.9, 0.5), report(2, 0.9, 0.3), report(3, 0.9, 0.4), report(4, 0.8, 0.1), report(5, 0.9, 0.3)]
    step, restored, history = trained(tmp_path / "best", reports)
    assert step == 2
    chex.assert_trees_all_equal(restored, history[2])


def test_reports_on_training_do_not_count(tmp_path):
    reports = [report(1, 0.1), report(2, 1.0, 0.0, "train"), report(3, 0.2), report(4, 1.0, 0.0, "train")]
    step, _, _ = trained(tmp_path / "best", reports)
    assert step == 3


def test_only_the_best_stays_on_disk(tmp_path):
    trained(tmp_path / "best", RISING_AND_FALLING)
    assert [path.name for path in (tmp_path / "best").iterdir() if path.is_dir()] == ["3"]


@pytest.mark.parametrize(("how", "devices"), [("jit", 8), ("pmap", 8)])
def test_a_restored_state_can_be_trained_on(tmp_path, how, devices):
    task = Mean()
    runner = parallelize(task, how, jax.devices()[:devices])
    checkpoint = BestCheckpoint(tmp_path / "best", runner, task.score)
    state = runner.place(task.init(jax.random.key(0)))
    kept = np.array(runner.fetch(state).params["centre"])
    checkpoint.save(0, state)
    _, restored = checkpoint.restore(state)
    (batch,) = values(1, 8)
    after, _ = runner.update(restored, runner.put(batch))
    expected = kept - 0.3 * (kept - batch["value"].mean(0))
    np.testing.assert_allclose(runner.fetch(after).params["centre"], expected, rtol=1e-5)
