"""A run's network, out of its folder."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from attn_flax.checks import check
from attn_flax.runs.build import build_model
from attn_flax.runs.config import DataConfig, ModelConfig
from attn_flax.runs.folder import RunFolder
from attn_flax.training import Checkpoints, Network
from attn_flax.training.leaves import check_architecture, from_named_leaves, named_leaves


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run was about and what it learned.

    Attributes:
        folder: where it is.
        data: how it prepares images.
        class_names: the names of the labels 0, 1, …
        step: that of the checkpoint.
        model: the network at that step, in evaluation mode.
    """

    folder: RunFolder
    data: DataConfig
    class_names: tuple[str, ...]
    step: int
    model: nnx.Module


def load_run(path: Path | str) -> nnx.Module:
    """The network of a run, with the parameters that were best on the validation split, in evaluation mode.

    Neither the data nor the devices of the training are needed, and the run need not be finished. Where it keeps moving
    averages these are the parameters; where it validates nothing its latest are the best.

    Args:
        path: the run folder.

    Raises:
        InputError: it is no run folder, has no intact checkpoint, or its checkpoint is another network's.
    """
    return read_run(path).model


def read_run(path: Path | str) -> TrainedRun:
    """The run in a folder, with its network as `load_run` gives it.

    Raises:
        InputError: as `load_run`.
    """
    folder = RunFolder(Path(path))
    data = folder.read_config(DataConfig, section="data")
    class_names = tuple(folder.read_json("classes.json"))
    check(folder.checkpoints.is_dir(), f"{path} has no checkpoint yet: expected the folder {folder.checkpoints}.")
    model = build_model(
        folder.read_config(ModelConfig, section="model"),
        num_classes=len(class_names),
        in_channels=data.channels,
        rngs=nnx.Rngs(0),
    )
    step, leaves = Checkpoints(folder.checkpoints, read_only=True).read(best=True)
    return TrainedRun(folder, data, class_names, step, _restored(model, step, leaves))


def _restored(model, step, leaves):
    """The network with the variables of a checkpoint, the averages where there are any."""
    has_averages = any(name.startswith("ema.") for name in leaves)
    network, params, model_state = Network.split(model)
    return network.merge(
        _filled(params, step, leaves, "ema.0." if has_averages else "params."),
        _filled(model_state, step, leaves, "ema.1." if has_averages else "model_state."),
    )


def _filled(tree, step, leaves, prefix):
    saved = {name.removeprefix(prefix): jnp.asarray(leaves[name]) for name in leaves if name.startswith(prefix)}
    check_architecture(step, saved, named_leaves(tree))
    return from_named_leaves(saved, tree)
