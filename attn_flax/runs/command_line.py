"""The command line of experiments: options over presets, and errors that fit one screen."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import tyro
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from attn_flax.checks import InputError

Config = TypeVar("Config")


def parse(
    presets: Mapping[str, Config], argv: Sequence[str] | None = None, *, description: str | None = None
) -> Config:
    """The configuration that a command line stands for: that of its `--preset`, changed by its other options.

    Args:
        presets: configurations by name, dataclasses with a field `preset`; the first is the default.
        argv: the arguments, by default the process's.
        description: what `--help` says of the experiment.
    """
    argv = sys.argv[1:] if argv is None else argv
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default=next(iter(presets)))
    chosen = chooser.parse_known_args(argv)[0].preset
    default = presets.get(chosen, next(iter(presets.values())))
    return tyro.cli(type(default), default=default, args=argv, description=description)


@contextlib.contextmanager
def error_screen() -> Iterator[None]:
    """Shows an InputError without its traceback and ends the process with status 2; Ctrl-C ends it with 130."""
    console = Console(stderr=True)
    try:
        yield
    except InputError as error:
        console.print(Panel(Text(str(error)), title=type(error).__name__, title_align="left", border_style="red"))
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted.")
        sys.exit(130)
