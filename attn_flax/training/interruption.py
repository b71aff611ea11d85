"""Ends of a run that come from outside: signals, and what several processes ask of each other."""

import collections
import os
import signal
import sys
import threading
from types import TracebackType

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LAG = 2
_SHOW_CURSOR = "\x1b[?25h"


class StoppedError(Exception):
    """A signal ended the training; everything is saved.

    Attributes:
        signal: which.
    """

    def __init__(self, received: signal.Signals):
        self.signal = received
        super().__init__(f"stopped by {received.name}.")


class StopRequest:
    """While entered, takes the first SIGINT (Ctrl-C) or SIGTERM as a request to stop; the second ends the process.

    Attributes:
        signal: the one received, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.signal:
            _write(_SHOW_CURSOR if sys.stderr.isatty() else "")
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        _write(f"\n{self.signal.name}: stopping after this step; once more ends the process at once.\n")


class Agreement:
    """Wishes that any process has and all must follow at the same step.

    With one process they are granted at once. With several, each step reduces the wishes of all over the devices, and
    grants those of `LAG` steps before, which are known without waiting.
    """

    def __init__(self):
        self._answers = collections.deque()
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("devices",))
            self._split = NamedSharding(mesh, PartitionSpec("devices"))
            self._any = jax.jit(lambda wishes: wishes.any(0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, *wishes: bool) -> tuple[bool, ...]:
        """Which of them to follow now; all processes must ask equally often."""
        if jax.process_count() == 1:
            return wishes
        local = np.tile(np.array(wishes), (jax.local_device_count(), 1))
        self._answers.append(self._any(jax.make_array_from_process_local_data(self._split, local)))
        if len(self._answers) <= LAG:
            return (False,) * len(wishes)
        return tuple(np.asarray(self._answers.popleft()).tolist())


def _write(text):
    os.write(sys.stderr.fileno(), text.encode())  # print is not for signal handlers
