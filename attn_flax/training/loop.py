"""The one loop of training, whatever the task."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from attn_flax.checks import InputError, check
from attn_flax.training.parallel import Runner
from attn_flax.training.step import TrainState
from attn_flax.training.task import Batch


@dataclasses.dataclass(frozen=True)
class Report:
    """What callbacks are told.

    Attributes:
        step: how many updates have been made.
        epoch: how many times the training examples have been seen, a fraction between epochs.
        split: "train", whose metrics are means since its last report, or "validation".
        metrics: their values by name.
        examples_per_second: of training, since the last report on it.
    """

    step: int
    epoch: float
    split: str
    metrics: Mapping[str, float]
    examples_per_second: float


class Callback:
    """What happens beside the training; a subclass overrides what it needs."""

    def on_report(self, report: Report, state: TrainState) -> None:
        """Called at every report, with the state of that step as the runner has it."""

    def close(self) -> None:
        """Called once, when training ends or breaks off."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to train, and when to look up.

    Attributes:
        examples: how many examples make an epoch.
        batch_size: the examples of a step, over all devices and processes.
        epochs: how often to see every example; the number of steps is rounded up.
        report_every: steps between reports on training; the end of an epoch is always reported.

    Raises:
        InputError: a number below 1, or a split without examples.
    """

    examples: int
    batch_size: int
    epochs: int
    report_every: int = 50

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check(value >= 1, f"{field.name} must be at least 1, got {value}.")

    @property
    def steps(self) -> int:
        """The number of updates."""
        return -(-self.epochs * self.examples // self.batch_size)

    def epoch(self, step: int) -> float:
        """How many epochs are behind after `step` updates."""
        return step * self.batch_size / self.examples

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ended with the update that made it `step` updates."""
        return step * self.batch_size // self.examples > (step - 1) * self.batch_size // self.examples


def fit(
    runner: Runner,
    state: TrainState,
    batches: Iterator[Batch],
    plan: Plan,
    *,
    validate: Callable[[TrainState], Mapping[str, float]] | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainState:
    """Trains from the state's step to the plan's last.

    The host only waits for the device at reports.

    Args:
        runner: the task on its devices.
        state: where to start, as `runner.place` returned it; it is used up.
        batches: the batches from that step on.
        plan: how long to train.
        validate: state -> metrics, called at the end of every epoch.
        callbacks: told of every report, and closed at the end, whatever happens.

    Returns:
        The last state, as the runner has it.
    """
    pending, since = [], time.perf_counter()
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.callback(callback.close)
        for step in range(int(runner.fetch(state.step)) + 1, plan.steps + 1):
            state, metrics = runner.update(state, runner.put(next(batches)))
            pending.append(metrics)
            if not (plan.ends_epoch(step) or step % plan.report_every == 0 or step == plan.steps):
                continue
            means = _means(runner, pending)
            rate = len(pending) * plan.batch_size / (time.perf_counter() - since)
            _report(Report(step, plan.epoch(step), "train", means, rate), state, callbacks)
            if validate and plan.ends_epoch(step):
                _report(Report(step, plan.epoch(step), "validation", validate(state), rate), state, callbacks)
            pending, since = [], time.perf_counter()
    return state


def evaluate(runner: Runner, state: TrainState, batches: Iterable[Batch]) -> dict:
    """The task's sums over a split, in NumPy; its `summarize` makes metrics of them.

    Args:
        runner: the task on its devices.
        state: as the runner has it.
        batches: every example once; rows added to fill a batch have weight 0.

    Raises:
        InputError: there is no batch.
    """
    total = None
    for batch in batches:
        sums = runner.evaluate(state, runner.put(batch))
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    if total is None:
        raise InputError("the split to evaluate has no examples.")
    return jax.device_get(runner.fetch(total))


def _means(runner, pending):
    pending = jax.device_get([runner.fetch(metrics) for metrics in pending])
    return jax.tree.map(lambda *values: float(np.mean(values)), *pending)


def _report(report, state, callbacks):
    for callback in callbacks:
        callback.on_report(report, state)
