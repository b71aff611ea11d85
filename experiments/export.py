"""Write the network of a trained run as a program that runs without this library, and compare what it computes.

    python -m experiments.export RUN --out network.stablehlo
    python -m experiments.export RUN --out network.onnx

The suffix tells the format. Both take batches of any size, prepared as the file `OUT.json` says: height, width and
channels, mean and standard deviation, and the names of the classes. StableHLO runs wherever JAX does. ONNX is written
by jax2onnx, which needs an older Orbax than training does, and so an environment of its own: install this library
there, then `pip install jax2onnx onnxruntime`.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import interop, runs
from attn_flax.checks import InputError, check

TASKS = ("classification", "segmentation")
BATCHES = (1, 3)
TOLERANCE = 1e-4
"""The largest difference to the network, relative to the largest of its outputs."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the network of a trained run as a program that runs without this library."""

    run: tyro.conf.Positional[Path]
    """The run folder, of classification or segmentation."""
    out: Path
    """The file to write: .stablehlo or .onnx."""


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Writes the program, loads it again, compares, and returns what stands beside it as JSON.

    Raises:
        InputError: the run cannot be read or has no network from images to an array; a suffix of no known format; what
            the format needs is not installed; the program computes something else than the network.
    """
    console = console or Console()
    written = {".stablehlo": _write_stablehlo, ".onnx": _write_onnx}
    formats = ", ".join(written)
    check(config.out.suffix in written, f"--out must end with one of {formats}, got {config.out.name!r}.")
    run = runs.read_run(config.run)
    check(run.task in TASKS, f"expected a run of {' or '.join(TASKS)}, got {run.task!r}.")
    shape = run.format["shape"]
    program = written[config.out.suffix](run.model, shape, config.out)
    difference = max(_difference(run.model, program, (batch, *shape)) for batch in BATCHES)
    check(
        difference <= TOLERANCE,
        f"{config.out} differs from the network by {difference:.1e} of its outputs, expected {TOLERANCE} at most.",
    )
    description = {"run": str(config.run), "step": run.step, **run.format, "class_names": run.class_names}
    config.out.with_name(config.out.name + ".json").write_text(json.dumps(description, indent=2) + "\n")
    size = config.out.stat().st_size / 2**20
    console.print(f"{config.out}: {size:.1f} MiB, the network's outputs to {difference:.1e}", highlight=False)
    return description


def _write_stablehlo(model, shape, path) -> Callable[[np.ndarray], Any]:
    path.write_bytes(interop.to_stablehlo(model, shape))
    return interop.from_stablehlo(path.read_bytes())


def _write_onnx(model, shape, path) -> Callable[[np.ndarray], Any]:
    missing = [name for name in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX needs {' and '.join(missing)}: install this library and then jax2onnx and onnxruntime in an "
            "environment of their own, since jax2onnx needs an older Orbax than training does, and run this there."
        )
    import jax2onnx
    import onnxruntime

    graph, variables = nnx.split(model)
    try:
        with mock.patch("jax.lax.platform_dependent", _for_any_platform):
            program = jax2onnx.to_onnx(lambda x: nnx.merge(graph, variables)(x), [("B", *shape)])
    except Exception as error:
        raise InputError(f"jax2onnx {jax2onnx.__version__} cannot write this network: {error}") from error
    path.write_bytes(program.SerializeToString())
    session = onnxruntime.InferenceSession(path)
    (images,) = session.get_inputs()
    return lambda x: session.run(None, {images.name: x})[0]


def _for_any_platform(*arrays, default=None, **forms):
    """What XLA has of its own, which jax2onnx knows, in the place of a form for each platform, which it does not."""
    return (default or forms["cpu"])(*arrays)


def _difference(model, program, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours, theirs = np.asarray(_outputs(model, x), np.float32), np.asarray(program(x), np.float32)
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


@nnx.jit
def _outputs(model, x):
    return model(x)


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
