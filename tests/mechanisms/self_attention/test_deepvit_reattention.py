"""Re-attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.deepvit_reattention import ReAttention
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention.test_mhsa import asked
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS = 3
create = partial(ReAttention, 6, num_heads=HEADS)
FORMS = {
    "tokens": (partial(create, num_spatial_dims=1), TOKENS),
    "tokens, all biases": (partial(create, num_spatial_dims=1, qkv_bias=True), TOKENS),
    "a map": (create, MAP),
}


def mixed(maps, p):
    """Θ α + b, where Θ[l, h] is in row h of the kernel."""
    kernel, bias = p["mix.kernel"], p["mix.bias"]
    return np.array([sum(kernel[h, l] * maps[h] for h in range(HEADS)) + bias[l] for l in range(HEADS)])


def batch_normalized(maps, p):
    """Each head's map by its running statistics."""
    mean, var, scale, bias = (p[f"norm.{name}"] for name in ("mean", "var", "scale", "bias"))
    return np.array([(maps[h] - mean[h]) / np.sqrt(var[h] + 1e-5) * scale[h] + bias[h] for h in range(HEADS)])


def layer_normalized(maps, p):
    """Each pair of tokens by the mean and variance over the heads."""
    mean = sum(maps) / HEADS
    var = sum((each - mean) ** 2 for each in maps) / HEADS
    scale, bias = p["norm.scale"], p["norm.bias"]
    return np.array([(maps[h] - mean) / np.sqrt(var + 1e-5) * scale[h] + bias[h] for h in range(HEADS)])


def weights(x, p, *, mix=mixed, normalize=batch_normalized, softmax=softmax_values, scale=2**-0.5):
    q, k, _ = asked(x, p, heads=HEADS)
    maps = np.array([softmax(scores(q_h, k_h) * scale) for q_h, k_h in zip(q, k, strict=True)])
    return normalize(mix(maps, p), p)


def oracle(x, p, *, weights=weights, **kinds):
    _, _, v = asked(x, p, heads=HEADS)
    each = [weighted_sums(beta, v_h) for beta, v_h in zip(weights(x, p, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(x.shape) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


def mixed_before(x, p):
    """The scores mixed and normalised, and the softmax after."""
    return np.array([softmax_values(e) for e in weights(x, p, softmax=lambda e: e)])


MUTANTS = {
    "vit-pytorch's layer normalisation over the heads": partial(oracle, normalize=layer_normalized),
    "vit-pytorch's mixture without a bias": partial(
        oracle, mix=lambda maps, p: mixed(maps, {**p, "mix.bias": 0 * p["mix.bias"]})
    ),
    "vit-pytorch": partial(
        oracle,
        mix=lambda maps, p: mixed(maps, {**p, "mix.bias": 0 * p["mix.bias"]}),
        normalize=layer_normalized,
    ),
    "the mixture transposed": partial(oracle, mix=lambda maps, p: mixed(maps, {**p, "mix.kernel": p["mix.kernel"].T})),
    "no mixture": partial(oracle, mix=lambda maps, p: maps),
    "no normalisation": partial(oracle, normalize=lambda maps, p: maps),
    "normalised before they are mixed": partial(oracle, mix=batch_normalized, normalize=mixed),
    "the softmax after": partial(oracle, weights=mixed_before),
    "rows that sum to one again": partial(
        oracle, weights=lambda x, p: weights(x, p) / weights(x, p).sum(-1, keepdims=True)
    ),
    "the authors' transform_scale": partial(oracle, weights=lambda x, p: weights(x, p) * 2**-0.5),
    "no scale": partial(oracle, scale=1.0),
    "a softmax over the queries": partial(oracle, softmax=lambda e: softmax_values(e.T).T),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens, all biases"][0], MUTANTS[mutant], TOKENS)


def test_in_training_a_head_is_normalised_over_examples_and_pairs_of_tokens():
    module = create(rngs=nnx.Rngs(0))
    module.norm.epsilon = 0.0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *MAP)), jnp.float32)
    beta = module.attention_map(x)
    np.testing.assert_allclose(beta.sum(-1), 0, atol=1e-4)
    np.testing.assert_allclose(beta.var((0, 2, 3)), 1, rtol=1e-4)
    assert np.ptp(beta.var((2, 3)), axis=0).max() > 1e-2


@pytest.mark.parametrize(("qkv_bias", "biases"), [(False, 64), (True, 4 * 64)])
def test_it_has_as_many_parameters_as_the_authors(qkv_bias, biases):
    module = nnx.eval_shape(lambda: ReAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2 + biases + 8**2 + 3 * 8
