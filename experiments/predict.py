"""What a trained run makes of images: their classes with probabilities, and what it attends to.

    python -m experiments.predict RUN image.png photos/ 'more/*.jpg'

Prints a line for each image, and writes its maps over it to RUN/predictions, or to `--out`: what each mechanism attends
to, which positions of its output speak for the class, and the rollout where there are maps among tokens.
"""

import contextlib
import dataclasses
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import data, explain, runs
from attn_flax.checks import InputError, check

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """Print the classes of images, and draw what the network attends to."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders of images, and patterns like 'photos/*.png'."""
    top: int = 3
    """How many classes to print for each image."""
    out: Path | None = None
    """The folder of the attention maps, by default RUN/predictions."""


def main(config: Config, console: Console | None = None) -> list[dict[str, Any]]:
    """For each image its file, its classes with their probabilities, highest first, and the picture of its maps.

    Raises:
        InputError: the run cannot be read, a name stands for no image, or an image is damaged; the images before it
            are done then.
    """
    console = console or Console()
    check(config.top >= 1, f"top must be at least 1, got {config.top}.")
    files = find_images(config.images)
    runs.keep_compiled_programs()
    run = runs.read_run(config.run)
    out = config.out or config.run / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    predictions = []
    for some in (files[i : i + BATCH] for i in range(0, len(files), BATCH)):
        pixels = data.read_images(some, shape=(*run.data.size, run.data.channels), mean=run.data.mean, std=run.data.std)
        images = jnp.asarray(pixels)
        probabilities = np.asarray(jax.nn.softmax(_logits(run.model, images).astype(jnp.float32)))
        maps = _explained(run.model, images)
        for index, (file, row) in enumerate(zip(some, probabilities, strict=True)):
            picture = out / f"{len(predictions):04}-{file.stem}.png" if maps else None
            if picture:
                _draw(run, pixels, maps, index, picture)
            classes = [(run.class_names[label], float(row[label])) for label in np.argsort(-row)[: config.top]]
            predictions.append({"file": str(file), "classes": classes, "picture": picture and str(picture)})
            shown = "  ".join(f"{name} {probability:.4f}" for name, probability in classes)
            console.print(f"{file}  {shown}", highlight=False, markup=False, soft_wrap=True)
    drawn = sum(prediction["picture"] is not None for prediction in predictions)
    console.print(f"attention maps of {drawn} images in {out}" if drawn else "the network attends to nothing.")
    return predictions


def find_images(names: Sequence[str]) -> list[Path]:
    """The image files that the names stand for, each once, in their order.

    Raises:
        InputError: a name stands for no image.
    """
    found = []
    for name in names:
        files = list(_expanded(name))
        if not files:
            raise InputError(f"{name} stands for no image: expected a file, a folder of images, or a pattern.")
        found += files
    check(bool(found), "expected images to look at, got none.")
    return list(dict.fromkeys(found))


def _expanded(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.suffix.lower() in data.IMAGE_SUFFIXES)
    elif path.exists():
        yield path
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 Path.glob takes no absolute pattern
        yield from (Path(file) for file in matches if Path(file).is_file())


def _explained(model, images):
    """The maps of all attending Modules; where their outputs speak for the predicted class; the rollout of all maps."""
    maps = explain.attention_maps(model, images)
    drawn = dict(maps)
    for path in maps:
        with contextlib.suppress(InputError):  # a Module that is called twice, or gives no map
            drawn[f"{path or 'network'} for the class"] = explain.attribution(model, images, at=path)
    among_tokens = [weights for weights in maps.values() if _is_among_tokens(weights)]
    if len({weights.shape for weights in among_tokens}) == 1:
        drawn["rollout"] = explain.attention_rollout(among_tokens)
    return drawn


def _is_among_tokens(weights):
    """Whether it is a map (b, n, n) or (b, k, n, n)."""
    return isinstance(weights, jax.Array) and weights.ndim in (3, 4) and weights.shape[-1] == weights.shape[-2] > 1


@nnx.jit
def _logits(model, images):
    return model(images)


def _draw(run, images, maps, index, path):
    """The maps of one image of a batch."""
    one = slice(index, index + 1)
    maps = jax.tree.map(lambda weights: weights[one] if weights.shape[0] == len(images) else weights, maps)
    explain.draw_attention_maps(images[one], maps, path, mean=run.data.mean, std=run.data.std, overlay=True)


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
