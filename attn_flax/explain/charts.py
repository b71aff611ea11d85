"""Charts of a run: learning curves and the confusion matrix."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from attn_flax.checks import check

COLORS = {"train": "#0072B2", "validation": "#D55E00"}  # Okabe and Ito's blue and vermillion
LOSS_AND_ACCURACY = ("loss", "accuracy")
MOST_NUMBERED_CLASSES = 20


def draw_learning_curves(
    records: Iterable[Mapping[str, Any]], path: str | os.PathLike, metrics: Sequence[str] = LOSS_AND_ACCURACY
) -> None:
    """Saves a PNG with metrics of both splits over the epochs.

    Args:
        records: the lines of a run's metrics.jsonl: "epoch", "split" ("train" or "validation"), and metrics by name.
            Other splits are left out.
        path: of the PNG file.
        metrics: the names of those to draw; one that no record has is left out.

    Raises:
        InputError: the records of these splits have none of the metrics.
    """
    learning_curves_figure(records, metrics).savefig(path, format="png", dpi=120)


def learning_curves_figure(records: Iterable[Mapping[str, Any]], metrics: Sequence[str] = LOSS_AND_ACCURACY) -> Figure:
    """The figure of `draw_learning_curves`, with the same arguments."""
    records = [record for record in records if record["split"] in COLORS]
    drawn = [metric for metric in metrics if any(metric in record for record in records)]
    check(len(drawn) > 0, f"records must hold one of {', '.join(metrics)}.")
    figure = Figure(figsize=(4.5 * len(drawn), 3.2), layout="constrained")
    for ax, metric in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for split, color in COLORS.items():
            points = [(r["epoch"], r[metric]) for r in records if r["split"] == split and metric in r]
            if points:
                ax.plot(*zip(*points, strict=True), color=color, label=split, marker="." if len(points) <= 50 else "")
        name = metric.replace("_", " ")
        ax.set(title=name.capitalize(), xlabel="epoch", ylabel=name)
        _lighten(ax)
    return figure


def _lighten(ax: Axes):
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def draw_confusion_matrix(
    counts: ArrayLike | Sequence[Sequence[int | float]], class_names: Sequence[str], path: str | os.PathLike
) -> None:
    """Saves a PNG of how often each class was taken for which, as shares of the true class.

    The colours follow the square root of the share, so that rare mistakes are seen.

    Args:
        counts: (k, k), a row for each true class, a column for each predicted one.
        class_names: k names. Up to 20 classes also show the counts.
        path: of the PNG file.

    Raises:
        InputError: counts that are not (k, k), not k names, or no class.
    """
    confusion_figure(counts, class_names).savefig(path, format="png", dpi=120)


def confusion_figure(counts: ArrayLike | Sequence[Sequence[int | float]], class_names: Sequence[str]) -> Figure:
    """The figure of `draw_confusion_matrix`, of the same arguments."""
    counts = np.asarray(counts)
    k = len(class_names)
    check(k > 0 and counts.shape == (k, k), f"counts must be (k, k) of k={k} class names, got shape {counts.shape}.")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.3 * k, 4, 14))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(drawn, ax=ax, label="share of the true class", shrink=0.8)
    size = float(np.clip(300 / k, 5, 9))
    crowded = k * max(map(len, class_names)) > 40
    ax.set_xticks(range(k), class_names, rotation=90 if crowded else 0, fontsize=size)
    ax.set_yticks(range(k), class_names, fontsize=size)
    ax.set(xlabel="predicted class", ylabel="true class", title=f"{counts.trace():,.0f} of {counts.sum():,.0f} correct")
    if k <= MOST_NUMBERED_CLASSES:
        _write_numbers(ax, counts, shares)
    return figure


def _write_numbers(ax, counts, shares):
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.3 else "black"
        ax.text(column, row, f"{counts[row, column]:,.0f}", ha="center", va="center", color=color, fontsize=7)
