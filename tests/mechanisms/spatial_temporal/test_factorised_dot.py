"""Factorised dot-product attention against its derivation."""

from functools import partial

import numpy as np
import pytest

from attn_flax.mechanisms.spatial_temporal.factorised_dot import FactorisedDotProduct
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal import naive

SHAPE = (3, 5, 2, 8)
HEADS = 4
CREATE = partial(FactorisedDotProduct, 8, num_heads=HEADS)


def each_frame(x, f):
    return np.array([f(frame.reshape(-1, x.shape[-1])) for frame in x])


def each_position(x, f):
    _, h, w, _ = x.shape
    return np.array([[f(x[:, i, j]) for j in range(w)] for i in range(h)])


def halves(x, p, *, of_space=(0, 1), of_time=(2, 3), **kinds):
    """Y_s and Y_t."""
    attend = partial(naive.joined, p=p, heads=HEADS, **kinds)
    in_space = each_frame(x, partial(attend, heads_used=of_space)).reshape(*x.shape[:-1], -1)
    return in_space, np.moveaxis(each_position(x, partial(attend, heads_used=of_time)), 2, 0)


def oracle(x, p, **kinds):
    return naive.linear(np.concatenate(halves(x, p, **kinds), -1), p, "heads.proj")


def weights(x, p):
    weigh = partial(naive.weights, p=p, heads=HEADS)
    return {
        "spatial": each_frame(x, partial(weigh, heads_used=(0, 1))),
        "temporal": each_position(x, partial(weigh, heads_used=(2, 3))),
    }


def test_it_is_the_paper():
    against_oracle.assert_equal(CREATE, oracle, SHAPE)
    against_oracle.assert_equal(CREATE, weights, SHAPE, method="attention_map", gradient=False)


def every_other_head(x, p):
    in_space, in_time = halves(x, p, of_space=(0, 2), of_time=(1, 3))
    pairs = [part[..., i : i + 2] for i in (0, 2) for part in (in_space, in_time)]
    return naive.linear(np.concatenate(pairs, -1), p, "heads.proj")


def axes_swapped(x, p):
    in_space, in_time = halves(x, p, of_space=(2, 3), of_time=(0, 1))
    return naive.linear(np.concatenate([in_time, in_space], -1), p, "heads.proj")


MUTANTS = {
    "all tokens": lambda x, p: naive.attend(x.reshape(-1, 8), p, HEADS).reshape(x.shape),
    "the halves added": lambda x, p: naive.linear(np.tile(sum(halves(x, p)), 2), p, "heads.proj"),
    "the halves joined in the other order": lambda x, p: naive.linear(
        np.concatenate(halves(x, p)[::-1], -1), p, "heads.proj"
    ),
    "heads by turns": every_other_head,
    "time first": axes_swapped,
    "the scale of one head": partial(oracle, scale=8**-0.5),
    "no output layer": lambda x, p: np.concatenate(halves(x, p), -1),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


def test_the_authors_order_of_heads_is_a_permutation_of_the_features():
    def permuted(x, p):
        swap = np.r_[4:8, 0:4]
        columns = {
            name: p[name][..., np.r_[swap, 8 + swap, 16 + swap]] for name in p if not name.startswith("heads.proj")
        }
        return axes_swapped(x, {**p, **columns, "heads.proj.kernel": p["heads.proj.kernel"][swap]})

    against_oracle.assert_equal(CREATE, permuted, SHAPE, gradient=False)
