"""Segmentations beside their images: the classes of pixels as colours."""

import os
from collections.abc import Sequence
from typing import IO

import numpy as np
from jax.typing import ArrayLike
from matplotlib import color_sequences
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from attn_flax.checks import check
from attn_flax.explain.pictures import displayable

BACKGROUND = "background"
IGNORED = (1.0, 1.0, 1.0)
SHADES = (0.0, 0.5, -0.5)
"""How far the sequence of colours is moved to white, or to black, when it comes again."""


def draw_masks(
    images: ArrayLike,
    masks: dict[str, ArrayLike],
    class_names: Sequence[str],
    path: str | os.PathLike | IO[bytes],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> None:
    """Saves a PNG with a row for each image: the image, then its masks; below, a legend of the classes.

    Args:
        images: (b, h, w, c) with 1 or 3 channels: bytes, floats in [0, 1], or floats standardised with `mean` and
            `std`.
        masks: for each title, such as "truth" and "prediction", integers (b, h, w), classes and -1 where a pixel has
            none, which is drawn white.
        class_names: their names. A class "background" is black, the others have the colours of `class_colors`.
        path: of the PNG file, or an open one.
        mean: what was subtracted from the images, for each channel or for all.
        std: what they were divided by.

    Raises:
        InputError: images of another layout or range, no images, no mask, or one of another size or class.
    """
    masks_figure(images, masks, class_names, mean=mean, std=std).savefig(path, format="png", dpi=120)


def masks_figure(
    images: ArrayLike,
    masks: dict[str, ArrayLike],
    class_names: Sequence[str],
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> Figure:
    """The figure of `draw_masks`, with the same arguments."""
    images = displayable(np.asarray(images), mean, std)
    check(len(images) > 0, "images must hold at least one image.")
    check(len(masks) > 0, "masks must hold at least one mask.")
    masks = {title: _checked(np.asarray(mask), images, class_names) for title, mask in masks.items()}
    colors = class_colors(class_names)
    batch, height, width, _ = images.shape
    cell = 1.7 * float(np.clip(height / width, 0.5, 2))
    figure = Figure(figsize=(1.7 * (1 + len(masks)), cell * batch + 0.9), layout="constrained")
    axes = figure.subplots(batch, 1 + len(masks), squeeze=False)
    table = np.array([*colors, IGNORED])
    for column, (title, pictures) in zip(
        axes.T, {"image": images, **{title: table[mask] for title, mask in masks.items()}}.items(), strict=True
    ):
        column[0].set_title(title, fontsize=8)
        for ax, picture in zip(column, pictures, strict=True):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
    _draw_legend(figure, masks, class_names, colors)
    return figure


def class_colors(class_names: Sequence[str]) -> list[tuple[float, float, float]]:
    """A colour for each class: black for one named "background", for the others those of a sequence of ten.

    The ten can be told apart with any colour vision; the next ten classes have the same colours lightened, then come
    ten darkened, and so on from the beginning.

    Source: Petroff, "Accessible Color Sequences for Data Visualization" (2021), arXiv:2107.02270.

    >>> class_colors(["background", "cat"])
    [(0.0, 0.0, 0.0), (0.24705882352941178, 0.5647058823529412, 0.8549019607843137)]
    """
    ten = [np.array(to_rgb(color)) for color in color_sequences["petroff10"]]
    colors, used = [], 0
    for name in class_names:
        if name == BACKGROUND:
            colors.append((0.0, 0.0, 0.0))
            continue
        shade = SHADES[used // len(ten) % len(SHADES)]
        color = ten[used % len(ten)] * (1 - abs(shade)) + max(shade, 0)
        colors.append(tuple(color.tolist()))
        used += 1
    return colors


def _checked(mask, images, class_names):
    check(
        mask.shape == images.shape[:3] and np.issubdtype(mask.dtype, np.integer),
        f"masks must be integers of shape {images.shape[:3]}, as the images are, got {mask.dtype} {mask.shape}.",
    )
    check(
        bool(mask.min() >= -1 and mask.max() < len(class_names)),
        f"masks must be of {len(class_names)} classes, or -1, got {mask.min()} to {mask.max()}.",
    )
    return mask


def _draw_legend(figure, masks, class_names, colors):
    """The classes that there are in the masks."""
    there = np.unique(np.concatenate([mask.ravel() for mask in masks.values()]))
    handles = [Patch(facecolor=colors[k], edgecolor="gray", label=class_names[k]) for k in there if k >= 0]
    if there[0] < 0:
        handles.append(Patch(facecolor=IGNORED, edgecolor="gray", label="ignored"))
    widest = 0.4 + 0.07 * max(len(handle.get_label()) for handle in handles)  # inches, about
    columns = min(len(handles), max(1, int(figure.get_figwidth() / widest)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
