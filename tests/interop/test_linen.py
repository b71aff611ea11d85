"""A network of NNX in code of Linen: the same numbers, in evaluation and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from attn_flax import interop
from attn_flax.training import Network


class Net(nnx.Module):
    """Parameters, running statistics and dropout."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = self.dropout(self.norm(self.conv(x)))
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def net():
    return Net(rngs=nnx.Rngs(0))


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 5, 3)), jnp.float32)


def test_evaluation_has_its_own_numbers_whatever_the_key(net, images):
    module = interop.to_linen(net)
    variables = module.init(jax.random.key(5), images)
    network, params, state = Network.split(net)
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": params, "batch_stats": state})
    ours = network.merge(params, state)(images)
    np.testing.assert_allclose(module.apply(variables, images), ours, rtol=1e-6)


def test_training_moves_the_statistics_and_drops_by_the_key(net, images):
    module = interop.to_linen(net)
    variables = module.init(jax.random.key(0), images)

    def train(key):
        rngs = {"dropout": jax.random.key(key)}
        return module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    (out, moved), (again, _), (other, _) = train(1), train(1), train(2)
    np.testing.assert_array_equal(out, again)
    assert jnp.abs(out - other).max() > 0.1
    convolved = net.conv(images)
    np.testing.assert_allclose(moved["batch_stats"]["norm"]["mean"], 0.01 * convolved.mean((0, 1, 2)), rtol=1e-4)
    with pytest.raises(Exception, match="dropout"):
        module.apply(variables, images, train=True, mutable=["batch_stats"])


def test_inside_a_network_of_linen_it_is_trained(net, images):
    class Outer(linen.Module):
        @linen.compact
        def __call__(self, x):
            return interop.to_linen(net)(linen.Conv(3, (1, 1))(x)).mean((1, 2))

    variables = Outer().init(jax.random.key(0), images)
    gradients = jax.grad(lambda p: (Outer().apply(variables | {"params": p}, images) ** 2).sum())(variables["params"])
    leaves = jax.tree.leaves(gradients)
    assert len(leaves) == 2 + 2 + 2 + 4
    assert all(jnp.abs(leaf).max() > 0 for leaf in leaves)
