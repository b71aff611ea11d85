"""The attention-augmented convolution against its derivation."""

import math
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.aa_conv import AttentionAugmentedConv
from tests.mechanisms import against_oracle
from tests.oracles import conv3x3

SHAPE, HEADS = (5, 4, 9), 2
SMALL = partial(AttentionAugmentedConv, 9, key_channels=6, value_channels=4, num_heads=HEADS)
CREATE = {
    "at its size": partial(SMALL, size=(5, 4)),
    "on a smaller map": partial(SMALL, size=(7, 6)),
    "without biases": partial(SMALL, size=(5, 4), use_bias=False),
}


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def positions(x):
    h, w, _ = x.shape
    return [(y, z) for y in range(h) for z in range(w)]


def offset(table, step):
    """The vector for that many steps from query to key: the table's middle row is that for none."""
    return table[(len(table) - 1) // 2 + step]


def rows_and_columns(p, dy, dx):
    return offset(p["rows"], dy) + offset(p["columns"], dx)


def weights(x, p, *, relative=rows_and_columns, scale=lambda d_k: math.sqrt(d_k / HEADS)):
    q, k = (linear(x, p, name) for name in ("query", "key"))
    d_k, at = q.shape[-1], positions(x)
    maps = []
    for head in range(HEADS):
        part = slice(head * d_k // HEADS, (head + 1) * d_k // HEADS)
        e = [[q[i][part] @ (k[j][part] + relative(p, j[0] - i[0], j[1] - i[1])) / scale(d_k) for j in at] for i in at]
        maps.append(np.exp(e) / np.exp(e).sum(1, keepdims=True))
    return np.array(maps)


def of_heads(x, p, **kinds):
    """The heads' outputs (heads, positions, features)."""
    v = linear(x, p, "value").reshape(len(positions(x)), HEADS, -1)
    return np.array([alpha @ v[:, head] for head, alpha in enumerate(weights(x, p, **kinds))])


def side_by_side(heads, shape):
    return heads.transpose(1, 0, 2).reshape(*shape[:2], -1)


def oracle(x, p, *, layout=side_by_side, **kinds):
    kernel = p["convolve.kernel"]
    convolved = conv3x3(x, kernel, p.get("convolve.bias", np.zeros(kernel.shape[-1])))
    attended = linear(layout(of_heads(x, p, **kinds), x.shape), p, "project")
    return np.concatenate([convolved, attended], -1)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE, gradient=form == "on a smaller map")
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, method="attention_map", gradient=False)


def untransposed(heads, shape):
    """(heads, positions, features) read as (heads, features, positions)."""
    return heads.reshape(-1, shape[0] * shape[1]).T.reshape(*shape[:2], -1)


def drawn_anew(p, dy, dx):
    tables = np.random.default_rng(9)
    return offset(tables.normal(size=p["rows"].shape), dy) + offset(tables.normal(size=p["columns"].shape), dx)


MUTANTS = {
    "heads untransposed": partial(oracle, layout=untransposed),
    "offsets drawn at every call": partial(oracle, relative=drawn_anew),
    "no offsets": partial(oracle, relative=lambda p, dy, dx: 0),
    "offsets from key to query": partial(oracle, relative=lambda p, dy, dx: rows_and_columns(p, -dy, -dx)),
    "rows and columns swapped": partial(oracle, relative=lambda p, dy, dx: rows_and_columns(p, dx, dy)),
    "offsets not scaled": partial(oracle, relative=lambda p, dy, dx: math.sqrt(3) * rows_and_columns(p, dy, dx)),
    "scaled by all heads' width": partial(oracle, scale=math.sqrt),
    "attention first": lambda x, p: np.roll(oracle(x, p), 4, -1),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["on a smaller map"], MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(("channels", "heads", "width"), [(320, 8, 64), (9, 8, 8)])
def test_its_widths_are_a_fifth_in_whole_heads(channels, heads, width):
    module = AttentionAugmentedConv(channels, size=(3, 3), num_heads=heads, rngs=nnx.Rngs(0))
    assert (module.query.out_features, module.value.out_features) == (width, width)
