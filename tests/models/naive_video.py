"""The parts of the networks on video in naive float64 NumPy, on one video: shares no code with attn_flax."""

import numpy as np
from scipy.special import erf

from tests.mechanisms.temporal.naive import batch_norm, layer_norm, linear


def waves(position, count):
    """The sines and cosines of a position with so many wavelengths."""
    phases = [position * 10000 ** (-f / count) for f in range(count)]
    return np.concatenate([np.sin(phases), np.cos(phases)])


def positions(h, w, d):
    return np.array([[np.concatenate([waves(y, d // 4), waves(z, d // 4)]) for z in range(w)] for y in range(h)])


def times(t, d):
    return np.array([waves(i, d // 2) for i in range(t)])


def patches(frame, p, size):
    """A linear layer of each patch of the frame (h, w, c)."""
    h, w, c = frame.shape
    kernel = p["tokens.embed.kernel"].reshape(size * size * c, -1)
    corners = [[(y, z) for z in range(0, w, size)] for y in range(0, h, size)]
    flat = np.array([[frame[y : y + size, z : z + size].reshape(-1) for y, z in row] for row in corners])
    return flat @ kernel + p["tokens.embed.bias"]


def conv_of_stride_two(x, kernel):
    """3×3, with a row and a column of zeros around x (h, w, c)."""
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 2), (1, 2), (0, 0)))
    return np.array(
        [
            [sum(padded[y + i, z + j] @ kernel[i, j] for i in range(3) for j in range(3)) for z in range(0, w, 2)]
            for y in range(0, h, 2)
        ]
    )


def stem(frame, p, convolutions):
    for i in range(convolutions):
        frame = conv_of_stride_two(frame, p[f"tokens.embed.convs.{i}.kernel"])
        frame = np.maximum(batch_norm(frame, p, f"tokens.embed.norms.{i}"), 0)
    return linear(frame, p, "tokens.embed.linear")


def tokens(x, embed):
    """Of the video (t, h, w, c)."""
    z = np.array([embed(frame) for frame in x])
    return z + positions(*z.shape[1:])


def perceive(z, p, norm, mlp):
    hidden = linear(layer_norm(z, p, norm), p, f"{mlp}.reduce")
    return z + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, p, f"{mlp}.expand")
