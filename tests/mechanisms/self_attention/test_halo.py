"""Halo attention against its derivation, and timm's."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.halo import HaloAttention
from tests import costs, timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import weighted_sums

HEADS, BLOCK, HALO = 2, 3, 1
WHOLE, RAGGED = (6, 9, 8), (7, 5, 8)
create = partial(HaloAttention, 8, num_heads=HEADS, block_size=BLOCK, halo_size=HALO)
TIMMS = {"scale_positions": False, "attend_padding": True}
STRIDED = {**TIMMS, "stride": 2, "compact_offsets": True}
FORMS = {
    "whole blocks": (create, WHOLE, {}),
    "a map filled up": (partial(create, key_features=3), RAGGED, {}),
    "timm's": (partial(create, **TIMMS), WHOLE, TIMMS),
    "timm's, a map filled up": (partial(create, **TIMMS), RAGGED, TIMMS),
    "strided": (partial(create, block_size=4, stride=2), RAGGED, {"block": 4, "stride": 2}),
    "timm's, strided": (partial(create, block_size=4, **STRIDED), (4, 8, 8), {"block": 4, **STRIDED}),
}


def asked(x, p):
    """q, k and v of each head as functions of a place, zero outside the map."""
    h, w, c = x.shape
    d, e = p["rows"].shape[1], c // HEADS

    def at(kernel, start, width):
        def features(y, z):
            inside = 0 <= y < h and 0 <= z < w
            return x[y, z] @ kernel[:, start : start + width] if inside else np.zeros(width)

        return features

    q = [at(p["q.kernel"], j * d, d) for j in range(HEADS)]
    k = [at(p["kv.kernel"], j * (d + e), d) for j in range(HEADS)]
    v = [at(p["kv.kernel"], j * (d + e) + d, e) for j in range(HEADS)]
    return q, k, v


def keys_before_values(x, p):
    """The keys of all heads and then the values."""
    d = p["rows"].shape[1]
    e = x.shape[-1] // HEADS
    parts = [p["kv.kernel"][:, j * d : (j + 1) * d] for j in range(HEADS)]
    others = [p["kv.kernel"][:, HEADS * d + j * e : HEADS * d + (j + 1) * e] for j in range(HEADS)]
    mixed = np.concatenate([part for pair in zip(parts, others, strict=True) for part in pair], 1)
    return asked(x, {**p, "kv.kernel": mixed})


def softmax_of_seen(scores, seen):
    exponentials = np.where(seen, np.exp(scores - scores.max()), 0)
    total = exponentials.sum()
    return exponentials / total if total else exponentials


def softmax_of_unseen(scores, seen):
    """External-Attention's."""
    return softmax_of_seen(np.zeros_like(scores), np.ones_like(seen)) if seen.all() else softmax_of_seen(scores, ~seen)


def blocks(x, block=BLOCK, stride=1):
    """The places of each block that ask and those of its window."""
    h, w, _ = x.shape
    return [
        (
            [(y, z) for y in range(top, top + block, stride) for z in range(left, left + block, stride)],
            [(y, z) for y in range(top - HALO, top + block + HALO) for z in range(left - HALO, left + block + HALO)],
        )
        for top in range(0, h, block)
        for left in range(0, w, block)
    ]


