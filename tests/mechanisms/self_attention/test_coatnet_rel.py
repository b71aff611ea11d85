"""Relative self-attention against its derivation, and timm's."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.coatnet_rel import RelativeSelfAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked, interleaved
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (5, 3, 6)
create = partial(RelativeSelfAttention, 6, size=(5, 3), head_dim=3)


def position_bias(table, h, w):
    """The table's number for each pair of positions, by rows and columns from the key to the query."""
    places = list(itertools.product(range(h), range(w)))
    rows = table.reshape(2 * h - 1, 2 * w - 1)
    return np.array([[rows[y - v + h - 1, z - u + w - 1] for v, u in places] for y, z in places])


def in_one_row(table, h, w):
    """As of a map laid out in one row."""
    n = h * w
    return np.array([[table[i - j + n - 1] for j in range(n)] for i in range(n)])


def columns_first(table, h, w):
    return position_bias(table.reshape(2 * w - 1, 2 * h - 1).T, h, w)


def weights(x, p, *, split=interleaved, scale=None, bias=position_bias, normalize=lambda e, w: softmax_values(e + w)):
    q, k, _ = split(x, p)
    tables = p["relative_position_bias_table"].T
    return np.array(
        [
            normalize(scores(a, b) * (scale or a.shape[1] ** -0.5), bias(table, *x.shape[:2]))
            for a, b, table in zip(q, k, tables, strict=True)
        ]
    )


def joined(x, p, *, split=interleaved, **kinds):
    v = split(x, p)[2]
    each = [weighted_sums(alpha, v_k) for alpha, v_k in zip(weights(x, p, split=split, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(*x.shape[:2], -1)


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, weights, SHAPE, method="attention_map", gradient=False)


def test_features_may_go_in_other_than_they_come_out():
    against_oracle.assert_equal(partial(create, in_channels=4), oracle, (5, 3, 4))


def interpolated(table, h, w):
    """A number for each pair of positions of a map h×w, out of a table for 5×3."""
    rows = table.reshape(9, 5)
    for axis, size in enumerate((2 * h - 1, 2 * w - 1)):
        length = rows.shape[axis]
        places = (np.arange(size) + 0.5) * length / size - 0.5
        rows = np.apply_along_axis(lambda line, at, n: np.interp(at, np.arange(n), line), axis, rows, places, length)
    return position_bias(rows, h, w)


@pytest.mark.parametrize("size", [(6, 4), (2, 3)])
def test_for_a_map_of_another_size_the_table_is_interpolated(size):
    against_oracle.assert_equal(create, partial(oracle, bias=interpolated), (*size, 6))
    of_weights = partial(weights, bias=interpolated)
    against_oracle.assert_equal(create, of_weights, (*size, 6), method="attention_map", gradient=False)


MUTANTS = {
    "External-Attention-pytorch's, without a table": partial(oracle, bias=lambda table, h, w: 0),
    "offsets of a map in one row": partial(oracle, bias=in_one_row),
    "offsets from query to key": partial(oracle, bias=lambda *of: position_bias(*of).T),
    "columns before rows": partial(oracle, bias=columns_first),
    "the table after the softmax": partial(oracle, normalize=lambda e, w: softmax_values(e) + w),
    "the table scaled": partial(oracle, scale=1.0, normalize=lambda e, w: softmax_values((e + w) * 3**-0.5)),
    "no scale": partial(oracle, scale=1.0),
    "queries, then keys, then values": partial(oracle, split=asked),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: RelativeSelfAttention(64, size=(7, 5), rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + 4 * 64 + 13 * 9 * 2


def test_its_cost_is_that_of_its_layers_and_of_the_pairs_of_positions():
    module = nnx.eval_shape(lambda: create(in_channels=4, rngs=nnx.Rngs(0)))
    cost = module.cost((2, 7, 4))
    assert cost.parameters == sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert cost.multiply_adds == 14 * (4 * 18 + 6 * 6) + 2 * 14 * 14 * 6


def load(attention, p):
    """timm's attention with these numbers."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T for name in ("qkv", "proj")}
    arrays |= {name: p[name] for name in ("qkv.bias", "proj.bias")}
    arrays["rel_pos.relative_position_bias_table"] = p["relative_position_bias_table"]
    shapes = {name: array.shape for name, array in attention.state_dict().items()}
    attention.double().eval().load_state_dict(
        {name: torch.tensor(array).reshape(shapes[name]) for name, array in arrays.items()}
    )
    return attention


def timms(x, p, *, name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    maxxvit = timm_oracle.load("models.maxxvit")
    theirs = load(getattr(maxxvit, name)(6, dim_head=3, rel_pos_cls=partial(maxxvit.RelPosBias, window_size=(5, 3))), p)
    if name == "AttentionCl":
        return theirs(torch.tensor(x)[None])[0].detach().numpy()
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("name", ["Attention2d", "AttentionCl"])
def test_it_is_timms(name):
    against_oracle.assert_equal(create, partial(timms, name=name), SHAPE)
