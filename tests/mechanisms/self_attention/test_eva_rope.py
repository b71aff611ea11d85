"""Self-attention with rotary positions against its derivation, and timm's."""

import itertools
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.eva_rope import RotarySelfAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked
from tests.oracles import scores, softmax_values, weighted_sums

MAP = (5, 3, 16)
HEADS = 2
create = partial(RotarySelfAttention, 16, num_heads=HEADS, base=16.0)
FORMS = {
    "a map": (create, MAP),
    "a map, no biases": (partial(create, qkv_bias=False), MAP),
    "tokens in a row": (partial(create, num_spatial_dims=1), (7, 16)),
    "a video": (partial(RotarySelfAttention, 12, num_heads=2, base=16.0, num_spatial_dims=3), (2, 3, 4, 12)),
}


def phases(size, d, *, base=16.0):
    """For each position the angles of its pairs of features: those of its first axis, then those of the next."""
    pairs = d // (2 * len(size))
    return [
        [p_a / base ** (f / pairs) for p_a in p for f in range(pairs)] for p in itertools.product(*map(range, size))
    ]


def turned(rows, angles):
    """Each pair of neighbouring features as a complex number, times e^{ia}."""
    out = np.zeros_like(rows)
    for row, row_angles, out_row in zip(rows, angles, out, strict=True):
        for f, angle in enumerate(row_angles):
            z = complex(row[2 * f], row[2 * f + 1]) * np.exp(1j * angle)
            out_row[2 * f : 2 * f + 2] = z.real, z.imag
    return out


def turned_by_halves(rows, angles):
    """Feature f paired with f + d/2."""
    order = np.arange(rows.shape[1]).reshape(2, -1).T.ravel()
    out = np.zeros_like(rows)
    out[:, order] = turned(rows[:, order], angles)
    return out


def features(x, p):
    """q, k and v of each head, biases added."""
    c = x.shape[-1]
    bias = [p.get("q_bias", np.zeros(c)), p.get("k_bias", np.zeros(c)), p.get("v_bias", np.zeros(c))]
    return asked(x, {**p, "qkv.bias": np.concatenate(bias)})


def weights(x, p, *, angles=phases, turn=turned, turn_keys=None, scale=None):
    q, k, _ = features(x, p)
    d = q[0].shape[1]
    a = angles(x.shape[:-1], d)
    turned_heads = ((turn(q[h], a), (turn_keys or turn)(k[h], a)) for h in range(HEADS))
    return np.array([softmax_values(scores(q_h, k_h) * (scale or d**-0.5)) for q_h, k_h in turned_heads])


def oracle(x, p, *, values=lambda v, size: v, **kinds):
    _, _, v = features(x, p)
    v = [values(v_h, x.shape[:-1]) for v_h in v]
    each = [weighted_sums(alpha, v_h) for alpha, v_h in zip(weights(x, p, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(x.shape) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


def columns_first(size, d):
    return np.roll(phases(size, d), d // 4, axis=1)


def opposite(rows, angles):
    return turned(rows, -np.array(angles))


MUTANTS = {
    "no positions": partial(oracle, turn=lambda rows, angles: rows),
    "keys not turned": partial(oracle, turn_keys=lambda rows, angles: rows),
    "keys turned the other way": partial(oracle, turn_keys=opposite),
    "pairs of f and f + d/2": partial(oracle, turn=turned_by_halves),
    "columns before rows": partial(oracle, angles=columns_first),
    "positions in a row": partial(oracle, angles=lambda size, d: phases((size[0] * size[1],), d)),
    "another base": partial(oracle, angles=partial(phases, base=10000.0)),
    "values turned": partial(oracle, values=lambda v, size: turned(v, phases(size, v.shape[1]))),
    "a bias of the keys": lambda x, p: oracle(x, {**p, "k_bias": p["q_bias"]}),
    "no biases": lambda x, p: oracle(x, {**p, "q_bias": 0 * p["q_bias"], "v_bias": 0 * p["v_bias"]}),
    "the biases exchanged": lambda x, p: oracle(x, {**p, "q_bias": p["v_bias"], "v_bias": p["q_bias"]}),
    "no scale": partial(oracle, scale=1.0),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], MAP)


def timms(x, p, *, load, arguments):
    """The rotations by timm's embedding "cat"; a base of 16 makes its frequencies exact in float32."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    h, w, c = x.shape
    theirs = load()(c, num_heads=HEADS, num_prefix_tokens=0, scale_norm=False, **arguments).double().eval()
    arrays = {f"{layer}.weight": p[f"{layer}.kernel"].T for layer in ("qkv", "proj")} | {"proj.bias": p["proj.bias"]}
    arrays |= {name: p[name] for name in ("q_bias", "v_bias") if name in p}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    embedding = timm_oracle.load("layers.pos_embed_sincos").RotaryEmbeddingCat(
        c // HEADS, in_pixels=False, temperature=16.0
    )
    rope = embedding.double().get_embed([h, w], dtype=torch.float64)
    return theirs(torch.tensor(x.reshape(1, h * w, c)), rope=rope)[0].detach().numpy().reshape(x.shape)


TIMM = {
    "EvaAttention": (create, "models.eva", {"qkv_bias": True}),
    "EvaAttention, no biases": (partial(create, qkv_bias=False), "models.eva", {"qkv_bias": False}),
    "AttentionRope": (partial(create, qkv_bias=False), "layers.attention", {"qkv_bias": False}),
}


@pytest.mark.parametrize("name", TIMM)
def test_it_is_timms(name):
    create, module, arguments = TIMM[name]
    load = lambda: getattr(timm_oracle.load(module), name.split(",")[0])  # noqa: E731
    against_oracle.assert_equal(create, partial(timms, load=load, arguments=arguments), MAP)


def test_its_map_of_a_constant_depends_on_offsets_alone():
    module = RotarySelfAttention(16, num_heads=HEADS, rngs=nnx.Rngs(0))
    h, w = 7, 5
    weights = np.asarray(module.attention_map(jnp.ones((h, w, 16)))).reshape(HEADS, h, w, h, w)
    ratio = weights[:, 1, 1] / weights[:, 1, 1, 1, 1][:, None, None]
    moved = weights[:, 3, 2] / weights[:, 3, 2, 3, 2][:, None, None]
    np.testing.assert_allclose(moved[:, 2:, 1:], ratio[:, :-2, :-1], rtol=1e-4)
    assert np.ptp(ratio) > 1e-3


@pytest.mark.parametrize(("qkv_bias", "biases"), [(False, 64), (True, 3 * 64)])
def test_it_has_as_many_parameters_as_timms(qkv_bias, biases):
    module = nnx.eval_shape(lambda: RotarySelfAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + biases
