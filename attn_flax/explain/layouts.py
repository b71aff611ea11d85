"""What a picture can show of an attention map, read off its layout."""

import math

import numpy as np


def find_grid(n: int, height: int, width: int) -> tuple[int, int] | None:
    """The (h, w) with h·w = n that an image of height × width may be reduced to, the closest to its aspect ratio.

    >>> find_grid(35, 28, 20), find_grid(12, 32, 32)
    ((7, 5), None)
    """
    grids = [(h, n // h) for h in range(1, n + 1) if n % h == 0 and _fits(h, n // h, height, width)]
    return min(grids, key=lambda grid: abs(grid[0] * width - grid[1] * height), default=None)


def _fits(h, w, height, width):
    """Whether h × w has the image's aspect ratio up to rounding one of its sides."""
    return abs(h * width - w * height) < max(height, width)


UNITS = 3
"""Of maps over units, which are many, the first so many are shown."""
BRANCHES = 4
"""What goes by channels for no more than so many are branches."""


def read_map(weights: np.ndarray, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """What there is to see in a map over `batch` images of height × width.

    Layouts, the first that fits:

        (b, c), (b, 1, 1, …)       channel gate: its weights (b, c)
        (b, h, w, c)               gate: the mean over the channels (b, h, w)
        (b, h, 1, c), (b, 1, w, c) gate of rows or columns: the mean over the channels, the same along each of them
        (b, h, w, …, c)            several weights at each position, such as those of a window: the largest (b, h, w)
        (b, …, n, n)               tokens, queries before keys: the attention that each position receives, the mean
                                   over all axes between and over the queries, and the one that the centre gives, each
                                   (b, h, w); before the gates if n is at least the product of the first two axes
        (b, h, w)                  gate of one channel
        (b, n, m), (b, m, n)       tokens and units, n the larger: the weights of the first three units (b, h, w)
        (b, m, h, w), (b, m, h, w, …)  units before positions: of the first three the weights, or the largest (b, h, w)
        (b, m, c)                  m ≤ 4 branches: the weights of each (b, c)
        (b, …, m, n)               units and tokens: the attention that each position receives, the mean over all axes
                                   between (b, h, w)

    h and w are those of the map that the module saw: in the image's aspect ratio, up to rounding. n is h·w, or 1 + h·w
    with a leading class token, whose attention is then shown in the place of the centre's.

    Returns:
        The (b, c) or (b, h, w) values by what they are; nothing for any other layout.
    """
    if weights.ndim < 2 or weights.shape[0] != batch:
        return {}
    if weights.ndim == 2 or (weights.ndim >= 4 and weights.shape[1:3] == (1, 1)):
        return {"weight of each channel": weights.reshape(batch, -1)}
    is_square = weights.shape[-1] == weights.shape[-2]
    of_tokens = is_square and weights.shape[-1] >= math.prod(weights.shape[1:3])
    if weights.ndim >= 4 and not of_tokens and (readings := _read_gates(weights, height, width)):
        return readings
    if is_square and (readings := _read_tokens(weights, height, width)):
        return readings
    if weights.ndim == 3:
        fits = _fits(*weights.shape[1:], height, width)
        return {"weight": weights} if fits else _read_units(weights, height, width)
    if _fits(*weights.shape[2:4], height, width):
        return _first_units(weights.max(tuple(range(4, weights.ndim))))
    if grid := find_grid(weights.shape[-1], height, width):
        return {"mean received": weights.mean(tuple(range(1, weights.ndim - 1))).reshape(batch, *grid)}
    return {}


def _read_gates(weights, height, width):
    rows, columns = weights.shape[1:3]
    if weights.ndim > 4:
        fits = _fits(rows, columns, height, width)
        return {"largest weight": weights.max(tuple(range(3, weights.ndim)))} if fits else {}
    if columns == 1 and rows > 1:
        columns = max(1, round(rows * width / height))
    elif rows == 1 and columns > 1:
        rows = max(1, round(columns * height / width))
    mean = np.broadcast_to(weights.mean(-1), (len(weights), rows, columns))
    return {"mean over channels": mean} if _fits(rows, columns, height, width) else {}


def _read_tokens(weights, height, width):
    n = weights.shape[-1]
    weights = weights.mean(tuple(range(1, weights.ndim - 2)))
    if grid := find_grid(n, height, width):
        h, w = grid
        giver, query, keys = "from the centre", h // 2 * w + w // 2, weights
    elif grid := find_grid(n - 1, height, width):
        giver, query, keys = "from the class token", 0, weights[..., 1:]
    else:
        return {}
    received, given = keys.mean(1), keys[:, query]
    return {"mean received": received.reshape(-1, *grid), giver: given.reshape(-1, *grid)}


def _read_units(weights, height, width):
    _, first, second = weights.shape
    by_unit = np.moveaxis(weights, -1, 1) if first > second else weights
    units, n = by_unit.shape[1:]
    if grid := find_grid(n, height, width):
        return _first_units(by_unit.reshape(-1, units, *grid))
    if first <= BRANCHES:
        return {f"branch {i + 1}": weights[:, i] for i in range(first)}
    return {}


def _first_units(weights):
    """(b, m, h, w) one by one."""
    units = weights.shape[1]
    return {f"unit {i + 1} of {units}": weights[:, i] for i in range(min(units, UNITS))}


def read_strip(weights: np.ndarray, frames: int, height: int, width: int) -> dict[str, np.ndarray]:
    """What there is to see in a map over one video, of so many frames of height × width.

    Layouts, the first that fits:

        (1, h, w, k, t, t), (1, k, t, t)  frames, queries before keys: the attention that each frame gives all frames,
                                          the mean over positions and heads (t, t)
        (1, t, k, n, n)                   tokens of each frame, queries before keys: as `read_map` reads them (t, h, w)
        (1, t, …)                         else as `read_map` reads (t, …): (t, h, w), or (t, c)

    Returns:
        The values by what they are; nothing for any other layout.
    """
    if weights.ndim in (4, 6) and weights.shape[-2:] == (frames, frames):
        return {"over frames": weights[0].mean(tuple(range(weights.ndim - 3)))}
    if weights.shape[:2] != (1, frames):
        return {}
    among_tokens = weights.ndim == 5 and weights.shape[-1] == weights.shape[-2]
    readings = _read_tokens(weights[0], height, width) if among_tokens else {}
    return readings or read_map(weights[0], frames, height, width)
