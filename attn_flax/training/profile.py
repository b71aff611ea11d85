"""A trace of some steps."""

from pathlib import Path

import jax

from attn_flax.training.loop import Callback, Tally
from attn_flax.training.step import TrainState


class Profile(Callback):
    """Traces some steps once the first ones, which compile, are over; TensorBoard and Perfetto show the trace.

    Args:
        folder: where to write it.
        skip: the steps before.
        steps: how many to trace.
    """

    def __init__(self, folder: Path, *, skip: int = 10, steps: int = 20):
        self._folder = folder
        self._skip = skip
        self._steps = steps
        self._seen = 0
        self._is_tracing = False

    def on_step(self, step: int, state: TrainState, tally: Tally) -> None:
        """Begins or ends the trace."""
        self._seen += 1
        if self._seen == self._skip:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        elif self._seen == self._skip + self._steps:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends the trace if the training ended before it."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
