"""Several processes that train together, and the end of them all when one is lost."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from attn_flax.checks import InputError, check
from attn_flax.runs.config import DistributedConfig
from attn_flax.training import Callback, StoppedError

HEARTBEAT_SECONDS = 10
MESSAGE_BYTES = 8192


def connect(config: DistributedConfig) -> None:
    """Joins the processes of the configuration, if it names any; to be called before any other use of JAX.

    Raises:
        InputError: some of the three settings are missing or do not fit each other, or nobody answers.
    """
    settings = (config.coordinator, config.num_processes, config.process_id)
    if not config.auto and all(setting is None for setting in settings):
        return
    if not config.auto:
        _check_settings(config)
    try:
        jax.distributed.initialize(*settings, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes of {dataclasses.asdict(config)} cannot be joined: {error}") from error


def is_first() -> bool:
    """Whether this is the process that writes files and tells of the run."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """What the function returns in the first process, in all of them; a value that JSON holds.

    Raises:
        InputError: in all of them, where the function raises it in the first.
    """
    if jax.process_count() == 1:
        return function()
    answer = {}
    if is_first():
        try:
            answer = {"value": function()}
        except InputError as error:
            answer = {"error": str(error)}
    message = np.frombuffer(json.dumps(answer).encode().ljust(MESSAGE_BYTES), np.uint8)
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(message)))
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


def quiet_unless_first(console: Console | None) -> Console:
    """The console, by default the terminal; a silent one in all processes but the first."""
    return (console or Console()) if is_first() else Console(quiet=True)


def teller(console: Console) -> Callable[[str], None]:
    """What shows messages on the console just as they are."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


class Peers(Callback):
    """Ends this process when a fault may come from the loss of another one, for which it would wait in vain.

    Where the first process is lost, JAX ends the others before they can say anything, so each says it beforehand.
    """

    def __init__(self, resume_hint: str):
        self._resume_hint = resume_hint
        if jax.process_count() > 1:
            me = f"process {jax.process_index()} of {jax.process_count()}"
            print(f"{me}: if one is lost, all end. {resume_hint}", file=sys.stderr, flush=True)

    def on_break(self, error: Exception) -> None:
        """Tells and ends the process, unless all processes end in good order or there is only one."""
        if jax.process_count() > 1 and not isinstance(error, StoppedError):
            me = f"process {jax.process_index()}"
            leave(f"{me} ends, perhaps because another one was lost: {error}\n{self._resume_hint}", status=1)


def leave(message: str, *, status: int) -> None:
    """Ends this process at once, without waiting for the others."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def _check_settings(config):
    for name in ("coordinator", "num_processes", "process_id"):
        check(
            getattr(config, name) is not None,
            f"several processes need distributed.coordinator, distributed.num_processes and distributed.process_id, "
            f"got no {name}.",
        )
    host, _, port = config.coordinator.rpartition(":")
    check(bool(host) and port.isdigit(), f"distributed.coordinator must be HOST:PORT, got {config.coordinator!r}.")
    check(config.num_processes >= 1, f"distributed.num_processes must be at least 1, got {config.num_processes}.")
    check(
        0 <= config.process_id < config.num_processes,
        f"distributed.process_id must be in [0, {config.num_processes}), got {config.process_id}.",
    )
