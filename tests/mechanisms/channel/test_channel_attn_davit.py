"""Channel group attention against its derivation."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.channel_attn_davit import ChannelGroupAttention
from tests.mechanisms import against_oracle
from tests.oracles import softmax_values

SHAPE = (7, 5, 6)
FORMS = {
    "paper": {"groups": 2},
    "one group": {},
    "with biases": {"groups": 3, "use_bias": True},
    "scaled by positions": {"groups": 2, "dynamic_scale": True},
}


def create(form):
    return partial(ChannelGroupAttention, 6, **FORMS[form])


def project(x, p, name):
    return x.reshape(-1, 6) @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def weights(x, p, *, groups=1, dynamic_scale=False, use_bias=False, scale=None, names=("query", "key")):
    q, k = (project(x, p, name) for name in names)
    n, d = len(q), 6 // groups
    scale = scale or (n if dynamic_scale else d) ** -0.5
    of_group = [slice(g * d, (g + 1) * d) for g in range(groups)]
    return np.array([softmax_values(scale * q[:, g].T @ k[:, g]) for g in of_group])


def oracle(x, p, *, groups=1, value="value", transpose=False, **kinds):
    a, v, d = weights(x, p, groups=groups, **kinds), project(x, p, value), 6 // groups
    y = np.zeros_like(v)
    for n in range(len(v)):
        for i in range(6):
            g = i // d
            row = a[g, :, i % d] if transpose else a[g, i % d]
            y[n, i] = sum(row[j] * v[n, g * d + j] for j in range(d))
    return project(y, p, "project").reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(create(form), partial(oracle, **FORMS[form]), SHAPE)
    map_of_it = partial(weights, **FORMS[form])
    against_oracle.assert_equal(create(form), map_of_it, SHAPE, method="attention_map", gradient=False)


def interleaved(x, p):
    """Groups of every other channel."""
    order = [0, 2, 4, 1, 3, 5]
    moved = {
        name: value[..., order] if name.split(".")[0] != "project" else value[order] if "kernel" in name else value
        for name, value in p.items()
    }
    return oracle(x, moved, groups=2)


MUTANTS = {
    "roles as timm's names say": lambda x, p: oracle(x, p, groups=2, names=("key", "value"), value="query"),
    "queries and keys exchanged": lambda x, p: oracle(x, p, groups=2, names=("key", "query")),
    "the map transposed": lambda x, p: oracle(x, p, groups=2, transpose=True),
    "no scale": lambda x, p: oracle(x, p, groups=2, scale=1.0),
    "the scale of all channels": lambda x, p: oracle(x, p, groups=2, scale=6**-0.5),
    "the scale of positions": lambda x, p: oracle(x, p, groups=2, dynamic_scale=True),
    "one group": lambda x, p: oracle(x, p),
    "interleaved groups": interleaved,
    "a residual": lambda x, p: x + oracle(x, p, groups=2),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create("paper"), MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(
    ("channels", "use_bias", "parameters"), [(64, False, 16448), (96, False, 36960), (96, True, 37248)]
)
def test_groups_have_32_channels(channels, use_bias, parameters):
    module = nnx.eval_shape(lambda: ChannelGroupAttention(channels, use_bias=use_bias, rngs=nnx.Rngs(0)))
    assert module.groups == channels // 32
    assert module.cost((7, 5, channels)).parameters == parameters
    assert parameters == sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_positions_may_be_permuted_and_laid_out_in_any_number_of_axes():
    tokens = create("paper")(num_spatial_dims=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    flat, order = x.reshape(2, 35, 6), np.random.default_rng(1).permutation(35)
    y = create("paper")(rngs=nnx.Rngs(0))(x).reshape(2, 35, 6)
    np.testing.assert_allclose(tokens(flat), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tokens(flat[:, order]), y[:, order], rtol=1e-4, atol=1e-5)
