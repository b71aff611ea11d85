"""The command line of experiments: options over presets, and errors that fit one screen."""

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import tyro
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from attn_flax.checks import InputError
from attn_flax.runs.folder import RunFolder
from attn_flax.runs.processes import leave
from attn_flax.training import StoppedError

Config = TypeVar("Config")


def parse(
    presets: Mapping[str, Config],
    argv: Sequence[str] | None = None,
    *,
    chosen_by: str = "--preset",
    description: str | None = None,
) -> Config:
    """The configuration that a command line stands for: that of its `--preset`, changed by its other options.

    With `--resume`, options start from those of the run in the folder of `--run`, if there is one.

    Args:
        presets: configurations by name, dataclasses with a field for it; the first is the default.
        argv: the arguments, by default the process's.
        chosen_by: the option of that field, which names the preset.
        description: what `--help` says of the experiment.

    Raises:
        InputError: the configuration of the run to resume cannot be read.
    """
    argv = sys.argv[1:] if argv is None else argv
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument(chosen_by, dest="preset", default=next(iter(presets)))
    chooser.add_argument("--run", type=Path)
    chooser.add_argument("--resume", action="store_true")
    chosen = chooser.parse_known_args(argv)[0]
    default = presets.get(chosen.preset, next(iter(presets.values())))
    if chosen.resume and chosen.run and (chosen.run / "config.json").exists():
        earlier = RunFolder(chosen.run).read_config(type(default))
        default = dataclasses.replace(earlier, distributed=default.distributed)
    return tyro.cli(type(default), default=default, args=argv, description=description)


@contextlib.contextmanager
def error_screen() -> Iterator[None]:
    """Shows an error of its user's, or of the file system, without a traceback and ends the process with status 2.

    Ctrl-C ends it with status 130, and a signal that training followed with 128 and the signal's number.
    """
    try:
        yield
    except (InputError, OSError) as error:
        _show(Panel(_text(error), title=type(error).__name__, title_align="left", border_style="red"))
        _exit(2)
    except StoppedError as error:
        _show(_text(error))
        _exit(128 + error.signal)
    except KeyboardInterrupt as error:
        error.args = ("interrupted.",)
        _show(_text(error))
        _exit(128 + signal.SIGINT)


def _text(error):
    return Text("\n".join([str(error), *getattr(error, "__notes__", [])]))


def _show(what):
    Console(stderr=True).print(what, soft_wrap=not isinstance(what, Panel))


def _exit(status):
    if jax.distributed.is_initialized():
        leave("", status=status)  # the others may not come to the end that they would wait for together
    sys.exit(status)
