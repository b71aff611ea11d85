"""Layers of networks in plain NumPy, of one example; the numbers of a network are a dictionary by path."""

import math

import numpy as np
from flax import nnx


def under(p, name):
    """The numbers of the layer of that name."""
    return {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def norm(x, p, name, epsilon=1e-5):
    """Of the channels of each position."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * p[f"{name}.scale"] + p[f"{name}.bias"]


def batch_norm(x, p, name, epsilon=1e-5):
    """By the running statistics."""
    return (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + epsilon) * p[f"{name}.scale"] + p[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def gelu(u):
    return u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))


def perceptron(x, p):
    return linear(gelu(linear(x, p, "mlp.reduce")), p, "mlp.expand")


def convolve(x, kernel, stride=1, groups=1, pad=None):
    """The windows of x (h, w, c) that lie in it and so many zeros around it, by default half of the kernel's size."""
    if groups > 1:
        parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
        return np.concatenate([convolve(part, of_part, stride, pad=pad) for part, of_part in parts], -1)
    size = len(kernel)
    pad = size // 2 if pad is None else pad
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    h, w = ((n - size) // stride + 1 for n in padded.shape[:2])
    windows = [[padded[i * stride :, j * stride :][:size, :size] for j in range(w)] for i in range(h)]
    return np.einsum("hwijc,ijcd->hwd", windows, kernel)


def conv(x, p, name, stride, pad=0):
    """With the bias that the layer may have."""
    return convolve(x, p[f"{name}.kernel"], stride, pad=pad) + p.get(f"{name}.bias", 0)


def pre_norm(x, p, attend):
    """A transformer's block on a map or on tokens."""
    z = x + attend(norm(x, p, "norm1"), p)
    return z + perceptron(norm(z, p, "norm2"), p)


def alone(x, p):
    """A block without attention."""
    return x + perceptron(norm(x, p, "norm2"), p)


def scaled(x, p=None):
    """What `Scaled` does."""
    return x * np.arange(1.0, x.shape[-1] + 1)


class Scaled(nnx.Module):
    """An attention to tell the place of."""

    def __init__(self, channels, *, rngs):
        self.channels = channels

    def __call__(self, x):
        return scaled(x)
