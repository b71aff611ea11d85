"""Gated positional self-attention against its derivation, and timm's."""

import itertools
import math
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.gpsa import GatedPositionalSelfAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import scores, sigmoid, softmax_values, weighted_sums

MAP, SQUARE = (3, 5, 6), (4, 4, 6)
HEADS = 2
create = partial(GatedPositionalSelfAttention, 6, num_heads=HEADS)
FORMS = {"no biases": create, "all biases": partial(create, qkv_bias=True)}


def heads(x, p):
    """q, k and v as lists of each head's (n, d)."""
    tokens = x.reshape(-1, x.shape[-1])
    qk, v = (np.array([t @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0) for t in tokens]) for name in ("qk", "v"))
    return [np.split(part, HEADS, axis=1) for part in (*np.split(qk, 2, axis=1), v)]


def offsets(size):
    """(δ_x, δ_y, δ_x² + δ_y²) from each position to each."""
    places = list(itertools.product(*map(range, size)))
    return np.array([[(x - u, y - v, (x - u) ** 2 + (y - v) ** 2) for y, x in places] for v, u in places])


def gated(content, position, gate):
    return (1 - sigmoid(gate)) * softmax_values(content) + sigmoid(gate) * softmax_values(position)


def weights(x, p, *, r=offsets, gate=gated, scale=3**-0.5):
    q, k, _ = heads(x, p)
    position = r(x.shape[:2]) @ p["pos_proj.kernel"] + p["pos_proj.bias"]
    return np.array([gate(scores(q[h], k[h]) * scale, position[..., h], p["gate"][h]) for h in range(HEADS)])


def joined(x, p, **kinds):
    _, _, v = heads(x, p)
    each = [weighted_sums(alpha, v_h) for alpha, v_h in zip(weights(x, p, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(x.shape)


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(FORMS[form], oracle, MAP)
    against_oracle.assert_equal(FORMS[form], weights, MAP, method="attention_map", gradient=False)


def as_if_square(size):
    """Of a grid of ⌊√n⌋ columns."""
    n = math.prod(size)
    side = math.isqrt(n)
    return offsets((math.ceil(n / side), side))[:n, :n]


MUTANTS = {
    "timm's square grid": partial(oracle, r=as_if_square),
    "offsets from key to query": partial(oracle, r=lambda size: offsets(size) * [-1, -1, 1]),
    "rows before columns": partial(oracle, r=lambda size: offsets(size)[..., [1, 0, 2]]),
    "distances not squared": partial(oracle, r=lambda size: np.sqrt(np.abs(offsets(size))) * np.sign(offsets(size))),
    "the gate exchanged": partial(oracle, gate=lambda e, r, gate: gated(e, r, -gate)),
    "no sigmoid": partial(oracle, gate=lambda e, r, gate: (1 - gate) * softmax_values(e) + gate * softmax_values(r)),
    "one softmax of both scores": partial(oracle, gate=lambda e, r, gate: softmax_values(e + r)),
    "contents alone": partial(oracle, gate=lambda e, r, gate: softmax_values(e)),
    "positions alone": partial(oracle, gate=lambda e, r, gate: softmax_values(r)),
    "no scale": partial(oracle, scale=1.0),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["all biases"], MUTANTS[mutant], MAP)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.convit").GPSA(6, num_heads=HEADS, qkv_bias=True).double().eval()
    layers = ("qk", "v", "proj", "pos_proj")
    arrays = {f"{layer}.weight": p[f"{layer}.kernel"].T for layer in layers}
    arrays |= {f"{layer}.bias": p[f"{layer}.bias"] for layer in layers} | {"gating_param": p["gate"]}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x.reshape(1, -1, 6)))[0].detach().numpy().reshape(x.shape)


def test_it_is_timms():
    against_oracle.assert_equal(FORMS["all biases"], timms, SQUARE)


@pytest.mark.parametrize("num_heads", [4, 9])
def test_it_starts_as_timms(num_heads):
    theirs = timm_oracle.load("models.convit").GPSA(36, num_heads=num_heads, locality_strength=3.0)
    theirs.local_init()
    module = GatedPositionalSelfAttention(36, num_heads=num_heads, locality_strength=3.0, rngs=nnx.Rngs(0))
    for ours, array in (
        (module.v.kernel, theirs.v.weight.T),
        (module.pos_proj.kernel, theirs.pos_proj.weight.T),
        (module.gate, theirs.gating_param),
    ):
        np.testing.assert_allclose(ours[...], array.detach().numpy())


def test_it_starts_as_a_convolution():
    module = GatedPositionalSelfAttention(18, num_heads=9, locality_strength=20.0, rngs=nnx.Rngs(0))
    module.gate[...] = jnp.full(9, 20.0)
    y, x = 3, 2
    alpha = np.asarray(module.attention_map(jnp.ones((7, 5, 18)))).reshape(9, 7, 5, 7, 5)[:, y, x]
    for head, (dx, dy) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        assert alpha[head, y + dy, x + dx] > 0.999


@pytest.mark.parametrize(("qkv_bias", "biases"), [(False, 64), (True, 4 * 64)])
def test_it_has_as_many_parameters_as_timms(qkv_bias, biases):
    module = nnx.eval_shape(lambda: GatedPositionalSelfAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + biases + 5 * 8
