"""What classifiers share: from features to logits, and the parts between mechanisms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.classifier import Classifier, LayerScale, Stage, drop_path, drop_path_rates, in_order
from tests.models import networks
from tests.models.networks import assert_equal


class Doubled(Classifier):
    """Its features are the image's, twice."""

    heads = ("head", "aux_head")

    def __init__(self, num_classes, *, dtype=None, param_dtype=jnp.float32, rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = nnx.Linear(2, num_classes, **types)
        self.aux_head = nnx.Linear(2, num_classes, **types)

    def forward_features(self, x):
        return 2 * x


def test_logits_are_of_the_mean_over_positions():
    network, p = networks.build(partial(Doubled, 3))
    images = networks.random(2, 5, 4, 2)
    expected = 2 * images.mean((1, 2)) @ p["head.kernel"] + p["head.bias"]
    assert_equal(networks.run(network, images), expected)


def test_new_heads_are_for_other_classes_and_of_the_old_types():
    network = nnx.eval_shape(lambda: Doubled(3, dtype=jnp.bfloat16, param_dtype=jnp.float16, rngs=nnx.Rngs(0)))
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    for head in (network.head, network.aux_head):
        assert head.kernel.shape == (2, 5)
        assert (head.dtype, head.param_dtype) == (jnp.bfloat16, jnp.float16)
    assert np.abs(np.float32(network.head.kernel - network.aux_head.kernel)).min() > 0
    np.testing.assert_array_equal(network.head.bias[...], np.zeros(5))


def test_a_scale_is_of_each_channel():
    module, p = networks.build(partial(LayerScale, 3, 0.1))
    x = networks.random(2, 5, 3)
    assert_equal(networks.run(module, x), p["gamma"] * x)


def test_a_scale_begins_as_told_and_computes_in_its_type():
    module = LayerScale(3, 0.125, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y = module(jnp.ones((2, 3)))
    assert (y.dtype, module.gamma.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(np.float32(y), np.full((2, 3), 0.125))


@pytest.mark.parametrize("axes", [2, 3])
def test_stochastic_depth_leaves_out_or_enlarges_whole_examples(axes):
    module = drop_path(0.75, axes=axes, rngs=nnx.Rngs(0))
    x = np.ones((200, *(3, 4, 5)[:axes]), np.float32)
    values = np.asarray(module(x)).reshape(200, -1)
    np.testing.assert_array_equal(values, np.broadcast_to(values[:, :1], values.shape))
    np.testing.assert_array_equal(np.unique(values), [0, 4])
    assert 0.15 < values[:, 0].mean() / 4 < 0.35
    module.eval()
    np.testing.assert_array_equal(module(x), x)


def test_rates_grow_evenly_from_zero():
    assert drop_path_rates(0.5, (2, 1, 3)) == [[0.0, 0.1], [0.2], [0.3, 0.4, 0.5]]
    assert drop_path_rates(0.5, (1,)) == [[0.0]]


class Counting(nnx.Module):
    """x ↦ sin(factor·sin(x + other)), which counts its calls."""

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.float32(factor))
        self.calls = nnx.BatchStat(jnp.float32(0))

    def __call__(self, x, other=0.0):
        self.calls[...] += 1
        return jnp.sin(self.factor[...] * jnp.sin(x + other))


def test_blocks_are_called_in_order_with_what_each_is_given():
    y = in_order([Counting(2.0), Counting(3.0)], jnp.float32(0.25), jnp.float32(0.5))
    np.testing.assert_allclose(y, np.sin(3 * np.sin(np.sin(2 * np.sin(0.75)) + 0.5)), rtol=1e-6)


def differentiated(remat):
    """How many sines it takes; value, gradient and the counts of calls."""
    stage = Stage(None, [Counting(2.0), Counting(3.0)], remat=remat)
    graph, *states = nnx.split(stage, nnx.Param, ...)
    states = [nnx.to_pure_dict(state) for state in states]

    def value(params, others):
        stage = nnx.merge(graph, params, others)
        return stage(jnp.full((1, 1, 1), 0.25)).sum(), [block.calls[...] for block in stage.blocks]

    differentiate = jax.value_and_grad(value, has_aux=True)
    return str(jax.make_jaxpr(differentiate)(*states)).count("= sin "), differentiate(*states)


def test_what_is_computed_anew_is_the_same():
    (sines, expected), (sines_anew, anew) = differentiated(False), differentiated(True)
    assert (sines, sines_anew) == (4, 6)
    jax.tree.map(np.testing.assert_array_equal, anew, expected)
    (_, calls), _ = expected
    np.testing.assert_array_equal(calls, [1, 1])


def test_a_stage_is_its_blocks_behind_a_smaller_map():
    halve = nnx.Conv(2, 3, (2, 2), 2, padding="VALID", rngs=nnx.Rngs(0))
    x = jnp.asarray(networks.random(4, 6, 2), jnp.float32)
    y = Stage(halve, [Counting(2.0)])(x)
    np.testing.assert_allclose(y, np.sin(2 * np.sin(halve(x))), rtol=1e-5, atol=1e-6)
