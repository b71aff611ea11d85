"""Locally-grouped and global sub-sampled attention against their derivation, and timm's."""

import itertools
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.lsa_gsa import LocallyGroupedAttention, SpatiallySeparableAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention import test_swin as windows_oracle
from tests.mechanisms.self_attention.test_mhsa import interleaved
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (7, 5, 6)
HEADS = (slice(0, 3), slice(3, 6))
create_lsa = partial(LocallyGroupedAttention, 6, head_dim=3, window=3)
create = partial(SpatiallySeparableAttention, 6, head_dim=3, window=3)


def inside(h, w, m, s):
    """Of each window the places of its tokens, and that only those of the map are seen."""
    for places, _ in windows_oracle.windows(h, w, m, 0):
        yield places, np.array([[y < h and z < w for y, z in places]] * m * m)


def scaled(q, k, head, p, m, *, scale=3**-0.5):
    return scores(q, k) * scale


lsa, lsa_weights = (partial(f, cut=inside, score=scaled) for f in (windows_oracle.oracle, windows_oracle.weights))


@pytest.mark.parametrize("m", [2, 3, 7])
def test_lsa_is_the_paper(m):
    create = partial(create_lsa, window=m)
    against_oracle.assert_equal(create, partial(lsa, m=m), SHAPE)
    against_oracle.assert_equal(create, partial(lsa_weights, m=m), SHAPE, method="attention_map", gradient=False)


LSA_MUTANTS = {
    "timm's padding that is seen": partial(lsa, cut=windows_oracle.all_seen, s=0),
    "rolled windows": partial(lsa, cut=windows_oracle.windows, s=1),
    "no scale": partial(lsa, score=partial(scaled, scale=1.0)),
    "queries, keys and values by heads": partial(lsa, ask=interleaved),
    "no output layer": partial(windows_oracle.joined, cut=inside, score=scaled),
    "a residual": lambda x, p: x + lsa(x, p),
}


@pytest.mark.parametrize("mutant", LSA_MUTANTS)
def test_usual_mistakes_in_lsa_differ(mutant):
    against_oracle.assert_different(create_lsa, LSA_MUTANTS[mutant], SHAPE)


def normalized(z, p):
    z = (z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean() + 1e-5)
    return z * p["norm.scale"] + p["norm.bias"]


def summaries(x, p, s):
    """z, in row-major order."""
    h, w, c = x.shape
    if s == 1:
        return x.reshape(-1, c)
    taps = list(itertools.product(range(s), repeat=2))
    return np.array(
        [
            normalized(sum(x[s * i + a, s * j + b] @ p["sr.kernel"][a, b] for a, b in taps) + p["sr.bias"], p)
            for i, j in itertools.product(range(h // s), range(w // s))
        ]
    )


def gsa_parts(x, p, s):
    """α of each head, and the values."""
    q = x.reshape(-1, 6) @ p["q.kernel"] + p["q.bias"]
    k, v = np.split(summaries(x, p, s) @ p["kv.kernel"] + p["kv.bias"], 2, axis=1)
    return [softmax_values(scores(q[:, head], k[:, head]) * 3**-0.5) for head in HEADS], v


def gsa(x, p, s):
    alphas, v = gsa_parts(x, p, s)
    o = [weighted_sums(alpha, v[:, head]) for alpha, head in zip(alphas, HEADS, strict=True)]
    return (np.concatenate(o, 1) @ p["proj.kernel"] + p["proj.bias"]).reshape(x.shape)


def of(part, p):
    """Its numbers."""
    return {name.removeprefix(f"{part}."): array for name, array in p.items() if name.startswith(f"{part}.")}


def weights(x, p, *, s=2):
    local = lsa(x, of("lsa", p))
    return {"lsa": lsa_weights(x, of("lsa", p)), "gsa": np.array(gsa_parts(local, of("gsa", p), s)[0])}


def oracle(x, p, *, s=2, lsa=lsa):
    return gsa(lsa(x, of("lsa", p)), of("gsa", p), s)


@pytest.mark.parametrize("s", [1, 2, 3])
def test_both_are_the_paper(s):
    of_module = partial(create, sr_ratio=s)
    against_oracle.assert_equal(of_module, partial(oracle, s=s), SHAPE)
    against_oracle.assert_equal(of_module, partial(weights, s=s), SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "GSA first": lambda x, p: lsa(gsa(x, of("gsa", p), 2), of("lsa", p)),
    "LSA alone": lambda x, p: lsa(x, of("lsa", p)),
    "GSA alone": lambda x, p: gsa(x, of("gsa", p), 2),
    "their sum": lambda x, p: lsa(x, of("lsa", p)) + gsa(x, of("gsa", p), 2),
    "a residual between them": partial(oracle, lsa=lambda x, p: x + lsa(x, p)),
    "padding that is seen": partial(oracle, lsa=LSA_MUTANTS["timm's padding that is seen"]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def parameters(create):
    return nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0))).cost((8, 9, 64)).parameters


def test_they_have_as_many_parameters_as_timms():
    assert parameters(partial(LocallyGroupedAttention, 64)) == 4 * 64**2 + 4 * 64
    assert parameters(partial(SpatiallySeparableAttention, 64, sr_ratio=1)) == 8 * 64**2 + 8 * 64
    assert parameters(partial(SpatiallySeparableAttention, 64, sr_ratio=8)) == (8 + 8**2) * 64**2 + 11 * 64


def timms(x, p, *, name, **arguments):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = getattr(timm_oracle.load("models.twins"), name)(6, num_heads=2, **arguments).double().eval()
    arrays = {}
    for ours, array in p.items():
        layer, kind = ours.split(".")
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim, (0,))
        arrays[f"{layer}.{'bias' if kind == 'bias' else 'weight'}"] = torch.tensor(array.transpose(axes))
    theirs.load_state_dict(arrays)
    out = theirs(torch.tensor(x).reshape(1, -1, 6), x.shape[:2])
    return out.detach().numpy().reshape(x.shape)


lsa_timms = partial(timms, name="LocallyGroupedAttn", ws=3)


@pytest.mark.full
def test_lsa_is_timms():
    against_oracle.assert_equal(create_lsa, lsa_timms, (6, 9, 6))


@pytest.mark.full
def test_timm_lets_the_padding_of_lsa_be_seen():
    p = against_oracle.numbers(against_oracle.build(create_lsa))
    x = np.random.default_rng(0).normal(size=SHAPE)
    seen = LSA_MUTANTS["timm's padding that is seen"](x, p)
    np.testing.assert_allclose(lsa_timms(x, p), seen, rtol=1e-9, atol=1e-11)


@pytest.mark.full
@pytest.mark.parametrize("s", [1, 2])
def test_both_are_timms(s):
    gsa_timms = partial(timms, name="GlobalSubSampleAttn", sr_ratio=s)

    def theirs(x, p):
        return gsa_timms(lsa_timms(x, of("lsa", p)), of("gsa", p))

    against_oracle.assert_equal(partial(create, sr_ratio=s), theirs, (6, 9, 6))
