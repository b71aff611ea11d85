"""Neighbourhood attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.neighborhood import NeighborhoodAttention
from tests.mechanisms import against_oracle

SHAPE = (8, 7, 6)
HEADS, KERNEL = 2, 3
create = partial(NeighborhoodAttention, 6, num_heads=HEADS, kernel_size=KERNEL)
FORMS = {
    "the window": ({}, (7, 5, 6)),
    "without a bias": ({"rel_pos_bias": False}, (7, 5, 6)),
    "dilated": ({"dilation": 2}, SHAPE),
    "the whole map": ({"kernel_size": 5}, (5, 6, 6)),
}


def nearest(i, length, size, step):
    """The places that i sees along an axis: of those that are whole steps away, so many as are nearest."""
    line = [place for place in range(length) if (place - i) % step == 0]
    middle = line.index(i)
    start = min(max(middle - size // 2, 0), len(line) - size)
    return line[start : start + size]


def cut_off(i, length, size, step):
    """The window around i as far as it lies in the map."""
    return [place for place in range(i - size // 2 * step, i + size // 2 * step + 1, step) if 0 <= place < length]


def moved_over_the_map(i, length, size, step):
    """The window of every step-th place, moved inwards whatever its class."""
    start = min(max(i - size // 2 * step, 0), length - (size - 1) * step - 1)
    return [start + step * t for t in range(size)]


def by_offset(table, query, key, step, seen, size):
    """B, its axes given."""
    at = [(b - a) // step + size - 1 for a, b in zip(query, key, strict=True)]
    return table[at[0] * (2 * size - 1) + at[1]]


def by_offset_to_query(table, query, key, step, seen, size):
    return by_offset(table, key, query, step, seen, size)


def by_place(table, query, key, step, seen, size):
    """A bias for each place in the window."""
    return table[seen]


def of_head(j, d):
    return slice(j * d, (j + 1) * d)


def asked(x, p, *, head=of_head, heads=HEADS):
    """q, k and v of each head: maps."""
    features = np.array([[x_i @ p["qkv.kernel"] + p["qkv.bias"] for x_i in row] for row in x])
    c = x.shape[-1]
    return [[part[..., head(j, c // heads)] for j in range(heads)] for part in np.split(features, 3, -1)]


def attended(
    x,
    p,
    *,
    kernel_size=KERNEL,
    dilation=1,
    window=nearest,
    bias=by_offset,
    scale=True,
    rel_pos_bias=True,
    head=of_head,
    heads=HEADS,
):
    """[Σ_j α_ij v_j]_heads, and α (h, w, heads, m)."""
    h, w, c = x.shape
    q, k, v = asked(x, p, head=head, heads=heads)
    factor = (c // heads) ** -0.5 if scale else 1.0
    out, maps = np.zeros((h, w, c)), [[[] for _ in range(w)] for _ in range(h)]
    for y in range(h):
        for z in range(w):
            rows, columns = window(y, h, kernel_size, dilation), window(z, w, kernel_size, dilation)
            keys = [(a, b) for a in rows for b in columns]
            for j in range(heads):
                e = np.array([factor * (q[j][y, z] @ k[j][key]) for key in keys])
                if "table" in p and rel_pos_bias:
                    table = p["table"][:, j]
                    e += [bias(table, (y, z), key, dilation, seen, kernel_size) for seen, key in enumerate(keys)]
                alpha = np.exp(e - e.max()) / np.exp(e - e.max()).sum()
                out[y, z, of_head(j, c // heads)] = sum(a * v[j][key] for a, key in zip(alpha, keys, strict=True))
                maps[y][z].append(alpha)
    return out, maps


def oracle(x, p, **kinds):
    return attended(x, p, **kinds)[0] @ p["proj.kernel"] + p["proj.bias"]


def weights(x, p, **kinds):
    return np.array(attended(x, p, **kinds)[1])


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments, shape = FORMS[form]
    ours = partial(create, **arguments)
    against_oracle.assert_equal(ours, partial(oracle, **arguments), shape)
    against_oracle.assert_equal(ours, partial(weights, **arguments), shape, method="attention_map", gradient=False)


MUTANTS = {
    "no bias, as NATTEN's": partial(oracle, rel_pos_bias=False),
    "a window that shrinks at the borders": partial(oracle, window=cut_off),
    "the bias of the opposite offset": partial(oracle, bias=by_offset_to_query),
    "a bias for the place in the window": partial(oracle, bias=by_place),
    "no scale": partial(oracle, scale=False),
    "heads interleaved": partial(oracle, head=lambda j, d: slice(j, None, HEADS)),
    "no output layer": lambda x, p, **kinds: attended(x, p, **kinds)[0],
    "a residual": lambda x, p, **kinds: x + oracle(x, p, **kinds),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_usual_mistakes_differ(mutant, dilation):
    wrong = partial(MUTANTS[mutant], dilation=dilation)
    against_oracle.assert_different(partial(create, dilation=dilation), wrong, SHAPE)


OF_DILATION = {
    "not dilated": oracle,
    "windows moved over the map, not over a class": partial(oracle, dilation=2, window=moved_over_the_map),
}


@pytest.mark.parametrize("mutant", OF_DILATION)
def test_usual_mistakes_with_dilation_differ(mutant):
    ours = partial(create, dilation=2, rel_pos_bias=False)
    against_oracle.assert_different(ours, OF_DILATION[mutant], SHAPE)


COUNTS = {"with a bias": ({}, (2 * 7 - 1) ** 2 * 8), "without": ({"rel_pos_bias": False}, 0)}


@pytest.mark.parametrize("form", COUNTS)
def test_it_has_as_many_parameters_as_the_authors(form):
    arguments, table = COUNTS[form]
    module = nnx.eval_shape(lambda: NeighborhoodAttention(64, **arguments, rngs=nnx.Rngs(0)))
    assert module.cost((9, 7, 64)).parameters == 4 * 64**2 + 4 * 64 + table
