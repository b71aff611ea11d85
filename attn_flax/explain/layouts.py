"""What a picture can show of an attention map, read off its layout."""

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


def read_map(weights: np.ndarray, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """What there is to see in a map over `batch` images of height × width.

    Layouts, the first that fits:

        (b, c), (b, 1, 1, c)       channel gate: its weights (b, c)
        (b, h, w, c)               gate: the mean over the channels (b, h, w)
        (b, n, n), (b, k, n, n)    tokens, queries before keys: the attention that each position receives, the mean
                                   over heads and queries, and the one that the centre gives, each (b, h, w)
        (b, h, w)                  gate of one channel

    h and w are those of the map that the module saw: in the image's aspect ratio, up to rounding. n is h·w, or 1 + h·w
    with a leading class token, whose attention is then shown in the place of the centre's.

    Returns:
        The (b, c) or (b, h, w) values by what they are; nothing for any other layout.
    """
    if weights.ndim not in (2, 3, 4) or weights.shape[0] != batch:
        return {}
    if weights.ndim == 2 or (weights.ndim == 4 and weights.shape[1:3] == (1, 1)):
        return {"weight of each channel": weights.reshape(batch, -1)}
    if weights.ndim == 4 and _fits(*weights.shape[1:3], height, width):
        return {"mean over channels": weights.mean(-1)}
    if weights.shape[-1] == weights.shape[-2] and (readings := _read_tokens(weights, height, width)):
        return readings
    if weights.ndim == 3 and _fits(*weights.shape[1:], height, width):
        return {"weight": weights}
    return {}


def _read_tokens(weights, height, width):
    n = weights.shape[-1]
    if weights.ndim == 4:
        weights = weights.mean(1)
    if grid := find_grid(n, height, width):
        h, w = grid
        giver, query, keys = "from the centre", h // 2 * w + w // 2, weights
    elif grid := find_grid(n - 1, height, width):
        giver, query, keys = "from the class token", 0, weights[..., 1:]
    else:
        return {}
    received, given = keys.mean(1), keys[:, query]
    return {"mean received": received.reshape(-1, *grid), giver: given.reshape(-1, *grid)}