def weights(
    x,
    p,
    *,
    block=BLOCK,
    stride=1,
    compact_offsets=False,
    scale_positions=True,
    attend_padding=False,
    scale=True,
    split=asked,
    normalize=softmax_of_seen,
    row=lambda query, key: key - query + HALO,
    near=lambda query, key: True,
):
    h, w, _ = x.shape
    q, k, _ = split(x, p)
    d = p["rows"].shape[1]
    factor = d**-0.5 if scale else 1.0
    maps = []
    for queries, keys in blocks(x, block, stride):
        inside = np.array([0 <= y < h and 0 <= z < w for y, z in keys])
        of_heads = []
        for head in range(HEADS):
            alpha = []
            for query in queries:
                e = []
                moved = [y % block - y % block // stride if compact_offsets else 0 for y in query]
                for key in keys:
                    r_h, r_w = (
                        p[name][row(query[axis] - moved[axis], key[axis]) + block + 2 * HALO - 1]
                        for axis, name in enumerate(("rows", "columns"))
                    )
                    position = q[head](*query) @ (r_h + r_w)
                    e.append(factor * (q[head](*query) @ k[head](*key)) + (factor if scale_positions else 1) * position)
                seen = (inside | attend_padding) & np.array([near(query, key) for key in keys])
                alpha.append(normalize(np.array(e), seen))
            of_heads.append(alpha)
        maps.append(of_heads)
    return np.array(maps)


def oracle(x, p, *, block=BLOCK, stride=1, split=asked, **kinds):
    h, w, c = x.shape
    v = split(x, p)[2]
    out = np.zeros((h + block, w + block, c))
    alphas = weights(x, p, block=block, stride=stride, split=split, **kinds)
    for (queries, keys), alpha in zip(blocks(x, block, stride), alphas, strict=True):
        each = [weighted_sums(alpha[j], np.array([v[j](*key) for key in keys])) for j in range(HEADS)]
        for query, z in zip(queries, np.concatenate(each, 1), strict=True):
            out[query] = z
    return out[:h:stride, :w:stride]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, **kinds), shape)
    theirs = partial(weights, **kinds)
    against_oracle.assert_equal(create, theirs, shape, method="attention_map", gradient=False)


def in_one_block(query, key):
    return all(a // BLOCK == b // BLOCK for a, b in zip(query, key, strict=True))


def within_reach(query, key):
    return all(abs(a - b) <= HALO for a, b in zip(query, key, strict=True))


MUTANTS = {
    "the zeros around the map attended": partial(oracle, attend_padding=True),
    "the map masked and the zeros around it attended": partial(oracle, normalize=softmax_of_unseen),
    "positions unscaled": partial(oracle, scale_positions=False),
    "no scale": partial(oracle, scale=False),
    "the keys of all heads before the values": partial(oracle, split=keys_before_values),
    "offsets from key to query": partial(oracle, row=lambda query, key: query - key + HALO),
    "offsets in the middle of the table": partial(oracle, row=lambda query, key: key - query),
    "no halo": partial(oracle, near=in_one_block),
    "a window around each position": partial(oracle, near=within_reach),
    "keys and queries exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (1, 0, 2)]),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], RAGGED)


@pytest.mark.parametrize("mistake", [{"compact_offsets": True}, {"stride": 1}])
def test_usual_mistakes_of_the_strided_form_differ(mistake):
    strided, shape, kinds = FORMS["strided"]
    against_oracle.assert_different(strided, partial(oracle, **(kinds | mistake)), shape)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: HaloAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((16, 8, 64)).parameters == 3 * 64**2 + 2 * (2 * 14 - 1) * 64 // 8


@pytest.mark.full
def test_the_strided_form_costs_what_it_says():
    module = create(block_size=4, stride=2, rngs=nnx.Rngs(0))
    assert module.cost(RAGGED).multiply_adds == costs.multiply_adds(module, jnp.ones(RAGGED))


def timms(x, p, *, block=BLOCK, stride=1, scale_positions=False):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("layers.halo_attn").HaloAttn(
        x.shape[-1],
        num_heads=HEADS,
        dim_head=p["rows"].shape[1],
        block_size=block,
        halo_size=HALO,
        stride=stride,
        scale_pos_embed=scale_positions,
    )
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T[:, :, None, None] for name in ("q", "kv")}
    arrays |= {"pos_embed.height_rel": p["rows"], "pos_embed.width_rel": p["columns"]}
    theirs.double().load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize(("scale_positions", "key_features"), [(False, None), (True, 3)])
def test_it_is_timms(scale_positions, key_features):
    kinds = {"scale_positions": scale_positions}
    ours = partial(create, attend_padding=True, key_features=key_features, **kinds)
    against_oracle.assert_equal(ours, partial(timms, **kinds), WHOLE)


@pytest.mark.full
def test_strided_it_is_timms():
    ours, shape, _ = FORMS["timm's, strided"]
    against_oracle.assert_equal(ours, partial(timms, block=4, stride=2), shape)
