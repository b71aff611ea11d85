"""Pyramid split attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.psa_pyramid import PyramidSplitAttention
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (5, 3, 8)
GROUPS = (1, 2, 2, 1)
create = partial(PyramidSplitAttention, 8, groups=GROUPS, reduction=2)


def softmax(u, axis=0):
    e = np.exp(u - u.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv(x, kernel, groups):
    (h, w, c), (rows, columns, _, d) = x.shape, kernel.shape
    y = np.zeros((h, w, d))
    for i, j in np.ndindex(h, w):
        for a, b in np.ndindex(rows, columns):
            row, column = i + a - rows // 2, j + b - columns // 2
            if 0 <= row < h and 0 <= column < w:
                for g in range(groups):
                    inputs = slice(g * c // groups, (g + 1) * c // groups)
                    outputs = slice(g * d // groups, (g + 1) * d // groups)
                    y[i, j, outputs] += x[row, column, inputs] @ kernel[a, b, :, outputs]
    return y


def strength(u, p, gate=sigmoid):
    z = u.sum((0, 1)) / (u.shape[0] * u.shape[1])
    hidden = np.maximum(z @ p["excite.reduce.kernel"] + p["excite.reduce.bias"], 0)
    return gate(hidden @ p["excite.expand.kernel"] + p["excite.expand.bias"])


def parts(x, p, groups=GROUPS):
    return [conv(x, p[f"convs.{i}.kernel"], g) for i, g in enumerate(groups)]


def weights(x, p, *, gate=sigmoid, normalize=softmax, groups=GROUPS):
    return normalize(np.stack([strength(u, p, gate) for u in parts(x, p, groups)]))


def oracle(x, p, *, groups=GROUPS, order=1, **kinds):
    a = weights(x, p, groups=groups, **kinds)
    y = [a_i * u for a_i, u in zip(a, parts(x, p, groups), strict=True)]
    return np.concatenate(y[::order], axis=-1)


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, weights, SHAPE, method="attention_map", gradient=False)


def test_windows_in_reverse_are_the_authors_order():
    backwards = partial(PyramidSplitAttention, 8, kernel_sizes=(9, 7, 5, 3), groups=GROUPS[::-1], reduction=2)

    def authors(x, p):
        kernels = {f"convs.{i}.kernel": p[f"convs.{3 - i}.kernel"] for i in range(4)}
        return oracle(x, {**p, **kernels}, order=-1)

    against_oracle.assert_equal(backwards, authors, SHAPE, gradient=False)


MUTANTS = {
    "the parts from the last to the first": partial(oracle, order=-1),
    "no sigmoid before the softmax": partial(oracle, gate=lambda u: u),
    "no softmax": partial(oracle, normalize=lambda u: u),
    "a softmax over the channels": partial(oracle, normalize=partial(softmax, axis=1)),
    "a residual": lambda x, p: x + oracle(x, p),
    "the input weighted": lambda x, p: x * weights(x, p).reshape(-1),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_its_count_is_the_papers():
    module = nnx.eval_shape(lambda: PyramidSplitAttention(256, rngs=nnx.Rngs(0)))
    count = 6.609375 * 256**2 + 256**2 / (8 * 16) + 256 / (4 * 16) + 256 / 4
    assert module.cost((7, 5, 256)).parameters == count
