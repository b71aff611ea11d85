"""A convolution in NumPy."""

import numpy as np


def conv(x, kernel, *, groups=1, dilation=1):
    """The convolution of x (h, w, c) by a kernel (p, q, c/groups, o), zeros around the map."""
    h, w, c = x.shape
    p, q, i, o = kernel.shape
    reach = dilation * (p // 2), dilation * (q // 2)
    padded = np.zeros((h + 2 * reach[0], w + 2 * reach[1], c))
    padded[reach[0] : reach[0] + h, reach[1] : reach[1] + w] = x
    y = np.zeros((h, w, o))
    for g in range(groups):
        ins, outs = slice(g * i, (g + 1) * i), slice(g * (o // groups), (g + 1) * (o // groups))
        for a in range(p):
            for b in range(q):
                met = padded[a * dilation : a * dilation + h, b * dilation : b * dilation + w, ins]
                y[..., outs] += met @ kernel[a, b, :, outs]
    return y


def normalize(x, p, name):
    """A batch norm in evaluation mode."""
    centred = (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5)
    return centred * p[f"{name}.scale"] + p[f"{name}.bias"]


def softmax(e, axis=0):
    exponentials = np.exp(e - e.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)
