"""Rows of images, such as the samples of each class."""

import os
from collections.abc import Mapping
from typing import IO

import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure

from attn_flax.checks import check
from attn_flax.explain.pictures import displayable

INCHES = 0.8
"""Of an image's side."""


def draw_samples(rows: Mapping[str, ArrayLike], path: str | os.PathLike | IO[bytes]) -> None:
    """Saves a PNG of images in rows, one below the other.

    Args:
        rows: for each title images (b, h, w, c) with 1 or 3 channels, bytes or floats in [0, 1]; as many, and of the
            same size, in each row.
        path: of the PNG file, or an open one.

    Raises:
        InputError: no images; images of another layout or range; rows that differ.
    """
    samples_figure(rows).savefig(path, format="png", dpi=120)


def samples_figure(rows: Mapping[str, ArrayLike]) -> Figure:
    """The figure of `draw_samples`, of the same rows."""
    images = {title: displayable(np.asarray(row), None, None) for title, row in rows.items()}
    shapes = {row.shape[:3] for row in images.values()}
    check(len(shapes) == 1, f"rows must hold equally many images of one size, got shapes {sorted(shapes)}.")
    (shape,) = shapes
    count, height, width = shape
    check(count > 0, "rows must hold at least one image.")
    figure = Figure(figsize=(INCHES * count + 1, INCHES * height / width * len(rows)), layout="constrained")
    for (title, row), axes in zip(images.items(), figure.subplots(len(rows), count, squeeze=False), strict=True):
        for image, ax in zip(row, axes, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[], frame_on=False)
        axes[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    return figure
