"""When checkpoints are written."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import jax

from attn_flax.checks import InputError
from attn_flax.training.checkpoints import Checkpoints, Score
from attn_flax.training.interruption import Agreement, StoppedError, StopRequest
from attn_flax.training.loop import Callback, NonFiniteError, Plan, Report, Tally
from attn_flax.training.parallel import Runner
from attn_flax.training.step import TrainState

Item = TypeVar("Item")


class Saver(Callback):
    """Saves at intervals, the best on the validation split, the last, and what there is when a signal or a fault stops.

    A step that is going to be validated is saved after that, with its score.

    Args:
        checkpoints: where to.
        runner: the runner whose states it is told of.
        plan: of the training.
        score: validation metrics -> how good they are; None if nothing is validated.
        stop: the request to stop, which it follows between steps.
        every_steps: the interval in steps, or None.
        every_minutes: the interval in minutes, or None.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        runner: Runner,
        plan: Plan,
        *,
        score: Callable[[Mapping[str, float]], Score] | None,
        stop: StopRequest,
        every_steps: int | None,
        every_minutes: float | None,
    ):
        self._checkpoints = checkpoints
        self._runner = runner
        self._plan = plan
        self._score = score
        self._stop = stop
        self._every_steps = every_steps
        self._every_seconds = None if every_minutes is None else 60 * every_minutes
        self._agreement = Agreement()
        self._saved_at = time.monotonic()
        self._is_due = False
        self._unsaved: tuple[int, TrainState, Tally] | None = None

    def on_step(self, step: int, state: TrainState, tally: Tally) -> None:
        """Saves if it is time and the step is not going to be validated.

        Raises:
            StoppedError: a signal asked for it.
        """
        self._unsaved = step, state, tally
        is_late, _ = self._follow(is_late=self._is_late())
        self._is_due |= is_late or step == self._plan.steps or bool(self._every_steps and step % self._every_steps == 0)
        if self._is_due and not (self._score and self._plan.ends_epoch(step)):
            self._save()

    def on_report(self, report: Report, state: TrainState) -> None:
        """Saves after the validation if it is time or the score is higher than ever."""
        if report.split != "validation":
            return
        score, best = self._score(report.metrics), self._checkpoints.best_score
        if self._unsaved and (self._is_due or best is None or score > best):
            self._save(score)
        elif report.step in self._checkpoints.steps:  # a stop came before its validation
            self._checkpoints.rate(report.step, score)

    def on_break(self, error: Exception) -> None:
        """Saves the last step, unless its state is lost or worthless, or others do not know of the fault."""
        known_to_all = isinstance(error, StoppedError) or jax.process_count() == 1
        harmless = isinstance(error, (StoppedError, InputError, OSError)) and not isinstance(error, NonFiniteError)
        if known_to_all and harmless and self._unsaved and not _used_up(self._unsaved[1]):
            self._save()

    def close(self) -> None:
        """Waits until everything is written."""
        self._checkpoints.close()

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, as long as nobody asks to stop.

        Raises:
            StoppedError: a signal asked for it.
        """
        for item in items:
            self._follow()
            yield item

    def _follow(self, is_late=False):
        granted = self._agreement.ask(is_late, self._stop.signal is not None)
        if granted[1]:
            raise StoppedError(self._stop.signal or signal.SIGTERM)  # another process may have got it
        return granted

    def _is_late(self):
        """Whether the interval is over by the clock of the first process, which is everybody's."""
        if self._every_seconds is None or jax.process_index() != 0:
            return False
        return time.monotonic() - self._saved_at >= self._every_seconds

    def _save(self, score=None):
        step, state, tally = self._unsaved
        self._unsaved, self._is_due = None, False
        past = tally.fetch()
        self._checkpoints.save(step, self._runner.portable(state), past=past, score=score)
        self._saved_at = time.monotonic()


def _used_up(state):
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
