"""Windows over maps, and which of their positions meet."""

import itertools

import numpy as np

# (map, window, strides, dilation, padding)
CASES = {
    "odd": ((7, 5), (3, 5), None, None, "SAME"),
    "even": ((7, 5), (2, 4), None, None, "SAME"),
    "window larger than the map": ((7, 5), (9, 11), None, None, "SAME"),
    "valid": ((7, 5), (3, 2), None, None, "VALID"),
    "row strip": ((7, 9), (1, 7), None, None, "SAME"),
    "column strip": ((9, 5), (7, 1), None, None, "SAME"),
    "one tap": ((7, 5), (1, 1), None, None, "SAME"),
    "dilated": ((13, 11), (3, 2), None, (3, 2), "SAME"),
    "strided": ((7, 10), (3, 3), (2, 3), None, "SAME"),
    "strided past the last position": ((8, 9), (3, 2), (3, 4), None, "VALID"),
    "strided and dilated": ((11, 9), (3, 4), (2, 3), (2, 2), "SAME"),
    "padded by hand": ((7, 5), (3, 2), None, None, ((3, 0), (1, 4))),
    "cropped": ((9, 8), (3, 2), (2, 1), None, ((-2, 1), (1, -3))),
    "odd zeros before": ((7, 5), (2, 4), None, None, "SAME_LOWER"),
    "in small letters": ((7, 5), (2, 4), None, None, "same"),
    "sequence": ((11,), (4,), None, None, "SAME"),
    "strided sequence": ((11,), (3,), (2,), (2,), "SAME"),
    "volume": ((4, 7, 5), (3, 2, 3), None, None, "SAME"),
    "strided volume": ((4, 7, 5), (2, 3, 1), (1, 2, 3), (2, 1, 1), "SAME"),
}


def pads(size, window, strides, dilation, padding):
    if padding == "VALID":
        return [(0, 0)] * len(size)
    if not isinstance(padding, str):
        return padding
    total = [
        max((-(-s // t) - 1) * t + (k - 1) * d + 1 - s, 0)
        for s, k, t, d in zip(size, window, strides, dilation, strict=True)
    ]
    return [(p - p // 2, p // 2) if padding == "SAME_LOWER" else (p // 2, p - p // 2) for p in total]


def meetings(size, window, strides, dilation, padding):
    """The size of the output, and all (i, o, p): its position i takes position p of the input with tap o."""
    strides, dilation = strides or (1,) * len(size), dilation or (1,) * len(size)
    around = pads(size, window, strides, dilation, padding)
    out = [
        (s + low + high - (k - 1) * d - 1) // t + 1
        for s, k, t, d, (low, high) in zip(size, window, strides, dilation, around, strict=True)
    ]
    met = []
    for i in itertools.product(*map(range, out)):
        for o in itertools.product(*map(range, window)):
            steps = zip(i, o, strides, dilation, around, strict=True)
            p = tuple(i_a * t + o_a * d - low for i_a, o_a, t, d, (low, _) in steps)
            if all(0 <= p_a < s for p_a, s in zip(p, size, strict=True)):
                met.append((i, o, p))
    return out, met


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]
