"""Large kernel attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.spatial.lka import LargeKernelAttention
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 3)
CREATE = {
    "the paper's": (partial(LargeKernelAttention, 3), 3),
    "K = 10, d = 2": (partial(LargeKernelAttention, 3, kernel_size=10, dilation=2), 2),
}


def depthwise(x, kernel, bias, dilation=1):
    h, w, _ = x.shape
    y = np.zeros_like(x) + bias
    taps = list(np.ndindex(kernel.shape[:2]))
    for i, j in np.ndindex(h, w):
        for a, b in taps:
            row = i + dilation * (a - kernel.shape[0] // 2)
            column = j + dilation * (b - kernel.shape[1] // 2)
            if 0 <= row < h and 0 <= column < w:
                y[i, j] += x[row, column] * kernel[a, b]
    return y


def weights(x, p, *, dilation=3, order=("near", "far")):
    for name in order:
        x = depthwise(x, p[f"{name}.kernel"], p[f"{name}.bias"], dilation if name == "far" else 1)
    return x @ p["mix.kernel"] + p["mix.bias"]


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    create, dilation = CREATE[form]
    against_oracle.assert_equal(create, partial(oracle, dilation=dilation), SHAPE)
    against_oracle.assert_equal(
        create, partial(weights, dilation=dilation), SHAPE, method="attention_map", gradient=False
    )


MUTANTS = {
    "the weights alone": weights,
    "a gate": lambda x, p: x * sigmoid(weights(x, p)),
    "a residual": lambda x, p: x + oracle(x, p),
    "no dilation": partial(oracle, dilation=1),
    "the far window first": partial(oracle, order=("far", "near")),
    "the far window alone": partial(oracle, order=("far",)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"][0], MUTANTS[mutant], SHAPE)


def test_its_windows_are_those_of_the_paper():
    module = nnx.eval_shape(lambda: LargeKernelAttention(64, rngs=nnx.Rngs(0)))
    assert (module.near.kernel.shape, module.far.kernel.shape) == ((5, 5, 64), (7, 7, 64))
    assert module.cost((14, 14, 64)) == Cost(64**2 + 77 * 64, 14 * 14 * (64**2 + 74 * 64))
