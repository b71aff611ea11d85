"""Worker processes that end with the main one, and only with it."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def attach(worker_index: int, worker_count: int) -> None:
    """Leaves signals to the main process, which closes its workers, and ends this one when that is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
