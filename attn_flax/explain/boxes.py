"""Boxes on their images: what was found beside what is there."""

import os
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attn_flax.checks import check
from attn_flax.explain.masks import class_colors
from attn_flax.explain.pictures import displayable

Boxes = tuple[ArrayLike | Sequence, ArrayLike | Sequence, ArrayLike | Sequence | None]
"""Of an image the boxes (n, 4) as (x_1, y_1, x_2, y_2) in pixels, their labels (n,) and, if known, scores (n,)."""


def draw_boxes(
    images: ArrayLike,
    boxes: Mapping[str, Sequence[Boxes]],
    class_names: Sequence[str],
    path: str | os.PathLike | IO[bytes],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> None:
    """Saves a PNG with a row for each image and a column for each set of boxes, in the colours of their classes.

    Args:
        images: (b, h, w, c) with 1 or 3 channels: bytes, floats in [0, 1], or floats standardised with `mean` and
            `std`.
        boxes: for each title, such as "truth" and "found", the boxes of every image: (n, 4) as (x_1, y_1, x_2, y_2) in
            pixels, their labels (n,), and their scores (n,) or None.
        class_names: the names of the labels.
        path: of the PNG file, or an open one.
        mean: what was subtracted from the images, for each channel or for all.
        std: what they were divided by.

    Raises:
        InputError: images of another layout or range, no images, no boxes, or boxes of other images or classes.
    """
    boxes_figure(images, boxes, class_names, mean=mean, std=std).savefig(path, format="png", dpi=120)


def boxes_figure(
    images: ArrayLike,
    boxes: Mapping[str, Sequence[Boxes]],
    class_names: Sequence[str],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> Figure:
    """The figure of `draw_boxes`, with the same arguments."""
    images = displayable(np.asarray(images), mean, std)
    check(len(images) > 0, "images must hold at least one image.")
    check(len(boxes) > 0, "boxes must hold at least one set.")
    colors = class_colors(class_names)
    batch, height, width, _ = images.shape
    cell = 2.4 * float(np.clip(height / width, 0.5, 2))
    figure = Figure(figsize=(2.4 * len(boxes), cell * batch + 0.3), layout="constrained")
    axes = figure.subplots(batch, len(boxes), squeeze=False)
    for column, (title, of_images) in zip(axes.T, boxes.items(), strict=True):
        check(len(of_images) == batch, f"boxes must be those of {batch} images, got {len(of_images)} for {title!r}.")
        column[0].set_title(title, fontsize=8)
        for ax, image, (corners, labels, scores) in zip(column, images, of_images, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
            ax.set_axis_off()
            _draw(ax, np.asarray(corners), np.asarray(labels, int).tolist(), scores, class_names, colors)
    return figure


def _draw(ax, corners, labels, scores, class_names, colors):
    check(
        corners.shape == (len(labels), 4) and (scores is None or len(scores) == len(labels)),
        f"boxes must be (n, 4) with n labels and scores, got shape {corners.shape} with {len(labels)} labels.",
    )
    for i, ((left, top, right, bottom), label) in enumerate(zip(corners, labels, strict=True)):
        check(0 <= label < len(class_names), f"labels must be of {len(class_names)} classes, got {label}.")
        color = colors[label]
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.2))
        text = class_names[label] if scores is None else f"{class_names[label]} {scores[i]:.2f}"
        frame = {"facecolor": color, "edgecolor": "none", "pad": 0.6}
        ax.text(left, top, text, fontsize=6, color="white", va="bottom", clip_on=True, bbox=frame)
