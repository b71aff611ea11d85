"""Attention over the frames of a video and within them, as a strip of pictures."""

import os
from collections.abc import Mapping, Sequence
from typing import IO

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree
from matplotlib.figure import Figure

from attn_flax.checks import check
from attn_flax.explain.layouts import read_strip
from attn_flax.explain.pictures import BARS, displayable, draw_heat

OTHER_BARS = "#999999"
LEGEND = 0.06
"""The width of a legend, in frames."""


def draw_strip(
    frames: ArrayLike,
    maps: Mapping[str, PyTree],
    path: str | os.PathLike | IO[bytes],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> None:
    """Saves a PNG with a column for each frame of a video: the frame, then what every module attends to.

    Args:
        frames: (t, h, w, c) with 1 or 3 channels: bytes, floats in [0, 1], or floats standardised with `mean` and
            `std`.
        maps: those of `attention_maps` for this video alone, as a batch of one. `layouts.read_strip` says which layouts
            have a picture; the others are left out, and so are modules that are parts of attending ones. Maps within
            frames lie over them, with one scale of colours a row; of attention over frames each frame has the weights
            that it gives all of them, its own marked.
        path: of the PNG file, or an open one.
        mean: what was subtracted from the frames, for each channel or for all.
        std: what they were divided by.

    Raises:
        InputError: frames of another layout or range, or none.
    """
    strip_figure(frames, maps, mean=mean, std=std).savefig(path, format="png", dpi=120)


def strip_figure(
    frames: ArrayLike,
    maps: Mapping[str, PyTree],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> Figure:
    """The figure of `draw_strip`, with the same arguments."""
    frames = displayable(np.asarray(frames), mean, std)
    check(len(frames) > 0, "frames must hold at least one frame.")
    rows = _rows(maps, *frames.shape[:3])
    count, height, width, _ = frames.shape
    cell = 1.1 * float(np.clip(height / width, 0.5, 2))
    figure = Figure(figsize=(1.1 * count + 1, (cell + 0.3) * (1 + len(rows))), layout="constrained")
    strips = figure.subfigures(1 + len(rows), 1, squeeze=False)[:, 0]
    for strip, title, values in zip(strips, ("frames", *rows), (None, *rows.values()), strict=True):
        strip.suptitle(title, fontsize=8)
        *axes, legend = strip.subplots(1, count + 1, width_ratios=[1] * count + [LEGEND])
        _draw_row(axes, legend, values, frames)
    return figure


def _rows(maps, frames, height, width):
    """What each row under the frames shows, by its title."""
    rows = {}
    for path, of_module in maps.items():
        if any(path.startswith(f"{outer}.") for outer in maps):
            continue
        for keys, weights in jax.tree.leaves_with_path(of_module):
            name = f"{path or 'network'} {jax.tree_util.keystr(keys, simple=True, separator=' ')}".rstrip()
            for what, values in read_strip(np.asarray(weights, np.float32), frames, height, width).items():
                rows[f"{name} {what}"] = values
    return rows


def _draw_row(axes, legend, values, frames):
    """Draws the frames, or values by frame of `_rows`, and what their colours mean."""
    if values is not None and values.ndim == 3:
        bar = legend.figure.colorbar(draw_heat(axes, values, frames), cax=legend, extend="both")
        bar.ax.tick_params(labelsize=6)
        bar.locator.set_params(nbins=3)
        return
    legend.set_axis_off()
    if values is None:
        for ax, frame in zip(axes, frames, strict=True):
            ax.imshow(frame, cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
    else:
        _draw_bars(axes, values)


def _draw_bars(axes, values):
    """The weights of each frame, its own among those of all frames marked."""
    over_frames = values.shape[1] == len(values)
    for t, (ax, weights) in enumerate(zip(axes, values, strict=True)):
        marked = [BARS if u == t or not over_frames else OTHER_BARS for u in range(len(weights))]
        ax.bar(range(len(weights)), weights, width=1, color=marked)
        ax.set(xlim=(-0.5, len(weights) - 0.5), ylim=(min(0, values.min()), max(1.05 * values.max(), 1e-6)))
        ax.tick_params(labelsize=6, labelleft=t == 0)
