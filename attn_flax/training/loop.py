"""The one loop of training, whatever the task."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from attn_flax.checks import InputError, check
from attn_flax.training.leaves import leaf_names
from attn_flax.training.parallel import Runner
from attn_flax.training.rows import add_sums
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


class NonFiniteError(InputError):
    """A loss, or a gradient, that is infinite or not a number."""


class Tally:
    """The metrics of the steps since the last report, which stay on the devices until somebody asks for them."""

    def __init__(self, runner: Runner, state: TrainState, past: Sequence[Mapping[str, float]] = ()):
        self._runner = runner
        self._leaves = leaf_names(state.params)
        self._past = list(past)
        self._pending: list[tuple[int, Mapping]] = []

    def add(self, step: int, metrics: Mapping) -> None:
        """Takes in what the update gave that made it `step` updates."""
        self._pending.append((step, metrics))

    def fetch(self) -> list[dict[str, float]]:
        """The metrics of each step; waits for the devices.

        Raises:
            NonFiniteError: one of them, or a gradient, is not finite; the message names the step and the gradients.
        """
        metrics = jax.device_get([self._runner.fetch(metrics) for _, metrics in self._pending])
        for (step, _), values in zip(self._pending, metrics, strict=True):
            self._past.append(self._checked(step, dict(values)))
        self._pending = []
        return self._past

    def means(self) -> dict[str, float]:
        """The means of the metrics over the steps."""
        return jax.tree.map(lambda *values: float(np.mean(values)), *self.fetch())

    def _checked(self, step, metrics):
        finite = metrics.pop("finite", ())
        broken = [leaf for leaf, is_finite in zip(self._leaves, finite, strict=False) if not is_finite]
        values = {name: float(value) for name, value in metrics.items()}
        if broken or not np.isfinite(list(values.values())).all():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            leaves = f"in {len(broken)} of {len(self._leaves)} leaves: {', '.join(broken)}" if broken else "nowhere"
            raise NonFiniteError(
                f"training diverged at step {step}: {shown}; gradients that are not finite {leaves}. Expected finite "
                "numbers: a lower learning rate, a warm-up, or gradients clipped to a norm may help."
            )
        return values


class Callback:
    """What happens beside the training; a subclass overrides what it needs."""

    def on_step(self, step: int, state: TrainState, tally: Tally) -> None:
        """Called after every update, before its reports, with the state as the runner has it; the next uses it up."""

    def on_report(self, report: Report, state: TrainState) -> None:
        """Called at every report, with the state of that step as the runner has it."""

    def on_break(self, error: Exception) -> None:
        """Called when training breaks off, before `close`."""

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
    past: Sequence[Mapping[str, float]] = (),
) -> TrainState:
    """Trains from the state's step to the plan's last.

    The host only waits for the device at reports.

    Args:
        runner: the task on its devices.
        state: where to start, as `runner.place` returned it; it is used up.
        batches: the batches from that step on.
        plan: how long to train.
        validate: state -> metrics, called at the end of every epoch.
        callbacks: told of every step and report, and closed at the end, whatever happens.
        past: the metrics of the steps since the last report, where the state was saved before its step's reports were
            made: they are made first.

    Returns:
        The last state, as the runner has it.

    Raises:
        NonFiniteError: a loss or a gradient is not finite.
    """
    begun = int(runner.fetch(state.step))
    reporter = _Reporter(runner, plan, validate, callbacks)
    reporter.begin(begun, state, past)
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.callback(callback.close)
        try:
            if past:
                reporter.look_up(begun, state)
            for step in range(begun + 1, plan.steps + 1):
                state, metrics = runner.update(state, runner.put(next(batches)))
                reporter.tally.add(step, metrics)
                for callback in callbacks:
                    callback.on_step(step, state, reporter.tally)
                reporter.look_up(step, state)
        except Exception as error:
            for callback in callbacks:
                callback.on_break(error)
            raise
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
        sums = runner.fetch(runner.evaluate(state, runner.put(batch)))
        total = sums if total is None else add_sums(total, sums)
    check(total is not None, "the split to evaluate has no examples.")
    return jax.device_get(total)


class _Reporter:
    """Makes the reports that are due."""

    def __init__(self, runner, plan, validate, callbacks):
        self._runner = runner
        self._plan = plan
        self._validate = validate
        self._callbacks = callbacks

    def begin(self, step, state, past=()):
        """The step after which the next tally and the next rate start."""
        self.tally = Tally(self._runner, state, past)
        self._first, self._start = step, time.perf_counter()

    def look_up(self, step, state):
        """Makes the reports due after the step, if any."""
        plan = self._plan
        if not (plan.ends_epoch(step) or step % plan.report_every == 0 or step == plan.steps):
            return
        means, epoch = self.tally.means(), plan.epoch(step)
        rate = (step - self._first) * plan.batch_size / (time.perf_counter() - self._start)
        self._tell(Report(step, epoch, "train", means, rate), state)
        if self._validate and plan.ends_epoch(step):
            self._tell(Report(step, epoch, "validation", self._validate(state), rate), state)
        self.begin(step, state)

    def _tell(self, report, state):
        for callback in self._callbacks:
            callback.on_report(report, state)
