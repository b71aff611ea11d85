"""What is frozen stays as it is, to the bit, and the rest learns as if there were nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.tasks import Classification
from attn_flax.training import Frozen, Learning, Network, create_optimizer, freeze, parallelize, thaw
from tests.training.networks import SmallNet, plain, random_batches

PARTS = ("conv", "norm", "attention")
BATCH = 16


def small_net(*parts):
    model = SmallNet(dropout=0.3, rngs=nnx.Rngs(1))
    if parts:
        freeze(model, parts)
    return model


@functools.cache
def trained(how, devices, accumulate=1):
    """Before and after three steps with all that could move what is frozen."""
    optimizer = create_optimizer("adamw", 0.1, weight_decay=0.5, clip_norm=1.0)
    task = Classification(small_net(*PARTS), Learning(optimizer, accumulate=accumulate, ema_decay=0.9), 5)
    runner = parallelize(task, how, jax.devices()[:devices], fsdp=2 if how == "fsdp" else None)
    state = task.init(jax.random.key(3))
    before, state = plain(state), runner.place(state)
    for batch in random_batches(3, BATCH):
        state, _ = runner.update(state, runner.put(batch))
    return before, runner.fetch(state)


@pytest.mark.parametrize(
    ("how", "devices", "accumulate"),
    [
        ("jit", 1, 1),
        ("jit", 1, 2),
        pytest.param("fsdp", 4, 1, marks=pytest.mark.full),
        pytest.param("pmap", 4, 1, marks=pytest.mark.full),
    ],
)
def test_nothing_moves_what_is_frozen(how, devices, accumulate):
    """Neither decay nor averages nor batches: among it are the statistics of a frozen norm."""
    before, after = trained(how, devices, accumulate)
    _, averaged = after.ema
    assert set(before.model_state) == {"attention", "conv", "norm"}
    assert set(before.model_state["norm"]) == {"bias", "mean", "scale", "var"}
    for state in (after.model_state, averaged):
        for one, other in zip(jax.tree.leaves(before.model_state), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(one, other)
    assert set(after.params) == {"linear"}
    moments = jax.tree.leaves(after.opt_state)
    assert sum(m.size for m in moments if m.ndim) == 2 * (8 * 5 + 5)
    for one, other in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert abs(one - other).min() > 1e-4


def test_a_layout_of_devices_makes_no_difference():
    (_, one), (_, other) = trained("jit", 1), trained("jit", 4)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradients_are_clipped_by_the_norm_of_what_is_trained():
    rate, norm = 0.5, 1e-3
    model = small_net(*PARTS)
    model.drop1.rate = model.drop2.rate = 0.0
    network, params, model_state = Network.split(model)
    task = Classification(model, Learning(create_optimizer("sgd", rate, clip_norm=norm)), 5)
    state = task.init(jax.random.key(0))
    batch = next(random_batches(1, BATCH))
    after, _ = jax.jit(task.update)(state, batch)

    def loss(params):
        logits = network.merge(params, model_state)(batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    gradients = jax.jit(jax.grad(loss))(params)
    length = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    assert length > norm
    for p, g, new in zip(*map(jax.tree.leaves, (params, gradients, after.params)), strict=True):
        np.testing.assert_allclose(p - new, rate * 1.9 * norm / length * g, rtol=1e-3, atol=1e-7)  # 1.9 by momentum


def test_frozen_parts_are_in_evaluation_mode_and_others_are_not():
    image = next(random_batches(1, BATCH))["image"]
    network, params, model_state = Network.split(small_net("conv", "norm"))
    out, new_state = network.train(params, model_state, image, key=jax.random.key(5))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new_state, model_state))
    assert not np.allclose(out, network.merge(params, model_state)(image))  # dropout in no frozen part is on
    network, params, model_state = Network.split(small_net())
    _, moved = network.train(params, model_state, image, key=jax.random.key(5))
    assert not np.allclose(moved["norm"]["mean"], model_state["norm"]["mean"])


def test_a_frozen_module_drops_nothing():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 5, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.linear(x))

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = Dropped(rngs), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(self.first(x))

    model, x = Two(nnx.Rngs(0)), jnp.ones((4, 3))
    freeze(model, ["first"])
    network, *variables = Network.split(model)
    np.testing.assert_array_equal(network.train(*variables, x, key=jax.random.key(0))[0], network.merge(*variables)(x))


def test_thawed_parameters_are_those_that_were_frozen():
    model, image = small_net(), next(random_batches(1, 2))["image"]
    model.eval()
    before, state = model(image), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    freeze(model, ["conv", "attention"])
    freeze(model, ["conv.kernel"])
    np.testing.assert_array_equal(model(image), before)
    assert set(nnx.to_pure_dict(nnx.state(model, Frozen))) == {"attention", "conv"}
    thaw(model)
    np.testing.assert_array_equal(model(image), before)
    assert not jax.tree.leaves(nnx.state(model, Frozen))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, nnx.to_pure_dict(nnx.state(model, nnx.Param))))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (("conv1",), UnknownNameError, "unknown part of the network 'conv1': did you mean 'conv'"),
        (("drop1",), UnknownNameError, "unknown part of the network 'drop1'"),
        (("con",), UnknownNameError, "did you mean 'conv'"),
        ((*PARTS, "linear"), InputError, "some parameters must be left to train.*got attention, conv, linear, norm"),
    ],
)
def test_refusals(parts, error, message):
    with pytest.raises(error, match=message):
        small_net(*parts)
