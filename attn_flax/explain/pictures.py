"""Attention maps beside their inputs.

Figures are made without pyplot, here and in charts.py, so no global state and no display is involved; their colours
are perceptually even and safe for colour-blind eyes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import IO

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from attn_flax.checks import check
from attn_flax.explain.layouts import read_map

HEAT = "viridis"
BARS = "#0072B2"
OPACITY = 0.55


def draw_attention_maps(
    images: ArrayLike,
    maps: Mapping[str, PyTree],
    path: str | os.PathLike | IO[bytes],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
    overlay: bool = False,
) -> None:
    """Saves a PNG with a row for each image: the input, then what every module attends to.

    Args:
        images: (b, h, w, c) with 1 or 3 channels: bytes, floats in [0, 1], or floats standardised with `mean` and
            `std`.
        maps: those of `attention_maps` for the same images. `layouts.read_map` says which layouts have a picture; the
            others leave a note in their place. A column has one scale of colours, from the 2nd to the 98th percentile.
        path: of the PNG file, or an open one.
        mean: what was subtracted from the images, for each channel or for all.
        std: what they were divided by.
        overlay: whether maps lie, translucent, over their input.

    Raises:
        InputError: images of another layout or range; no images or no maps.
    """
    attention_figure(images, maps, mean=mean, std=std, overlay=overlay).savefig(path, format="png", dpi=120)


def attention_figure(
    images: ArrayLike,
    maps: Mapping[str, PyTree],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
    overlay: bool = False,
) -> Figure:
    """The figure of `draw_attention_maps`, with the same arguments."""
    images = displayable(np.asarray(images), mean, std)
    check(len(images) > 0, "images must hold at least one image.")
    check(len(maps) > 0, "maps must hold at least one map: the network called no attending module.")
    batch, height, width, _ = images.shape
    columns = _columns(maps, batch, height, width)
    cell = 1.7 * float(np.clip(height / width, 0.5, 2))
    figure = Figure(figsize=(1.7 * (1 + len(columns)), cell * batch + 0.9), layout="constrained")
    heights = [cell] * batch + [0.1]
    axes = figure.subplots(batch + 1, 1 + len(columns), squeeze=False, height_ratios=heights)
    _draw_images(axes[:, 0], images)
    for column, (title, values) in zip(axes.T[1:], columns.items(), strict=True):
        column[0].set_title(title, fontsize=8)
        _draw_column(figure, column, values, images if overlay else None)
    return figure


def _draw_images(column, images):
    column[0].set_title("input", fontsize=8)
    for ax, image in zip(column, images, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    for ax in column:
        ax.set_axis_off()


def _columns(maps, batch, height, width):
    """What each column shows, by its title; a text where a map has no picture."""
    columns = {}
    for path, of_module in maps.items():
        for keys, weights in jax.tree.leaves_with_path(of_module):
            name = f"{path or 'network'} {jax.tree_util.keystr(keys, simple=True, separator=' ')}".rstrip()
            readings = read_map(np.asarray(weights, np.float32), batch, height, width)
            for what, values in (readings or {"": f"no picture for\n{weights.shape}"}).items():
                columns[f"{name}\n{what}".rstrip()] = values
    return columns


def _draw_column(figure, column, values, below):
    """Draws a column of `_columns`, whose last axes are the legend's, over the images below, if any."""
    *rows, legend = column
    if isinstance(values, str):
        _draw_note(rows, values)
    elif values.ndim == 2:
        _draw_bars(rows, values)
    else:
        bar = figure.colorbar(draw_heat(rows, values, below), cax=legend, orientation="horizontal", extend="both")
        bar.ax.tick_params(labelsize=6)
        bar.locator.set_params(nbins=3)
        return
    legend.set_axis_off()


def _draw_note(rows, note):
    for ax in rows:
        ax.text(0.5, 0.5, note, ha="center", va="center", fontsize=7, transform=ax.transAxes)
        ax.set_axis_off()


def _draw_bars(rows, gates):
    low, high = min(0.0, gates.min()), max(gates.max(), 1e-6)
    for ax, gate in zip(rows, gates, strict=True):
        ax.stairs(gate, fill=True, color=BARS)
        ax.set(xlim=(0, len(gate)), ylim=(low * 1.05, high * 1.05))
        ax.tick_params(labelsize=6)
    rows[-1].set_xlabel("channel", fontsize=7)


def draw_heat(axes: Sequence[Axes], heats: np.ndarray, below: np.ndarray | None) -> AxesImage:
    """Draws maps (b, h, w) with one scale of colours, each in its axes, translucent over its image below, if any."""
    low, high = np.percentile(heats, [2, 98])
    for row, (ax, heat) in enumerate(zip(axes, heats, strict=True)):
        frame = (0, heat.shape[1], heat.shape[0], 0)
        if below is not None:
            ax.imshow(below[row], cmap="gray", vmin=0, vmax=1, extent=frame)
        opacity = 1 if below is None else OPACITY
        drawn = ax.imshow(heat, cmap=HEAT, vmin=low, vmax=high, alpha=opacity, extent=frame)
        ax.set_axis_off()
    return drawn


def displayable(
    images: np.ndarray, mean: ArrayLike | Sequence[float] | None, std: ArrayLike | Sequence[float] | None
) -> np.ndarray:
    """Images (b, h, w, c) as floats in [0, 1], of bytes, of such floats, or of standardised ones.

    Raises:
        InputError: images of another layout or range.
    """
    check(
        images.ndim == 4 and images.shape[-1] in (1, 3),
        f"images must be (b, h, w, c) with 1 or 3 channels, got shape {images.shape}.",
    )
    if images.dtype == np.uint8:
        return images / 255
    if mean is None and std is None:
        check(
            images.size == 0 or bool(images.min() >= 0 and images.max() <= 1),
            "images must be in [0, 1]; of standardised ones give the mean and std.",
        )
    images = images * np.asarray(1 if std is None else std) + np.asarray(0 if mean is None else mean)
    return images.clip(0, 1).astype(np.float32)
