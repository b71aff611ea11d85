"""Shifted-window attention against its derivation, and timm's."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.swin import ShiftedWindowAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked, interleaved
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (7, 5, 6)
create = partial(ShiftedWindowAttention, 6, head_dim=3, window=3)
FORMS = {
    "rolled": (create, {"s": 1}),
    "rolled further": (partial(create, shift=2), {"s": 2}),
    "not rolled": (partial(create, shift=0), {"s": 0}),
    "one window": (partial(create, window=7), {"m": 7, "s": 3}),
}


def offset(a, b):
    return a[0] - b[0], a[1] - b[1]


def square(m):
    return list(itertools.product(range(m), repeat=2))


def windows(h, w, m, s):
    """Of each window the places of its tokens in the map with zeros after it, and which of them see each other.

    Those do that lie as far from each other in the map as in the window.
    """
    p, q = (math.ceil(n / m) * m for n in (h, w))
    for i, j in itertools.product(range(p // m), range(q // m)):
        places = [((m * i + a + s) % p, (m * j + b + s) % q) for a, b in square(m)]
        yield (
            places,
            [
                [offset(places[t], places[u]) == offset(square(m)[t], square(m)[u]) for u in range(m * m)]
                for t in range(m * m)
            ],
        )


def features(x, places):
    """The features of those places, zeros where there is no map."""
    h, w, c = x.shape
    return np.array([x[y, z] if y < h and z < w else np.zeros(c) for y, z in places])


def position_bias(table, m):
    """The table's number for each pair of a window's positions."""
    rows = [[offset(a, b) for b in square(m)] for a in square(m)]
    return np.array([[table[(y + m - 1) * (2 * m - 1) + z + m - 1] for y, z in row] for row in rows])


def biased(q, k, head, p, m, *, scale=None, bias=position_bias):
    e = scores(q, k) * (q.shape[1] ** -0.5 if scale is None else scale)
    return e + bias(p["relative_position_bias_table"][:, head], m)


def weights(x, p, *, m=3, s=1, cut=windows, ask=asked, score=biased):
    alphas = []
    for places, seen in cut(*x.shape[:2], m, s):
        q, k, _ = ask(features(x, places), p)
        e = [score(a, b, head, p, m) for head, (a, b) in enumerate(zip(q, k, strict=True))]
        alphas.append([softmax_values(np.where(seen, e_k, -np.inf)) for e_k in e])
    return np.array(alphas)


def joined(x, p, *, m=3, s=1, cut=windows, put=None, ask=asked, score=biased):
    out = np.zeros(x.shape)
    alphas = weights(x, p, m=m, s=s, cut=cut, ask=ask, score=score)
    goals = [places for places, _ in (put or cut)(*x.shape[:2], m, s)]
    for (places, _), window, goal in zip(cut(*x.shape[:2], m, s), alphas, goals, strict=True):
        v = ask(features(x, places), p)[2]
        o = np.concatenate([weighted_sums(alpha, v_k) for alpha, v_k in zip(window, v, strict=True)], 1)
        for (y, z), o_i in zip(goal, o, strict=True):
            if y < x.shape[0] and z < x.shape[1]:
                out[y, z] = o_i
    return out


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, **kinds), SHAPE)
    against_oracle.assert_equal(create, partial(weights, **kinds), SHAPE, method="attention_map", gradient=False)


def all_seen(h, w, m, s):
    return [(places, np.ones((m * m, m * m), bool)) for places, _ in windows(h, w, m, s)]


def inside_seen(h, w, m, s):
    """Without the padding."""
    return [
        (places, np.array(seen) & [y < h and z < w for y, z in places] | np.eye(m * m, dtype=bool))
        for places, seen in windows(h, w, m, s)
    ]


def not_rolled(h, w, m, s):
    return windows(h, w, m, 0)


def rolled_forth(h, w, m, s):
    return windows(h, w, m, -s)


def rolled_before_it_is_padded(h, w, m, s):
    """With the mask of the padded map."""
    for (places, _), (_, seen) in zip(windows(h, w, m, 0), windows(h, w, m, s), strict=True):
        yield [((y + s) % h, (z + s) % w) if y < h and z < w else (h, w) for y, z in places], seen


def transposed_bias(table, m):
    return position_bias(table, m).T


def columns_first(table, m):
    return position_bias(table.reshape(2 * m - 1, -1).T.ravel(), m)


MUTANTS = {
    "not rolled": partial(oracle, cut=not_rolled),
    "rolled forth": partial(oracle, cut=rolled_forth),
    "not rolled again": partial(oracle, put=not_rolled),
    "no mask": partial(oracle, cut=all_seen),
    "the padding hidden": partial(oracle, cut=inside_seen),
    "timm's roll before the padding": partial(oracle, cut=rolled_before_it_is_padded),
    "no bias": partial(oracle, score=partial(biased, bias=lambda table, m: 0)),
    "offsets from query to key": partial(oracle, score=partial(biased, bias=transposed_bias)),
    "columns before rows": partial(oracle, score=partial(biased, bias=columns_first)),
    "one bias for all heads": partial(oracle, score=lambda q, k, head, p, m: biased(q, k, 0, p, m)),
    "no scale": partial(oracle, score=partial(biased, scale=1.0)),
    "the bias scaled": partial(oracle, score=lambda *of: biased(*of, scale=1.0) * 3**-0.5),
    "queries, keys and values by heads": partial(oracle, ask=interleaved),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: ShiftedWindowAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + 4 * 64 + 13**2 * 2


def timms(x, p, *, s):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    swin = timm_oracle.load("models.swin_transformer")
    block = swin.SwinTransformerBlock(6, x.shape[:2], num_heads=2, window_size=3, shift_size=s, always_partition=True)
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T for name in ("qkv", "proj")}
    arrays |= {name: p[name] for name in ("qkv.bias", "proj.bias", "relative_position_bias_table")}
    block.double().eval().attn.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return block._attn(torch.tensor(x)[None])[0].detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize(("shape", "s"), [((6, 9, 6), 1), ((6, 9, 6), 2), (SHAPE, 0)])
def test_it_is_timms(shape, s):
    against_oracle.assert_equal(partial(create, shift=s), partial(timms, s=s), shape)


@pytest.mark.full
def test_timm_rolls_a_map_before_it_pads_it():
    p = against_oracle.numbers(against_oracle.build(create))
    x = np.random.default_rng(0).normal(size=SHAPE)
    np.testing.assert_allclose(timms(x, p, s=1), oracle(x, p, cut=rolled_before_it_is_padded), rtol=1e-9, atol=1e-11)
