"""The article's network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.models import MODELS, create_model, list_models, takes
from attn_flax.nn import Article, ArticleGate
from tests import oracles

LAYERS = {"conv1": 1_792, "attention": 1_096, "conv2": 73_856, "linear1": 4_194_816, "linear2": 5_130}


def size(module):
    return sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.fixture(scope="module")
def net():
    return create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))


def test_parameters_are_the_articles(net):
    assert {name: size(getattr(net, name)) for name in LAYERS} == LAYERS
    assert size(net) == 4_276_690


def oracle(net, image, *, attention=True, activate=lambda x: x):
    """The logits of one image by the naive layers, with the network's parameters."""

    def parameters(*layers):
        for layer in layers:
            yield from (np.float64(layer.kernel[...]), np.float64(layer.bias[...]))

    conv1, conv2 = ([*parameters(layer)] for layer in (net.conv1, net.conv2))
    x = activate(oracles.conv3x3(image, *conv1))
    if attention:
        w1, b1, w2, b2 = parameters(net.attention.reduce, net.attention.expand)
        x = oracles.article_gate(x.reshape(-1, 64), w1.T, b1, w2.T, b2).reshape(x.shape)
    x = oracles.adaptive_average_pool(activate(oracles.conv3x3(x, *conv2)), (8, 8)).reshape(-1)
    w1, b1, w2, b2 = parameters(net.linear1, net.linear2)
    return activate(x @ w1 + b1) @ w2 + b2


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_logits_are_those_of_the_naive_layers(net):
    images = random_images(2, 9, 11, 3)
    expected = [oracle(net, np.float64(image)) for image in images]
    np.testing.assert_allclose(net(jnp.asarray(images)), expected, rtol=1e-4, atol=1e-5)


def test_without_attention_with_activation():
    net = create_model("attention_net", num_classes=4, attention=None, activation="relu", rngs=nnx.Rngs(1))
    image = random_images(8, 8, 3, seed=1)
    expected = oracle(net, np.float64(image), attention=False, activate=lambda x: np.maximum(x, 0))
    np.testing.assert_allclose(net(jnp.asarray(image)), expected, rtol=1e-4, atol=1e-5)


def test_without_attention_and_activation_it_is_affine():
    net = create_model("attention_net", num_classes=4, attention="none", rngs=nnx.Rngs(1))
    x, y = jnp.asarray(random_images(2, 9, 7, 3))
    np.testing.assert_allclose(net((x + y) / 2), (net(x) + net(y)) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [8, 28, 32, 224])
def test_any_size_runs_with_the_gate(net, side):
    logits = net(jnp.asarray(random_images(2, side, side, 3)))
    assert jnp.isfinite(logits).all()
    assert jnp.abs(logits[0] - logits[1]).max() > 1e-3


def test_softmax_over_224x224_positions_needs_no_map_and_the_map_is_refused():
    net = create_model("attention_net", num_classes=10, attention="article", rngs=nnx.Rngs(0))
    compiled = jax.jit(lambda x: net(x)).lower(jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**29  # the map would take 9.4 GiB
    with pytest.raises(InputError, match=r"50176 queries and 50176 keys would need 9\.4 GiB"):
        jax.eval_shape(net.attention.attention_map, jax.ShapeDtypeStruct((1, 224, 224, 64), jnp.float32))
    assert jnp.isfinite(net(jnp.asarray(random_images(1, 12, 10, 3)))).all()


def test_an_attention_is_a_name_or_a_factory():
    by_name = create_model("attention_net", attention="article", rngs=nnx.Rngs(0))
    by_factory = create_model("attention_net", attention=Article, rngs=nnx.Rngs(0))
    assert isinstance(by_name.attention, Article)
    image = jnp.asarray(random_images(8, 8, 3))
    np.testing.assert_array_equal(by_name(image), by_factory(image))
    assert isinstance(create_model("attention_net", rngs=nnx.Rngs(0)).attention, ArticleGate)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "atention_net"}, "unknown model 'atention_net': did you mean 'attention_net'"),
        ({"attention": "artcle"}, "unknown attention 'artcle': did you mean 'article'"),
        ({"attention": "nothing"}, "unknown attention 'nothing': did you mean 'none'"),
        ({"activation": "relo"}, "unknown activation 'relo': did you mean 'relu'"),
        ({"in_chanels": 3}, "unknown attention_net argument 'in_chanels': did you mean 'in_channels'"),
    ],
)
def test_unknown_names_list_the_close_ones(arguments, message):
    with pytest.raises(UnknownNameError, match=message):
        create_model(**({"name": "attention_net"} | arguments), rngs=nnx.Rngs(0))


@pytest.mark.full
def test_a_model_of_each_class_can_be_made_for_any_height_and_width_that_it_takes():
    of_class = {MODELS[name][0]: name for name in reversed(list_models())}
    for name in of_class.values():
        arguments = {"image_size": (224, 448)} if takes(name, "image_size") else {}
        make = functools.partial(create_model, name, num_classes=3, **arguments)
        assert size(nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0)))) > 0
