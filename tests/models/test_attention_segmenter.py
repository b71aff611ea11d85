"""The head with any attention against its composition in NumPy, and on a residual network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import explain
from attn_flax.catalog import create_attention
from attn_flax.checks import InputError
from attn_flax.models import AttentionSegmenter, create_model
from tests import oracles
from tests.mechanisms.against_oracle import numbers
from tests.mechanisms.spatial.test_attention_gate import bilinear
from tests.models.filled import Compiled, filled, run

CHANNELS = (2, 3, 4)


class Maps(nnx.Module):
    """A backbone without parameters: the image's channels repeated, on maps that shrink."""

    def __init__(self, num_classes, *, in_channels, dtype, param_dtype, rngs):
        self.feature_channels = CHANNELS

    def features(self, x):
        return [x[..., ::step, ::step, :].repeat(c, -1) * c for step, c in zip((2, 3, 5), CHANNELS, strict=True)]


class Mixed(nnx.Module):
    """An attention that lets every position know of the first one."""

    def __init__(self, channels, *, rngs):
        self.channels = channels

    def __call__(self, x):
        return x * x[0, 0]


def convolved(x, p, name):
    kernel = p[f"{name}.conv.kernel"]
    y = oracles.conv3x3(x, kernel, np.zeros(kernel.shape[-1]))
    mean, var, scale, bias = (p[f"{name}.norm.{of}"] for of in ("mean", "var", "scale", "bias"))
    return np.maximum((y - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)


def oracle(image, p, *, levels=3, attend=lambda x: x * x[0, 0], up=bilinear):
    maps = [image[::step, ::step].repeat(c, -1) * c for step, c in zip((2, 3, 5), CHANNELS, strict=True)][-levels:]
    lateral = [m @ p[f"lateral.{i}.kernel"] + p[f"lateral.{i}.bias"] for i, m in enumerate(maps)]
    x = convolved(sum(up(m, lateral[0].shape[:2]) for m in lateral), p, "fuse")
    v = convolved(attend(x), p, "after")
    y = convolved(np.concatenate([x, v], -1), p, "merge")
    return up(y @ p["classify.kernel"] + p["classify.bias"], image.shape[:2])


create = partial(AttentionSegmenter, 2, backbone=Maps, attention=Mixed, width=3)


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [({}, {}), ({"attention": None, "levels": 2}, {"attend": lambda x: x, "levels": 2})],
)
def test_it_is_its_composition(arguments, kinds):
    net = filled(partial(create, **arguments))
    with jax.enable_x64():
        image = np.random.default_rng(0).normal(size=(9, 13, 1))
        logits, p = run(net, jnp.asarray(image)), numbers(net)
        np.testing.assert_allclose(logits, oracle(image, p, **kinds), rtol=1e-9, atol=1e-11)
        if not arguments:
            assert np.abs(logits - oracle(image, p, attend=lambda x: x)).max() > 1e-3


@pytest.mark.parametrize(
    ("attention", "shapes"),
    [
        ("criss_cross", (2, 2, 5, 7, 12)),
        pytest.param("danet", {"channel": (2, 2, 2), "position": (2, 35, 35)}, marks=pytest.mark.full),
    ],
)
def test_the_maps_are_those_of_the_attention(attention, shapes):
    factory = partial(create_attention, attention, param_dtype=jnp.float64)
    net = filled(partial(AttentionSegmenter, 2, backbone=Maps, attention=factory, in_channels=1, width=8))
    with jax.enable_x64():
        maps = explain.attention_maps(Compiled(net), jnp.ones((2, 9, 13, 1)))["net.attention"]
    assert jax.tree.map(jnp.shape, maps) == shapes


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18_segmenter", "resnet50_segmenter"])
def test_on_a_residual_network_the_largest_map_is_an_eighth(name):
    def shapes():
        net = create_model(name, num_classes=3, attention="criss_cross", rngs=nnx.Rngs(0))
        images = jnp.ones((2, 29, 38, 3))
        maps = net.backbone.features(images)[-3:]
        return net.head(maps), net(images)

    assert jax.tree.map(jnp.shape, nnx.eval_shape(shapes)) == ((2, 4, 5, 3), (2, 29, 38, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        create(**arguments, rngs=nnx.Rngs(0))
