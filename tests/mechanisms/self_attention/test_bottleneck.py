"""Bottleneck attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.bottleneck import BottleneckAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import softmax_values, weighted_sums

SHAPE = (5, 3, 12)
HEADS, FEATURES = 2, 4
create = partial(BottleneckAttention, 12, size=(5, 3), num_heads=HEADS)
FORMS = {
    "the authors'": (partial(create, key_features=FEATURES), {}),
    "timm's": (partial(create, scale_positions=False), {"scale_positions": False}),
}


def asked(x, p):
    """q, k and v of each head, as lists of (n, d)."""
    d = p["rows"].shape[1]
    features = np.array([x_i @ p["qkv.kernel"] for x_i in x.reshape(-1, x.shape[-1])])
    widths = [d] * (2 * HEADS) + [x.shape[-1] // HEADS] * HEADS
    ends = np.cumsum(widths)
    parts = [features[:, end - width : end] for width, end in zip(widths, ends, strict=True)]
    return parts[:HEADS], parts[HEADS : 2 * HEADS], parts[2 * HEADS :]


def from_query_to_key(query, key):
    return key - query


def weights(
    x,
    p,
    *,
    scale_positions=True,
    scale=True,
    axes=(1, 1),
    offset=from_query_to_key,
    normalize=softmax_values,
    split=asked,
):
    h, w, _ = x.shape
    places = [(y, z) for y in range(h) for z in range(w)]
    maps = []
    for q, k in zip(*split(x, p)[:2], strict=True):
        factor = q.shape[1] ** -0.5 if scale else 1.0
        of_positions = factor if scale_positions else 1.0
        e = np.zeros((h * w, h * w))
        for i, (y_i, z_i) in enumerate(places):
            for j, (y_j, z_j) in enumerate(places):
                row = p["rows"][offset(y_i, y_j) + h - 1]
                column = p["columns"][offset(z_i, z_j) + w - 1]
                e[i, j] = factor * (q[i] @ k[j]) + of_positions * (q[i] @ (axes[0] * row + axes[1] * column))
        maps.append(normalize(e))
    return np.array(maps)


def oracle(x, p, *, split=asked, **kinds):
    v = split(x, p)[2]
    heads = [weighted_sums(alpha, v_j) for alpha, v_j in zip(weights(x, p, split=split, **kinds), v, strict=True)]
    return np.concatenate(heads, 1).reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, **kinds), SHAPE)
    theirs = partial(weights, **kinds)
    against_oracle.assert_equal(create, theirs, SHAPE, method="attention_map", gradient=False)


def interleaved(x, p):
    """The features of the heads in turn."""
    q, k, v = (np.concatenate(part, 1) for part in asked(x, p))
    return [[part[:, head::HEADS] for head in range(HEADS)] for part in (q, k, v)]


MUTANTS = {
    "positions unscaled": partial(oracle, scale_positions=False),
    "no scale": partial(oracle, scale=False),
    "offsets from key to query": partial(oracle, offset=lambda query, key: query - key),
    "positions instead of offsets": partial(oracle, offset=lambda query, key: key),
    "no positions": partial(oracle, axes=(0, 0)),
    "rows alone": partial(oracle, axes=(1, 0)),
    "columns alone": partial(oracle, axes=(0, 1)),
    "a softmax over the queries": partial(oracle, normalize=lambda e: softmax_values(e.T).T),
    "keys and queries exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (1, 0, 2)]),
    "heads interleaved": partial(oracle, split=interleaved),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["the authors'"][0], MUTANTS[mutant], SHAPE)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: BottleneckAttention(64, size=(7, 5), rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 3 * 64**2 + (2 * 7 - 1 + 2 * 5 - 1) * 64 // 4


def timms(x, p, *, scale_positions):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    h, w, c = x.shape
    theirs = timm_oracle.load("layers.bottleneck_attn").BottleneckAttn(
        c, feat_size=(h, w), num_heads=HEADS, dim_head=p["rows"].shape[1], scale_pos_embed=scale_positions
    )
    arrays = {
        "qkv.weight": p["qkv.kernel"].T[:, :, None, None],
        "pos_embed.height_rel": p["rows"],
        "pos_embed.width_rel": p["columns"],
    }
    theirs.double().load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form):
    create, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(timms, **{"scale_positions": True, **kinds}), SHAPE)
