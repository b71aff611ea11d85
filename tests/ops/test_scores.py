import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.checks import InputError
from tests import oracles


@pytest.fixture
def qkv():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 4))


def test_products_are_the_oracles(qkv):
    with jax.enable_x64():
        scores = ops.dot_product_scores(*map(jnp.array, qkv[:2]))
        out = ops.attend(scores, jnp.array(qkv[2]))
    for b, (q, k, v) in enumerate(zip(*qkv, strict=True)):
        np.testing.assert_allclose(scores[b], oracles.scores(q, k), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(out[b], oracles.weighted_sums(oracles.scores(q, k), v), rtol=1e-12, atol=1e-14)


def test_scores_of_bfloat16_are_float32_and_outputs_bfloat16(qkv):
    q, k, v = (jnp.array(x, jnp.bfloat16) for x in qkv)
    scores = ops.dot_product_scores(q, k)
    assert scores.dtype == jnp.float32
    exact = [oracles.scores(*pair) for pair in zip(np.float64(q), np.float64(k), strict=True)]
    np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-6)
    assert ops.attend(scores, v).dtype == jnp.bfloat16


@pytest.mark.parametrize(("tokens", "fits"), [(16384, True), (16385, False)])
def test_a_map_of_more_than_a_gibibyte_is_refused_before_it_is_allocated(tokens, fits):
    x = jax.ShapeDtypeStruct((1, tokens, 2), jnp.float32)
    if fits:
        assert jax.eval_shape(ops.dot_product_scores, x, x).shape == (1, tokens, tokens)
    else:
        with pytest.raises(InputError, match=r"16385 queries .* 1\.0 GiB .* limit is 1 GiB \(16384 tokens"):
            jax.eval_shape(ops.dot_product_scores, x, x)


def test_the_limit_counts_the_bytes_that_float64_needs():
    with jax.enable_x64():
        x = jax.ShapeDtypeStruct((16384, 2), jnp.float64)
        with pytest.raises(InputError, match=r"2\.0 GiB per example in float64"):
            jax.eval_shape(ops.dot_product_scores, x, x)
