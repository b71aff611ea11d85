"""A Module as a pure function: evaluation, training, random numbers, batch statistics."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.training import Network
from tests.training.networks import SmallNet

KEY = jax.random.key(7)
IMAGES = np.random.default_rng(0).normal(size=(6, 7, 5, 3)).astype(np.float32)


class Deep(nnx.Module):
    """Three layers in one, each with dropout."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)


@pytest.fixture(scope="module")
def parts():
    return Network.split(SmallNet(dropout=0.5, rngs=nnx.Rngs(0)))


def flat(tree):
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def test_parameters_and_statistics_are_told_apart(parts):
    _, params, model_state = parts
    assert set(params) == {"conv", "norm", "attention", "linear"}
    assert set(params["norm"]) == {"scale", "bias"}
    assert set(flat(model_state)) == {"['norm']['mean']", "['norm']['var']"}


def test_the_merged_module_is_the_original_in_evaluation_mode(parts):
    network, params, model_state = parts
    original = SmallNet(dropout=0.5, rngs=nnx.Rngs(0))
    original.eval()
    merged = network.merge(params, model_state)
    np.testing.assert_array_equal(merged(IMAGES), original(IMAGES))
    np.testing.assert_array_equal(merged(IMAGES), merged(IMAGES))


def test_the_merged_module_has_the_given_variables(parts):
    network, params, model_state = parts
    bias = np.random.default_rng(1).normal(size=5).astype(np.float32)
    module = network.merge(params | {"linear": {"kernel": np.zeros((8, 5), np.float32), "bias": bias}}, model_state)
    np.testing.assert_array_equal(module(IMAGES), np.tile(bias, (6, 1)))


def test_the_key_decides_the_dropout(parts):
    network, params, model_state = parts
    first, again, other = (network.train(params, model_state, IMAGES, key=k)[0] for k in (KEY, KEY, jax.random.key(8)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


def test_what_a_module_drew_before_does_not_matter(parts):
    used = SmallNet(dropout=0.5, rngs=nnx.Rngs(0))
    used(IMAGES)
    assert used.drop1.rngs.count[...] == 1
    network, _, _ = Network.split(used)
    first, again = (n.train(*parts[1:], IMAGES, key=KEY)[0] for n in (parts[0], network))
    np.testing.assert_array_equal(first, again)


def test_every_layer_drops_features_of_its_own():
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.one, self.other = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.one(x), self.other(x)

    one, other = Network.split(Pair(nnx.Rngs(0)))[0].train({}, {}, np.ones((9, 11)), key=KEY)[0]
    assert 0.1 < np.mean(np.array(one) == np.array(other)) < 0.9


def test_layers_made_by_vmap_drop_features_of_their_own():
    network, params, model_state = Network.split(Deep(nnx.Rngs(0)))
    out, _ = network.train(params, model_state, np.ones((9, 11)), key=KEY)
    assert all(0.3 < np.mean(np.array(layer) == 0) < 0.7 for layer in out)
    assert len({np.array(layer).tobytes() for layer in out}) == 3


def test_training_returns_the_moved_statistics(parts):
    network, params, model_state = parts
    _, after = network.train(params, model_state, IMAGES, key=KEY)
    kernel, bias = (np.float64(params["conv"][name]) for name in ("kernel", "bias"))
    padded = np.pad(np.float64(IMAGES), ((0, 0), (1, 1), (1, 1), (0, 0)))
    features = bias + sum(padded[:, i : i + 7, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(after["norm"]["mean"], 0.01 * features.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(after["norm"]["var"], 0.99 + 0.01 * features.var((0, 1, 2)), atol=1e-6)
    np.testing.assert_array_equal(model_state["norm"]["mean"], np.zeros(8))


def test_statistics_are_taken_together_over_the_mapped_axis_only(parts):
    network, params, model_state = parts

    @partial(jax.jit, static_argnums=1)
    def statistics(images, axis):
        return network.train(params, model_state, images, key=KEY, axis=axis)[1]["norm"]["mean"]

    whole = statistics(IMAGES, None)
    halves = IMAGES.reshape(2, 3, *IMAGES.shape[1:])
    together = jax.vmap(lambda half: statistics(half, "parts"), axis_name="parts")(halves)
    apart = jax.vmap(lambda half: statistics(half, None), axis_name="parts")(halves)
    np.testing.assert_allclose(together, np.stack([whole, whole]), atol=1e-7)
    assert np.abs(apart[0] - apart[1]).max() > 1e-4


def test_the_module_itself_stays_as_it_was():
    module = SmallNet(dropout=0.5, rngs=nnx.Rngs(0))
    before = flat(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    network, params, model_state = Network.split(module)
    jax.jit(network.train)(params, model_state, IMAGES, key=KEY)
    after = flat(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert module.norm.axis_name is None
