"""Multi-head attention among a few tokens, in naive float64 NumPy: shares no code with attn_flax."""

import numpy as np


def softmax(scores):
    """Along the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def layer_norm(x, p, name, epsilon=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * p[f"{name}.scale"] + p[f"{name}.bias"]


def batch_norm(x, p, name, epsilon=1e-5):
    """In evaluation."""
    return (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + epsilon) * p[f"{name}.scale"] + p[f"{name}.bias"]


def slices(c, heads):
    return [slice(j * c // heads, (j + 1) * c // heads) for j in range(heads)]


def weights(x, p, heads, name="heads", *, scale=None, heads_used=None, normalize=softmax):
    """(k, n, n): softmax(q kᵀ / √d) of each head among the tokens x (n, c)."""
    q, k, _ = np.split(linear(x, p, f"{name}.qkv"), 3, -1)
    of_head = slices(x.shape[1], heads)
    scale = (x.shape[1] // heads) ** -0.5 if scale is None else scale
    return np.array([normalize(scale * q[:, of_head[j]] @ k[:, of_head[j]].T) for j in heads_used or range(heads)])


def joined(x, p, heads, name="heads", *, heads_used=None, **kinds):
    """[Σ α v] of the heads used, before W_O."""
    v, of_head = np.split(linear(x, p, f"{name}.qkv"), 3, -1)[2], slices(x.shape[1], heads)
    alpha = weights(x, p, heads, name, heads_used=heads_used, **kinds)
    return np.concatenate([a @ v[:, of_head[j]] for a, j in zip(alpha, heads_used or range(heads), strict=True)], -1)


def attend(x, p, heads, name="heads", **kinds):
    """W_O [Σ α v] + b_O of all heads."""
    return linear(joined(x, p, heads, name, **kinds), p, f"{name}.proj")
