"""Laws of whole families: what begins as the identity, what knows no order of positions, what moves with its input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.catalog import create_attention
from tests.contract import CASES
from tests.test_contract import build, run

pytestmark = pytest.mark.full

IDENTITIES = ("criss_cross", "gca", "gcnet", "gct", "grn", "nl", "non_local", "sagan", "stn")
WITHOUT_ORDER = (
    "additive", "aft_simple", "article", "article_gate", "ceca", "channel_attn_davit", "cosformer_performer",
    "deepvit_reattention", "diff_attention", "double_attention", "eca", "ecam", "emanet", "enc", "ese",
    "external_attention", "gc", "gca", "gcnet", "gct", "grn", "highway", "linear_attention", "mhsa", "non_local",
    "polarized", "sagan", "scse", "se", "self_attention_2d", "separable_mobilevit", "sge", "shuffle_attention",
    "simam", "single_head", "soca", "srm", "talking_heads", "xca",
)  # fmt: skip
REACH = {"article_gate": 0, "condconv": 1, "dynamic_conv": 1, "gnconv": 9, "involution": 3, "lka": 11, "poolformer": 1}
"""How far each looks around a position, apart from means over the whole input."""


@pytest.mark.parametrize("name", IDENTITIES)
def test_it_begins_as_the_identity(name):
    case = CASES[name]
    module = create_attention(name, case.shape[-1], rngs=nnx.Rngs(0), **case.arguments)
    module.eval()
    (x,) = case.inputs(2)
    np.testing.assert_allclose(jax.jit(lambda x: module(x))(x), x, rtol=1e-5, atol=1e-6)
    assert np.abs(run(name)(x) - x).max() > 1e-2


@pytest.mark.parametrize("name", WITHOUT_ORDER)
def test_positions_in_another_order_give_the_same_in_that_order(name):
    (x,) = CASES[name].inputs(2)
    _, h, w, _ = x.shape
    order = np.random.default_rng(0).permutation(h * w)

    def shuffle(x):
        return x.reshape(2, h * w, -1)[:, order].reshape(x.shape)

    np.testing.assert_allclose(run(name)(shuffle(x)), shuffle(run(name)(x)), rtol=1e-4, atol=1e-4)
    assert np.abs(shuffle(x) - x).max() > 1


@pytest.mark.parametrize("name", REACH)
def test_a_moved_map_gives_the_moved_result_away_from_the_border(name):
    edge, (dy, dx) = REACH[name] + 3, (2, 3)
    size = 2 * edge + 4
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size + 1, CASES[name].shape[-1])), jnp.float32)
    apply = jax.jit(lambda x: build(name)(x))
    moved, expected = apply(jnp.roll(x, (dy, dx), (0, 1))), jnp.roll(apply(x), (dy, dx), (0, 1))
    inner = slice(edge, -edge), slice(edge, -edge)
    np.testing.assert_allclose(moved[inner], expected[inner], rtol=1e-4, atol=1e-4)
    assert np.abs(moved - apply(x))[inner].max() > 1e-2
