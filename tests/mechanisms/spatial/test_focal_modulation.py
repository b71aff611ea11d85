"""Focal modulation against its derivation."""

import math
from functools import partial

import numpy as np
import pytest

from attn_flax.mechanisms.spatial.focal_modulation import FocalModulation
from tests.mechanisms import against_oracle

SHAPE = (5, 3, 4)
CREATE = {
    "the paper's": partial(FocalModulation, 4),
    "three levels without biases": partial(FocalModulation, 4, focal_level=3, focal_factor=0, use_bias=False),
    "normalised": partial(FocalModulation, 4, normalize_modulator=True, post_norm=True, epsilon=0.1),
}


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def depthwise(x, kernel):
    h, w, _ = x.shape
    y = np.zeros_like(x)
    for i, j in np.ndindex(h, w):
        for a, b in np.ndindex(kernel.shape[:2]):
            row, column = i + a - kernel.shape[0] // 2, j + b - kernel.shape[1] // 2
            if 0 <= row < h and 0 <= column < w:
                y[i, j] += x[row, column] * kernel[a, b]
    return y


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def layer_norm(x, scale, bias, epsilon=0.1):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * scale + bias


def modulator(x, p, *, divided=False, chained=True, mean_of="last", act=gelu, global_context=True, gated=True):
    c = x.shape[-1]
    q_z_g = linear(x, p, "read")
    z_0, g = q_z_g[..., c : 2 * c], q_z_g[..., 2 * c :]
    levels = g.shape[-1] - 1
    total, z = np.zeros_like(x), z_0
    for i in range(levels):
        z = act(depthwise(z if chained else z_0, p[f"focus.{i}.kernel"]))
        total += z * (g[..., i : i + 1] if gated else 1)
    context = z if mean_of == "last" else z_0
    mean = np.array([sum(context[i, j, k] for i, j in np.ndindex(x.shape[:2])) for k in range(c)])
    if global_context:
        total += act(mean / (x.shape[0] * x.shape[1])) * g[..., levels:]
    return linear(total / (levels + 1) if divided else total, p, "mix")


def oracle(x, p, **kinds):
    modulated = linear(x, p, "read")[..., : x.shape[-1]] * modulator(x, p, **kinds)
    if "norm.scale" in p:
        modulated = layer_norm(modulated, p["norm.scale"], p["norm.bias"])
    return linear(modulated, p, "project")


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    kinds = {"divided": form == "normalised"}
    against_oracle.assert_equal(CREATE[form], partial(oracle, **kinds), SHAPE)
    against_oracle.assert_equal(
        CREATE[form], partial(modulator, **kinds), SHAPE, method="attention_map", gradient=False
    )


MUTANTS = {
    "the input for the query": lambda x, p: linear(x * modulator(x, p), p, "project"),
    "the sum for the product": lambda x, p: linear(linear(x, p, "read")[..., :4] + modulator(x, p), p, "project"),
    "levels side by side": partial(oracle, chained=False),
    "no gates": partial(oracle, gated=False),
    "no context of the whole map": partial(oracle, global_context=False),
    "the mean of the projection": partial(oracle, mean_of="first"),
    "no activation": partial(oracle, act=lambda u: u),
    "a mean of levels": partial(oracle, divided=True),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"], MUTANTS[mutant], SHAPE)
