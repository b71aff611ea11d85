"""Attributions against the paper's equations, with the gradients of a small network by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.explain import attribution
from attn_flax.explain.pictures import attention_figure
from attn_flax.models import create_model

CALLS = {
    "plain": lambda module, x: module(x),
    "nnx.jit": nnx.jit(lambda module, x: module(x)),
    "jit": jax.jit(lambda module, x: module(x)),
    "nnx.remat": nnx.remat(lambda module, x: module(x)),
    "checkpoint": lambda module, x: jax.checkpoint(lambda x: module(x))(x),
}


class Network(nnx.Module):
    """conv, batch norm, relu, mean over the positions, dropout, linear."""

    def __init__(self, call="plain"):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Conv(3, 4, (3, 3), rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)
        self.call = CALLS[call]

    def __call__(self, x):
        x = self.norm(self.call(self.layers[0], x))
        return self.head(self.dropout(nnx.relu(x).mean((-3, -2))))


def make(call="plain"):
    network = Network(call)
    network.norm.mean[...] = jnp.array([0.1, -0.2, 0.3, 0.0])
    network.norm.var[...] = jnp.array([0.5, 1.0, 2.0, 1.5])
    network.norm.scale[...] = jnp.array([1.0, -1.5, 0.5, 2.0])
    return network


def images(*batch, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*batch, 7, 5, 3)), jnp.float32)


def scores_by_hand(network, x):
    """The map, its slope through the norm, what the relu lets through, and the scores, in float64."""
    f64 = lambda v: np.asarray(v[...], np.float64)  # noqa: E731
    a = np.asarray(network.layers[0](x), np.float64)
    slope = f64(network.norm.scale) / np.sqrt(f64(network.norm.var) + 1e-5)
    normed = (a - f64(network.norm.mean)) * slope + f64(network.norm.bias)
    scores = np.maximum(normed, 0).mean((1, 2)) @ f64(network.head.kernel) + f64(network.head.bias)
    return a, slope, normed > 0, scores


def heat_by_hand(network, x, target=None):
    a, slope, passes, scores = scores_by_hand(network, x)
    target = scores.argmax(-1) if target is None else target
    b, h, w, c = a.shape
    heat = np.zeros((b, h, w))
    for n in range(b):
        column = np.asarray(network.head.kernel[...], np.float64)[:, target[n]]
        for k in range(c):
            gradient = passes[n, :, :, k] * column[k] * slope[k] / (h * w)
            heat[n] += gradient.mean() * a[n, :, :, k]
    return np.maximum(heat, 0)


def assert_close(got, expected):
    assert got.shape == expected.shape
    assert np.max(expected) > 1e-4
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("call", CALLS)
def test_it_is_the_paper(call):
    network, x = make(call), images(3)
    assert_close(attribution(network, x, at="layers.0"), heat_by_hand(network, x))


def test_of_a_class_for_all_or_for_each():
    network, x = make(), images(3)
    assert_close(attribution(network, x, at="layers.0", target=2), heat_by_hand(network, x, [2, 2, 2]))
    target = jnp.array([4, 0, 1])
    assert_close(attribution(network, x, at="layers.0", target=target), heat_by_hand(network, x, target))


def test_any_batch_axes():
    network, x = make(), images(3, 2)
    expected = heat_by_hand(network, x.reshape(6, 7, 5, 3))
    assert_close(attribution(network, x, at="layers.0"), expected.reshape(3, 2, 7, 5))
    assert_close(attribution(network, x[0, 0], at="layers.0"), expected[0])


def test_at_the_norm():
    network, x = make(), images(2)
    a, _, passes, scores = scores_by_hand(network, x)
    target = scores.argmax(-1)
    normed = np.asarray(nnx.view(network, use_running_average=True).norm(a), np.float64)
    share = passes.mean((1, 2)) * np.asarray(network.head.kernel[...], np.float64).T[target] / 35
    expected = np.maximum(np.einsum("bhwc,bc->bhw", normed, share), 0)
    assert_close(attribution(network, x, at="norm"), expected)


def test_of_tokens_and_keywords():
    class Tokens(nnx.Module):
        def __init__(self):
            self.embed = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

        def __call__(self, x, *, weights):
            return jnp.einsum("bnc,n->bc", self.embed(x) ** 2, weights)

    network, x, weights = Tokens(), images(2)[:, :, 0], jnp.arange(7.0)
    a = np.asarray(network.embed(x), np.float64)
    alpha = np.zeros((2, 4))
    alpha[:, 1] = (2 * a * weights[:, None]).mean(1)[:, 1]
    expected = np.maximum(np.einsum("bnc,bc->bn", a, alpha), 0)
    assert_close(attribution(network, x, weights=weights, at="embed", target=1), expected)


def leaves(model):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(nnx.state(model))
    ]


@pytest.mark.parametrize("call", ["plain", "nnx.jit"])
def test_the_network_stays_as_it_is(call):
    network, x = make(call), images(2)
    before, attributes = leaves(network), [sorted(vars(module)) for _, module in nnx.iter_modules(network)]
    first = attribution(network, x, at="layers.0")
    for was, now in zip(before, leaves(network), strict=True):
        np.testing.assert_array_equal(was, now)
    assert [sorted(vars(module)) for _, module in nnx.iter_modules(network)] == attributes
    assert type(network.layers[0]) is nnx.Conv
    assert not network.norm.use_running_average
    assert not network.dropout.deterministic
    np.testing.assert_array_equal(attribution(network, x, at="layers.0"), first)


def test_in_bfloat16():
    class Narrow(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(3, 4, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

        def __call__(self, x):
            y = self.conv(x)
            assert y.dtype == jnp.bfloat16
            return y.mean((-3, -2))

    network, x = Narrow(), images(2)
    heat = attribution(network, x, at="conv", target=3)
    assert heat.dtype == jnp.float32
    expected = np.maximum(np.asarray(network.conv(x), np.float64)[..., 3] / 35, 0)
    np.testing.assert_allclose(heat, expected, rtol=5e-3)


def test_of_an_attending_module_and_its_picture():
    model = create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    x = images(2)
    heat = attribution(model, x, at="attention", target=3)
    figure = attention_figure(jax.nn.sigmoid(x), {"attention": heat})
    np.testing.assert_array_equal(figure.axes[1].get_images()[0].get_array(), heat[0])


class Twice(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
        self.idle = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(self.conv(x)).mean((1, 2))


class Pair(nnx.Module):
    def __init__(self):
        self.pair = Halves()

    def __call__(self, x):
        return sum(self.pair(x)).mean((1, 2))


class Halves(nnx.Module):
    def __call__(self, x):
        return x / 2, x / 2


REFUSALS = {
    "an unknown path": (make, "layers.1", {}, "unknown module 'layers.1': did you mean 'layers.0' or 'layers'"),
    "called twice": (Twice, "conv", {}, "the module 'conv' must be called once, got 2 calls"),
    "not called": (Twice, "idle", {}, "the module 'idle' must be called once, got 0 calls"),
    "no positions": (make, "head", {}, r"the module 'head' must give a map or tokens .*, got \(2, 5\)"),
    "two outputs": (Pair, "pair", {}, r"the module 'pair' must give a map .*, got \(\(2, 7, 5, 3\), \(2, 7, 5, 3\)\)"),
    "no scores": (Halves, "", {}, r"must give scores \(\*b, classes\), got \(\(2, 7, 5, 3\), \(2, 7, 5, 3\)\)"),
    "no class": (make, "layers.0", {"target": 5}, r"target must be a class from 0 to 4 .*, got 5"),
    "a negative class": (make, "layers.0", {"target": -1}, r"target must be a class from 0 to 4 .*, got -1"),
    "other targets": (make, "layers.0", {"target": jnp.array([1, 2, 3])}, r"each of \(2,\) inputs, got \[1 2 3\]"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    create, at, arguments, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        attribution(create(), images(2), at=at, **arguments)
