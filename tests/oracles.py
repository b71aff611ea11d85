"""The article's equations in naive float64 NumPy, and their gradients by hand: shares no code with attn_flax.

Sums over positions, queries and keys are loops, as the article writes them; matrices act on columns: a = W x + b.
"""

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scores(q, k):
    """e_ij = q_iᵀ k_j."""
    return np.array([[sum(q_i * k_j) for k_j in k] for q_i in q])


def reciprocal(d, epsilon):
    """The guard: d / (d² + ε²) in the place of 1/d."""
    return d / (d**2 + epsilon**2)


def softmax_values(e):
    """α_ij = exp(e_ij) / Σ_j exp(e_ij)."""
    return np.array([np.exp(row - max(row)) / sum(np.exp(row - max(row))) for row in e])


def sum_values(e, epsilon):
    """α_ij = e_ij / Σ_j e_ij, guarded."""
    return np.array([row * reciprocal(sum(row), epsilon) for row in e])


def weighted_sums(alpha, v):
    """o_i = Σ_j α_ij v_j."""
    return np.array([sum(alpha_ij * v_j for alpha_ij, v_j in zip(row, v, strict=True)) for row in alpha])


def article_values(x, w, b, *, normalizer, epsilon=1e-6):
    e = scores(np.array([w @ x_i + b for x_i in x]), x)
    return softmax_values(e) if normalizer == "softmax" else sum_values(e, epsilon)


def article(x, w, b, *, normalizer, residual, epsilon=1e-6):
    """The output features of N vectors x (n, c), with W_a = w and b_a = b."""
    o = weighted_sums(article_values(x, w, b, normalizer=normalizer, epsilon=epsilon), x)
    return x + o if residual else o


def article_gradients(x, w, b, do, *, normalizer, residual, epsilon=1e-6):
    """The gradients of Σ_i do_i · o_i with respect to x, w and b."""
    a = np.array([w @ x_i + b for x_i in x])
    e = scores(a, x)
    alpha = article_values(x, w, b, normalizer=normalizer, epsilon=epsilon)
    dx, dw, db = (do.copy() if residual else np.zeros_like(x)), np.zeros_like(w), np.zeros_like(b)
    for i in range(len(x)):
        dalpha = np.array([do[i] @ x_j for x_j in x])
        if normalizer == "softmax":
            de = alpha[i] * (dalpha - alpha[i] @ dalpha)
        else:
            d = sum(e[i])
            slope = (epsilon**2 - d**2) / (d**2 + epsilon**2) ** 2
            de = dalpha * reciprocal(d, epsilon) + slope * (dalpha @ e[i])
        da = sum(de[j] * x[j] for j in range(len(x)))
        for j in range(len(x)):
            dx[j] += alpha[i, j] * do[i] + de[j] * a[i]
        dx[i] += w.T @ da
        dw += np.outer(da, x[i])
        db += da
    return dx, dw, db


def article_gate_values(x, w1, b1, w2, b2):
    """m = relu(W₂ sigmoid(W₁ x + b₁) + b₂) of each position of x (n, c)."""
    return np.array([np.maximum(w2 @ sigmoid(w1 @ x_i + b1) + b2, 0) for x_i in x])


def article_gate(x, w1, b1, w2, b2):
    return x * article_gate_values(x, w1, b1, w2, b2)


def article_gate_gradients(x, w1, b1, w2, b2, dy):
    """The gradients of Σ_i dy_i · y_i with respect to x, w1, b1, w2 and b2."""
    dx, dw1, db1, dw2, db2 = (np.zeros_like(p) for p in (x, w1, b1, w2, b2))
    for i, x_i in enumerate(x):
        s = sigmoid(w1 @ x_i + b1)
        z = w2 @ s + b2
        dz = dy[i] * x_i * (z > 0)
        dr = w2.T @ dz * s * (1 - s)
        dx[i] = dy[i] * np.maximum(z, 0) + w1.T @ dr
        dw1 += np.outer(dr, x_i)
        db1 += dr
        dw2 += np.outer(dz, s)
        db2 += dz
    return dx, dw1, db1, dw2, db2


def adaptive_average_pool(x, size):
    """The mean of each bin of x (h, w, c): rows ⌊i·h/p⌋ to ⌈(i+1)·h/p⌉, and columns likewise."""
    (h, w, c), (p, q) = x.shape, size
    out = np.zeros((p, q, c))
    for i in range(p):
        for j in range(q):
            rows = range(math.floor(i * h / p), math.ceil((i + 1) * h / p))
            columns = range(math.floor(j * w / q), math.ceil((j + 1) * w / q))
            out[i, j] = sum(x[y, z] for y in rows for z in columns) / (len(rows) * len(columns))
    return out


def conv3x3(x, kernel, bias):
    """The 3×3 convolution of x (h, w, c) with one row and column of zeros around; kernel (3, 3, c, d)."""
    h, w, _ = x.shape
    out = np.zeros((h, w, len(bias)))
    for y in range(h):
        for z in range(w):
            taps = [(i, j) for i in range(3) for j in range(3) if 0 <= y + i - 1 < h and 0 <= z + j - 1 < w]
            out[y, z] = bias + sum(x[y + i - 1, z + j - 1] @ kernel[i, j] for i, j in taps)
    return out


def central_difference(f, arguments, direction, step=1e-6):
    """The derivative of f at `arguments` along `direction`, one array for each argument."""
    ahead, behind = ([p + s * d for p, d in zip(arguments, direction, strict=True)] for s in (step, -step))
    return (f(*ahead) - f(*behind)) / (2 * step)
