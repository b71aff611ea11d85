"""A watch over training that hangs."""

import faulthandler
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from attn_flax.training.loop import Callback, Report, Tally
from attn_flax.training.step import TrainState

Item = TypeVar("Item")


class Watchdog(Callback):
    """Tells when nothing has happened for some time, and where each thread of the process is then.

    The host runs ahead of the devices and waits for them at reports, so the step named is the last one handed to them.

    Args:
        seconds: without progress before it tells; after that it tells again whenever twice the time has passed.
        path: the file that gets the stacks of all threads.
        tell: shows a message.
    """

    def __init__(self, seconds: float, path: Path, tell: Callable[[str], None]):
        self._seconds, self._path, self._tell = seconds, path, tell
        self._step = 0
        self._over = threading.Event()
        self.beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Something happened."""
        self._last = time.monotonic()

    def on_step(self, step: int, state: TrainState, tally: Tally) -> None:
        """A step was handed to the devices."""
        self._step = step
        self.beat()

    def on_report(self, report: Report, state: TrainState) -> None:
        """The devices finished what they had."""
        self.beat()

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; each is a sign of life."""
        for item in items:
            self.beat()
            yield item

    def close(self) -> None:
        """Ends the watch."""
        self._over.set()
        self._thread.join()

    def _watch(self):
        patience, since = self._seconds, self._last
        while not self._over.wait(max(since + patience - time.monotonic(), 0.0)):
            if self._last > since:
                patience, since = self._seconds, self._last
                continue
            self._tell(
                f"no progress for {patience:.0f} s after step {self._step} was handed to the devices: "
                f"the stacks of all threads are in {self._path}."
            )
            self._dump()
            patience *= 2

    def _dump(self):
        try:
            with self._path.open("a") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            self._tell(f"{self._path} cannot be written: {error.strerror}.")
