"""Silence around Orbax."""

import contextlib
import gc
import logging
import sys
import time
from collections.abc import Iterator

SECONDS_FOR_STRAGGLERS = 0.3
"""After an error TensorStore still calls back from its own threads, and complains of closed event loops."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Orbax and the tasks that it forgets say of errors that it raises, too."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    excepthook, unraisablehook = sys.excepthook, sys.unraisablehook
    sys.excepthook = sys.unraisablehook = lambda *_: None
    try:
        yield
    except Exception:
        gc.collect()
        time.sleep(SECONDS_FOR_STRAGGLERS)
        raise
    finally:
        sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
