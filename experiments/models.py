"""What the networks that classify images cost: parameters, multiply-adds, activations, and on demand their speed.

    python -m experiments.models                                            all of them; nothing is computed
    python -m experiments.models 'swin*' resnet50 --measure --batch-size 8
    python -m experiments.models resnet50 --measure --training --dtype bfloat16 --out models.md

Multiply-adds and activations are those of one image in evaluation mode, as `attn_flax.models.cost` counts them: of all
products of matrices and convolutions, attention's included, and how many elements these give. Measured is on one device
the compilation of the step, tracing included, and the median over the rounds of its time.
"""

import csv
import dataclasses
import fnmatch
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from attn_flax import runs, training
from attn_flax.checks import InputError, UnknownNameError, check
from attn_flax.models import create_model, list_models, takes
from attn_flax.models.cost import describe_model, is_classifier
from attn_flax.tasks import Classification

CLASSES = 1000
CHANNELS = 3
COSTS = ("network", "image", "parameters", "multiply-adds", "activations")
MEASURES = ("compiled in s", "images/s")


@dataclasses.dataclass(frozen=True)
class Config:
    """List what networks cost, and measure how fast they are."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Networks of `attn_flax.list_models()`, or patterns like 'swin*'; by default all that classify images."""
    size: tuple[int, int] | None = None
    """The height and width of the images; by default those that each network is made for."""
    measure: bool = False
    """Compile and time each network, too."""
    training: bool = False
    """Measure a step of training, by AdamW, instead of the forward pass in evaluation mode."""
    batch_size: int = 16
    """The images of a measured step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type to compute in when measured; parameters stay float32."""
    rounds: int = 5
    """How often a step is timed, after one that warms it up."""
    out: Path | None = None
    """The file to write: .md, .csv or .json."""


def main(config: Config, console: Console | None = None) -> list[dict[str, Any]]:
    """Prints the table, and returns its rows by name.

    A network that refuses the size, or takes more memory than there is, has a note that says so.

    Raises:
        InputError: an option is wrong, or a named network does not exist or classifies no images.
    """
    console = console or Console()
    check(config.rounds >= 1, f"rounds must be at least 1, got {config.rounds}.")
    check(config.batch_size >= 1, f"batch_size must be at least 1, got {config.batch_size}.")
    check(config.measure or not config.training, "training is for what is measured: expected --measure, got none.")
    check(
        config.out is None or config.out.suffix in WRITERS,
        f"out must be a file .md, .csv or .json, got {config.out}.",
    )
    rows = [_row(name, config) for name in track(_chosen(config.names), "", console=console, transient=True)]
    console.print(_table(rows, config))
    if config.out:
        config.out.write_text(WRITERS[config.out.suffix](rows, config))
    return rows


def _chosen(patterns):
    if not patterns:
        return [name for name in list_models() if is_classifier(name)]
    chosen = []
    for pattern in patterns:
        names = fnmatch.filter(list_models(), pattern)
        if not names:
            raise UnknownNameError("model", pattern, list_models())
        classifiers = [name for name in names if is_classifier(name)]
        check(bool(classifiers), f"{pattern!r} is no image classifier: expected one, such as 'resnet50'.")
        chosen += [name for name in classifiers if name not in chosen]
    return chosen


def _row(name, config):
    try:
        row = dataclasses.asdict(describe_model(name, image_size=config.size))
        return row | (_measured(name, row["image_size"], config) if config.measure else {})
    except InputError as error:
        return {"name": name, "note": str(error)}


def _measured(name, size, config):
    """The seconds of compilation, and the images of a second."""
    arguments = {"image_size": size} if config.size and takes(name, "image_size") else {}
    model = create_model(
        name, num_classes=CLASSES, in_channels=CHANNELS, dtype=jnp.dtype(config.dtype), **arguments, rngs=nnx.Rngs(0)
    )
    images = jax.random.normal(jax.random.key(0), (config.batch_size, *size, CHANNELS))
    steps = (_training if config.training else _forward)(model, images)
    try:
        _, compilation, _, *seconds = (_seconds(steps) for _ in range(3 + config.rounds))
    except jax.errors.JaxRuntimeError as error:
        check(
            "RESOURCE_EXHAUSTED" not in str(error), f"a batch of {config.batch_size} takes more memory than there is."
        )
        raise
    return {"compile_seconds": compilation, "images_per_second": config.batch_size / statistics.median(seconds)}


def _seconds(steps):
    start = time.perf_counter()
    next(steps)
    return time.perf_counter() - start


def _forward(model, images):
    """Gets ready, compiles the forward pass, and then computes it again and again."""
    model.eval()
    graph, state = nnx.split(model)
    yield
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images)).lower(state, images).compile()
    while True:
        yield
        jax.block_until_ready(forward(state, images))


def _training(model, images):
    """Gets ready, compiles the step of training, and then makes it again and again."""
    task = Classification(model, training.Learning(training.create_optimizer("adamw", 1e-3)), CLASSES)
    runner = training.parallelize(task, devices=jax.devices()[:1])
    state = runner.place(task.init(jax.random.key(0)))
    batch = runner.put({"image": images, "label": jnp.arange(len(images)) % CLASSES})
    yield
    step = runner.update.lower(state, batch).compile()
    while True:
        yield
        state, _ = step(state, batch)
        jax.block_until_ready(state)


def _cells(row, config):
    """A row's texts, one for each heading; a note stands in place of all but the name."""
    if "note" in row:
        return row["name"], row["note"]
    cells = [
        row["name"],
        "×".join(map(str, row["image_size"])),
        f"{row['parameters']:,}",
        f"{row['multiply_adds'] / 1e9:.3f} G",
        f"{row['activations'] / 1e6:.2f} M",
    ]
    if config.measure:
        cells += [f"{row['compile_seconds']:.1f}", f"{row['images_per_second']:.1f}"]
    return cells


def _headings(config):
    return COSTS + MEASURES if config.measure else COSTS


def _table(rows, config):
    first, *others = _headings(config)
    table = Table(first, *(Column(heading, justify="right") for heading in others))
    for row in rows:
        table.add_row(*_cells(row, config))
    return table


def _markdown(rows, config):
    headings = _headings(config)
    lines = [headings, ["---"] * len(headings)]
    for row in rows:
        cells = list(_cells(row, config))
        lines.append(cells + [""] * (len(headings) - len(cells)))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _csv(rows, config):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        size = {"image_size": "x".join(map(str, row["image_size"]))} if "image_size" in row else {}
        writer.writerow(row | size)
    return file.getvalue()


def _json(rows, config):
    content = {"config": dataclasses.asdict(config), "models": rows, **runs.environment()}
    return json.dumps(content, indent=2, default=str) + "\n"


WRITERS = {".md": _markdown, ".csv": _csv, ".json": _json}

if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
