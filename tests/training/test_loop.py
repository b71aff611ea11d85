"""The plan's arithmetic, what callbacks are told and when, and that evaluation counts each example once."""

import itertools

import chex
import jax
import numpy as np
import pytest

from attn_flax.checks import InputError
from attn_flax.data import evaluation_batches
from attn_flax.training import Callback, Plan, evaluate, fit, parallelize
from tests.data.sources import numbered
from tests.training.toys import Mean, values

PLAN = Plan(examples=23, batch_size=5, epochs=3, report_every=4)  # epochs end with the steps 5, 10 and 14


class Recorder(Callback):
    """Keeps what it is told, and the first parameter at that time."""

    def __init__(self, break_at=None):
        self.reports, self.centres, self.closed, self.break_at = [], [], 0, break_at

    def on_report(self, report, state):
        if report.step == self.break_at:
            raise RuntimeError("the disk is full")
        self.reports.append(report)
        self.centres.append(np.array(state.params["centre"]))

    def close(self):
        self.closed += 1

    def seen(self, split):
        return [report for report in self.reports if report.split == split]


@pytest.fixture
def runner():
    return parallelize(Mean(), "jit", jax.devices()[:1])


def begin(runner):
    return runner.place(Mean().init(jax.random.key(0)))


def losses_of(steps):
    """The loss of each step, by hand."""
    centre, velocity, losses = np.float64(Mean().init(jax.random.key(0)).params["centre"]), 0, []
    for batch in values(steps, PLAN.batch_size):
        error = centre - batch["value"]
        losses.append(0.5 * (error**2).sum(1).mean())
        velocity = 0.9 * velocity + error.mean(0)
        centre = centre - 0.3 * velocity
    return losses


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs"), [(23, 5, 3), (20, 5, 4), (7, 7, 2), (1293, 128, 9), (9, 1, 2)]
)
def test_a_plan_sees_every_example_so_often_and_ends_so_many_epochs(examples, batch_size, epochs):
    plan = Plan(examples, batch_size, epochs)
    seen = [step * batch_size for step in range(plan.steps + 1)]
    assert seen[-2] < epochs * examples <= seen[-1]
    ends = [step for step in range(1, plan.steps + 1) if plan.ends_epoch(step)]
    assert ends == [
        next(step for step, n in enumerate(seen) if n >= epoch * examples) for epoch in range(1, epochs + 1)
    ]
    assert [plan.epoch(step) for step in (0, 1, plan.steps)] == [0, batch_size / examples, seen[-1] / examples]


def test_batches_larger_than_the_data_end_an_epoch_each():
    plan = Plan(examples=3, batch_size=7, epochs=5)
    assert plan.steps == 3
    assert all(plan.ends_epoch(step) for step in (1, 2, 3))


def test_reports_on_training_are_means_since_the_last(runner):
    recorder = Recorder()
    state = fit(runner, begin(runner), values(14, 5), PLAN, callbacks=[recorder])
    reports, losses = recorder.seen("train"), losses_of(14)
    steps = [report.step for report in reports]
    assert steps == [4, 5, 8, 10, 12, 14]
    for first, report in zip([0, *steps], reports, strict=False):
        assert report.metrics == pytest.approx({"loss": np.mean(losses[first : report.step])}, rel=1e-5)
        assert report.epoch == report.step * 5 / 23
        assert report.examples_per_second > 0
    assert int(state.step) == 14
    np.testing.assert_array_equal(recorder.centres[-1], state.params["centre"])


def test_callbacks_get_the_state_of_the_step(runner):
    recorder = Recorder()
    fit(runner, begin(runner), values(14, 5), PLAN, callbacks=[recorder])
    shorter = fit(runner, begin(runner), values(5, 5), Plan(23, 5, 1))
    np.testing.assert_array_equal(recorder.centres[1], shorter.params["centre"])


def test_validation_happens_at_the_ends_of_epochs(runner):
    recorder, other = Recorder(), Recorder()
    fit(
        runner,
        begin(runner),
        values(14, 5),
        PLAN,
        validate=lambda state: {"step": float(state.step)},
        callbacks=[recorder, other],
    )
    assert [(report.step, report.metrics) for report in recorder.seen("validation")] == [
        (step, {"step": step}) for step in (5, 10, 14)
    ]
    assert recorder.reports == other.reports
    assert [report.split for report in recorder.reports if report.step == 5] == ["train", "validation"]


