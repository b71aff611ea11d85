"""Scaled cosine attention in windows against its derivation, and timm's."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.swinv2 import CosineWindowAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention import test_swin as windows_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
create = partial(CosineWindowAttention, 6, head_dim=3, window=3)
FORMS = {
    "rolled": (create, {}),
    "not rolled": (partial(create, shift=0), {"s": 0}),
    "windows of one": (partial(create, window=1), {"m": 1, "s": 0}),
}


def asked(x, p, *, key_bias=0.0):
    """q, k and v of each head, as lists of (n, d)."""
    bias = np.concatenate([p["q_bias"], np.full(6, key_bias), p["v_bias"]])
    features = np.array([x_i @ p["qkv.kernel"] + bias for x_i in x])
    return [[features[:, 6 * part + 3 * head : 6 * part + 3 * head + 3] for head in range(2)] for part in range(3)]


def cosine(a, b):
    lengths = math.sqrt(sum(a * a)) * math.sqrt(sum(b * b))
    return sum(a * b) / lengths if lengths else 0.0


def spaced(offset, m):
    """Δ̂."""
    share = 8 * offset / (m - 1) if m > 1 else 0.0
    return math.copysign(math.log2(1 + abs(share)) / math.log2(8), share)


def papers_spaced(offset, m):
    return math.copysign(math.log(1 + abs(offset)), offset)


def position_bias(p, head, m, *, space=spaced, last=lambda u: 16 * sigmoid(u)):
    hidden, out = (p[f"cpb_mlp.layers.{layer}.kernel"] for layer in (0, 2))
    places = windows_oracle.square(m)
    bias = np.zeros((m * m, m * m))
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            point = np.array([space(step, m) for step in windows_oracle.offset(a, b)])
            u = np.maximum(point @ hidden + p["cpb_mlp.layers.0.bias"], 0) @ out[:, head]
            bias[i, j] = last(u)
    return bias


def biased(q, k, head, p, m, *, compare=cosine, largest=100.0, bias=position_bias, scale=None):
    e = np.array([[compare(q_i, k_j) for k_j in k] for q_i in q])
    return (scale or min(math.exp(p["logit_scale"][head]), largest)) * e + bias(p, head, m)


oracle, weights, joined = (
    partial(f, ask=asked, score=biased) for f in (windows_oracle.oracle, windows_oracle.weights, windows_oracle.joined)
)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, **kinds), SHAPE)
    against_oracle.assert_equal(create, partial(weights, **kinds), SHAPE, method="attention_map", gradient=False)


def of_first(p):
    """The numbers with the scale of the first head for all."""
    return p | {"logit_scale": np.full(2, p["logit_scale"][0])}


MUTANTS = {
    "products for cosines": partial(oracle, score=partial(biased, compare=lambda a, b: a @ b)),
    "scaled by the features": partial(oracle, score=partial(biased, scale=3**-0.5)),
    "offsets as they are": partial(oracle, score=partial(biased, bias=partial(position_bias, space=lambda o, m: o))),
    "the paper's logarithm": partial(oracle, score=partial(biased, bias=partial(position_bias, space=papers_spaced))),
    "the paper's bias": partial(oracle, score=partial(biased, bias=partial(position_bias, last=lambda u: u))),
    "offsets from query to key": partial(oracle, score=partial(biased, bias=lambda *of: position_bias(*of).T)),
    "no bias": partial(oracle, score=partial(biased, bias=lambda *of: 0)),
    "one scale for all heads": partial(oracle, score=lambda q, k, head, p, m: biased(q, k, head, of_first(p), m)),
    "a bias of the keys": partial(oracle, ask=partial(asked, key_bias=0.5)),
    "no mask": partial(oracle, cut=windows_oracle.all_seen),
    "the padding hidden": partial(oracle, cut=windows_oracle.inside_seen),
    "timm's roll before the padding": partial(oracle, cut=windows_oracle.rolled_before_it_is_padded),
    "not rolled": partial(oracle, cut=windows_oracle.not_rolled),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def with_large_scales(**types):
    module = create(**types)
    module.logit_scale[...] = jnp.array([4.0, 6.0], types["param_dtype"])
    return module


def test_a_scale_is_at_most_a_hundred():
    against_oracle.assert_equal(with_large_scales, oracle, SHAPE)
    against_oracle.assert_different(with_large_scales, partial(oracle, score=partial(biased, largest=np.inf)), SHAPE)


def test_it_begins_with_a_scale_of_ten_and_no_biases():
    module = create(rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.exp(module.logit_scale[...]), [10, 10], rtol=1e-6)
    assert not module.q_bias[...].any()
    assert not module.v_bias[...].any()


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: CosineWindowAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + 3 * 64 + 2 + 1536 + 512 * 2


def timms(x, p, *, s):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    swin = timm_oracle.load("models.swin_transformer_v2")
    block = swin.SwinTransformerV2Block(6, x.shape[:2], num_heads=2, window_size=3, shift_size=s, always_partition=True)
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T for name in ("qkv", "proj")}
    arrays |= {f"cpb_mlp.{layer}.weight": p[f"cpb_mlp.layers.{layer}.kernel"].T for layer in (0, 2)}
    arrays |= {name: p[name] for name in ("q_bias", "v_bias", "proj.bias")}
    arrays |= {"cpb_mlp.0.bias": p["cpb_mlp.layers.0.bias"], "logit_scale": p["logit_scale"][:, None, None]}
    block.double().eval().attn.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return block._attn(torch.tensor(x)[None])[0].detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize(("shape", "s"), [((6, 9, 6), 1), (SHAPE, 0)])
def test_it_is_timms(shape, s):
    module, x = against_oracle.build(partial(create, shift=s)), np.random.default_rng(0).normal(size=shape)
    expected = timms(x, against_oracle.numbers(module), s=s)
    with jax.enable_x64():  # timm's coordinates are rounded to float32
        np.testing.assert_allclose(module(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
