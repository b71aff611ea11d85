"""What a trained run makes of images and videos of yours, or makes of nothing, printed and drawn.

    python -m experiments.predict RUN image.png photos/ 'more/*.jpg'
    python -m experiments.predict VIDEO_RUN clip.gif frames/
    python -m experiments.predict GENERATION_RUN

Prints a line for each, and writes its picture to RUN/predictions, or to `--out`: a classifier's attention maps, a
detector's boxes, a segmenter's masks, a strip of a video's frames, a generator's samples.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from attn_flax import runs


@dataclasses.dataclass(frozen=True)
class Config:
    """Print and draw what a trained run makes of images and videos."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders of images, and patterns like 'photos/*.png'."""
    out: Path | None = None
    """The folder of the pictures, by default RUN/predictions."""


def main(config: Config, console: Console | None = None) -> list[dict[str, Any]]:
    """What the run's experiment predicts of each.

    Raises:
        InputError: the run cannot be read, a name stands for nothing, or a file is damaged; those before it are done
            then.
    """
    console = console or Console()
    runs.keep_compiled_programs()
    run = runs.read_run(config.run)
    out = config.out or config.run / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    predictions = importlib.import_module(f"experiments.{run.task}").predict(run, config.names, out, console)
    drawn = sum(prediction["picture"] is not None for prediction in predictions)
    console.print(f"{drawn} pictures in {out}" if drawn else "the network attends to nothing.", soft_wrap=True)
    return predictions


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
