"""Checkpoints, written by Orbax."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from attn_flax.training.loop import Callback, Report
from attn_flax.training.parallel import Runner
from attn_flax.training.step import TrainState


class BestCheckpoint(Callback):
    """Keeps the parameters and model state of the highest validation score, the averages where a run keeps them.

    Args:
        folder: where to keep them.
        runner: the runner whose states it is told of.
        score: validation metrics -> how good they are.
    """

    def __init__(self, folder: Path, runner: Runner, score: Callable[[Mapping[str, float]], tuple[float, ...]]):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        self._runner = runner
        self._score = score
        self._best: tuple[float, ...] | None = None

    def on_report(self, report: Report, state: TrainState) -> None:
        """Saves where the validation score is higher than ever; the writing goes on in the background."""
        if report.split != "validation":
            return
        score = self._score(report.metrics)
        if self._best is None or score > self._best:
            self._best = score
            self.save(report.step, state)

    def save(self, step: int, state: TrainState) -> None:
        """Makes this state the checkpoint."""
        # Copied, since the next step uses the state's buffers up while they are being written.
        host = jax.tree.map(np.array, self._runner.fetch(state.evaluated))
        self._manager.save(step, args=ocp.args.StandardSave(_named(host)))

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """The step of the checkpoint, and the given state with the checkpoint's parameters and model state in it."""
        self._manager.wait_until_finished()
        step = self._manager.latest_step()
        like = _named(self._runner.fetch(state.evaluated))
        host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        kept = self._manager.restore(step, args=ocp.args.StandardRestore(host))
        whole = dataclasses.replace(self._runner.fetch(state), **kept, ema=None)
        return step, self._runner.place(whole)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()


def _named(evaluated):
    params, model_state = evaluated
    return {"params": params, "model_state": model_state}
