"""A run's network, out of its folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from attn_flax.checks import check
from attn_flax.runs.build import build_model, without_pretrained
from attn_flax.runs.config import BoxDataConfig, DataConfig, GenerativeModelConfig, ModelConfig, VideoDataConfig
from attn_flax.runs.folder import RunFolder
from attn_flax.training import Checkpoints, Network, thaw
from attn_flax.training.leaves import check_architecture, from_named_leaves, named_leaves

SECTIONS = {
    "classification": {"data": DataConfig, "model": ModelConfig},
    "detection": {"data": BoxDataConfig, "model": ModelConfig},
    "generation": {"data": DataConfig, "model": GenerativeModelConfig},
    "segmentation": {"data": DataConfig, "model": ModelConfig},
    "video": {"data": VideoDataConfig, "model": ModelConfig},
}
"""The sections of each task's configuration that its network is built from."""


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run was about and what it learned.

    Attributes:
        folder: where it is.
        task: what it learned: "classification", "detection", …
        data: how it prepares images or videos.
        labellings: the names of the labels 0, 1, … of each labelling, by its name.
        step: that of the checkpoint.
        model: the network at that step, in evaluation mode.
    """

    folder: RunFolder
    task: str
    data: DataConfig
    labellings: Mapping[str, tuple[str, ...]]
    step: int
    model: nnx.Module

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, those of one labelling after those of the other."""
        return tuple(name for names in self.labellings.values() for name in names)

    @property
    def format(self) -> dict[str, Any]:
        """How `data.read_images` prepares images as the training did."""
        return {"shape": (*self.data.size, self.data.channels), "mean": self.data.mean, "std": self.data.std}


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
    task = folder.read_config(str, section="task")
    check(task in SECTIONS, f"{path} is the run of another task: expected one of {', '.join(SECTIONS)}, got {task!r}.")
    data, model = (folder.read_config(SECTIONS[task][name], section=name) for name in ("data", "model"))
    labellings = {name: tuple(names) for name, names in folder.read_json("classes.json").items()}
    check(folder.checkpoints.is_dir(), f"{path} has no checkpoint yet: expected the folder {folder.checkpoints}.")
    num_classes = sum(len(names) for names in labellings.values())
    network = build_model(without_pretrained(model), data, num_classes=num_classes, rngs=nnx.Rngs(0))
    step, leaves = Checkpoints(folder.checkpoints, read_only=True).read(best=True)
    return TrainedRun(folder, task, data, labellings, step, _restored(network, step, leaves))


def _restored(model, step, leaves):
    """The network with the variables of a checkpoint, the averages where there are any."""
    has_averages = any(name.startswith("ema.") for name in leaves)
    network, params, model_state = Network.split(model)
    restored = network.merge(
        _filled(params, step, leaves, "ema.0." if has_averages else "params."),
        _filled(model_state, step, leaves, "ema.1." if has_averages else "model_state."),
    )
    thaw(restored)
    return restored


def _filled(tree, step, leaves, prefix):
    saved = {name.removeprefix(prefix): jnp.asarray(leaves[name]) for name in leaves if name.startswith(prefix)}
    check_architecture(step, saved, named_leaves(tree))
    return from_named_leaves(saved, tree)
