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
from tests.models.filled import filled, run

CHANNELS = (2, 3, 4)


class Maps(nnx.Module):
    """A backbone without parameters: the image's channels repeated, on maps that shrink."""

    def __init__(self, num_classes, *, in_channels, dtype, param_dtype, rngs):
        self.feature_channels = CHANNELS

    def features(self, x):
        return [x[::step, ::step].repeat(c, -1) * c for step, c in zip((2, 3, 5), CHANNELS, strict=True)]


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
    ("attention", "hears"),
    [("danet", True), (partial(create_attention, "criss_cross", recurrence=2), True), ("none", False)],
)
def test_with_the_heads_of_danet_and_ccnet_a_corner_hears_from_the_opposite_one(attention, hears):
    """Criss-cross attention in its two passes; convolutions alone do not reach so far."""

    def create(**types):
        factories = {"none": None, "danet": partial(create_attention, "danet", **types)}
        factory = factories.get(attention, attention) if isinstance(attention, str) else partial(attention, **types)
        return AttentionSegmenter(2, backbone=Maps, attention=factory, width=8, **types)

    net = filled(lambda param_dtype, rngs: create(param_dtype=param_dtype, rngs=rngs))
    with jax.enable_x64():
        image = jnp.asarray(np.random.default_rng(0).normal(size=(33, 41, 1)))
        change = run(net, image) - run(net, image.at[0, 0].add(1.0))
    assert (np.abs(change[0, 0]) > 0).all()
    assert (np.abs(change[-1, -1]) > 0).all() == hears


@pytest.mark.full
@pytest.mark.parametrize("attention", ["danet", "criss_cross"])
def test_the_maps_come_out_of_a_residual_network(attention):
    net = create_model("resnet18_segmenter", num_classes=3, attention=attention, width=16, rngs=nnx.Rngs(0))
    maps = explain.attention_maps(net, jnp.ones((2, 29, 38, 3)))["attention"]
    shapes = {
        "danet": {"channel": (2, 4, 4), "position": (2, 20, 20)},
        "criss_cross": (2, 2, 4, 5, 9),
    }
    assert jax.tree.map(jnp.shape, maps) == shapes[attention]


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