def test_the_speed_leaves_validation_out(runner):
    clock = itertools.count()
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attn_flax.training.loop.time.perf_counter", lambda: next(clock))

        def validate(state):
            for _ in range(100):
                next(clock)
            return {}

        fit(runner, begin(runner), values(14, 5), PLAN, validate=validate, callbacks=[recorder])
    rates = [report.examples_per_second for report in recorder.seen("train")]
    assert rates == [20.0, 5.0, 15.0, 10.0, 10.0, 10.0]  # one tick passes between two reports


def test_training_goes_on_from_the_step_of_the_state(runner):
    whole, first, rest = Recorder(), Recorder(), Recorder()
    expected = fit(runner, begin(runner), values(14, 5), PLAN, callbacks=[whole])
    state = fit(runner, begin(runner), values(5, 5), Plan(23, 5, 1, 4), callbacks=[first])
    state = fit(runner, state, values(9, 5, start=5), PLAN, callbacks=[rest])
    chex.assert_trees_all_equal(state, expected)
    told = [(report.step, report.epoch, report.metrics) for report in first.reports + rest.reports]
    assert told == [(report.step, report.epoch, report.metrics) for report in whole.reports]


def test_nothing_is_left_to_do_after_the_last_step(runner):
    state = fit(runner, begin(runner), values(14, 5), PLAN)
    recorder = Recorder()
    again = fit(runner, state, iter(()), PLAN, callbacks=[recorder])
    assert (int(again.step), recorder.reports, recorder.closed) == (14, [], 1)


def test_callbacks_are_closed_once(runner):
    recorders = [Recorder(), Recorder()]
    fit(runner, begin(runner), values(14, 5), PLAN, callbacks=recorders)
    assert [recorder.closed for recorder in recorders] == [1, 1]


def test_callbacks_are_closed_when_one_of_them_fails(runner):
    recorders = [Recorder(), Recorder(break_at=8)]
    with pytest.raises(RuntimeError, match="the disk is full"):
        fit(runner, begin(runner), values(14, 5), PLAN, callbacks=recorders)
    assert [report.step for report in recorders[0].reports] == [4, 5, 8]
    assert [recorder.closed for recorder in recorders] == [1, 1]


def test_callbacks_are_closed_when_the_data_fail(runner):
    def broken():
        yield from values(6, 5)
        raise InputError("a record cannot be read.")

    recorder = Recorder()
    with pytest.raises(InputError, match="a record cannot be read"):
        fit(runner, begin(runner), broken(), PLAN, callbacks=[recorder])
    assert ([report.step for report in recorder.reports], recorder.closed) == ([4, 5], 1)


@pytest.mark.parametrize("how", ["jit", "pmap"])
@pytest.mark.parametrize(("devices", "batch_size"), [(1, 3), (1, 5), (1, 8), (1, 37), (8, 8), (8, 40)])
def test_evaluation_counts_each_example_once(how, devices, batch_size):
    runner = parallelize(Mean(), how, jax.devices()[:devices])
    source = numbered(37)
    batches = evaluation_batches(
        source, batch_size=batch_size, shape=(5, 3, 1), mean=(0.0,), std=(1.0,), num_classes=10
    )
    for _ in range(2):
        sums = evaluate(runner, begin(runner), batches)
        np.testing.assert_array_equal(sums["first"], np.arange(256) < 37)
        np.testing.assert_array_equal(sums["label"], np.bincount(source.labels))
        assert all(isinstance(value, np.ndarray) for value in sums.values())


def test_nothing_to_evaluate_is_refused(runner):
    with pytest.raises(InputError, match="the split to evaluate has no examples"):
        evaluate(runner, begin(runner), [])


@pytest.mark.parametrize("field", ["examples", "batch_size", "epochs", "report_every"])
def test_a_plan_of_nothing_is_refused(field):
    with pytest.raises(InputError, match=f"{field} must be at least 1, got 0"):
        Plan(**{"examples": 5, "batch_size": 2, "epochs": 1, "report_every": 3, field: 0})
