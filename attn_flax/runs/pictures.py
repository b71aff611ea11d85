"""Pictures that runs of several tasks have."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from attn_flax import explain
from attn_flax.checks import InputError
from attn_flax.runs.config import DataConfig
from attn_flax.runs.folder import RunFolder


def draw_maps(
    folder: RunFolder,
    model: nnx.Module,
    images: np.ndarray,
    config: DataConfig,
    console: Console,
    *,
    over_images: Callable[[str], bool] = lambda path: True,
) -> None:
    """Writes attention_maps.png, the network's maps beside its standardized images; says so if they can't be drawn.

    Args:
        folder: of the run.
        model: the network.
        images: what it sees.
        config: of the data.
        console: where to say so.
        over_images: for the path of a Module, whether its map is one over the image.
    """
    try:
        maps = explain.attention_maps(model, jnp.asarray(images))
    except InputError as error:
        console.print(f"no attention maps: {error}", highlight=False)
        return
    maps = {path: weights for path, weights in maps.items() if over_images(path)}
    if maps:
        path = folder.path / "attention_maps.png"
        explain.draw_attention_maps(images, maps, path, mean=config.mean, std=config.std)
