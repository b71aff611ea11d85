"""Recursive gated convolution against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.gnconv import RecursiveGatedConv
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (5, 4, 8)
CREATE = {
    1: partial(RecursiveGatedConv, 8, order=1, kernel_size=3),
    2: partial(RecursiveGatedConv, 8, order=2, kernel_size=5, scale=1 / 3),
    3: partial(RecursiveGatedConv, 8, order=3),
}
SCALE = {1: 1, 2: 1 / 3, 3: 1}


def depthwise(x, kernel, bias):
    h, w, _ = x.shape
    y = np.zeros_like(x) + bias
    for i, j in np.ndindex(h, w):
        for a, b in np.ndindex(kernel.shape[:2]):
            row, column = i + a - kernel.shape[0] // 2, j + b - kernel.shape[1] // 2
            if 0 <= row < h and 0 <= column < w:
                y[i, j] += x[row, column] * kernel[a, b]
    return y


def read(x, p, *, order, act=lambda u: u):
    narrowest = x.shape[-1] // 2 ** (order - 1)
    p_q = x @ p["split.kernel"] + p["split.bias"]
    gates = SCALE[order] * depthwise(p_q[..., narrowest:], p["window.kernel"], p["window.bias"])
    return p_q[..., :narrowest], act(gates)


def gates(x, p, *, order):
    return read(x, p, order=order)[1]


def oracle(x, p, *, order, merge=np.multiply, lifted=True, **kinds):
    z, gates = read(x, p, order=order, **kinds)
    start, width = 0, z.shape[-1]
    for k in range(order):
        if k:
            z = z @ p[f"lift.{k - 1}.kernel"] + p[f"lift.{k - 1}.bias"] if lifted else np.concatenate([z, z], -1)
        z = merge(z, gates[..., start : start + width])
        start, width = start + width, 2 * width
    return z @ p["project.kernel"] + p["project.bias"]


@pytest.mark.parametrize("order", CREATE)
def test_it_is_the_paper(order):
    against_oracle.assert_equal(CREATE[order], partial(oracle, order=order), SHAPE)
    against_oracle.assert_equal(
        CREATE[order], partial(gates, order=order), SHAPE, method="attention_map", gradient=False
    )


MUTANTS = {
    "sums for products": partial(oracle, order=3, merge=np.add),
    "gates between zero and one": partial(oracle, order=3, act=sigmoid),
    "copies for lifts": partial(oracle, order=3, lifted=False),
    "a residual": lambda x, p: x + oracle(x, p, order=3),
    "a scale": lambda x, p: oracle(
        x, {**p, **{f"window.{n}": p[f"window.{n}"] / 3 for n in ("kernel", "bias")}}, order=3
    ),
    "no bias of the windows": lambda x, p: oracle(x, {**p, "window.bias": 0}, order=3),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE[3], MUTANTS[mutant], SHAPE)


def test_its_count_is_the_papers():
    module = nnx.eval_shape(lambda: RecursiveGatedConv(64, rngs=nnx.Rngs(0)))
    assert module.widths == (4, 8, 16, 32, 64)
    lifts = 4 * 8 + 8 * 16 + 16 * 32 + 32 * 64
    assert module.cost((7, 5, 64)).parameters == 3 * 64**2 + 3 * 64 + 50 * 124 + lifts + 120
