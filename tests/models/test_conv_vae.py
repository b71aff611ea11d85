"""The autoencoder against its layers by NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.explain import attention_maps
from attn_flax.models import create_model
from tests import oracles


def vae(*, image_size=(12, 8), in_channels=2, **arguments):
    arguments = {"latent_features": 5, "features": (8, 16), **arguments}
    return create_model(
        "vae", num_classes=3, image_size=image_size, in_channels=in_channels, rngs=nnx.Rngs(0), **arguments
    )


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def numbers(layer):
    return [np.float64(p[...]) for p in (layer.kernel, layer.bias)]


def conv(layer, x):
    return oracles.conv3x3(x, *numbers(layer))


def linear(layer, x):
    kernel, bias = numbers(layer)
    return x @ kernel + bias


def silu_of_norm(x):
    """Eight groups; scale and bias are one and zero at first."""
    h, w, c = x.shape
    groups = x.reshape(h, w, 8, c // 8)
    x = (
        (groups - groups.mean((0, 1, 3), keepdims=True)) / np.sqrt(groups.var((0, 1, 3), keepdims=True) + 1e-5)
    ).reshape(h, w, c)
    return x / (1 + np.exp(-x))


def block(layer, x):
    return x + conv(layer.conv2, silu_of_norm(conv(layer.conv1, silu_of_norm(x))))


@pytest.mark.full
def test_encoder_and_decoder_are_the_naive_layers():
    """Without attention, which is the identity at first."""
    model = vae()
    x, noise = random(1, 12, 8, 2), random(1, 5, seed=1)
    e, d = model.encoder, model.decoder
    y = block(e.blocks[0], conv(e.widen[0], np.float64(x[0])))
    y = y.reshape(6, 2, 4, 2, 8).mean((1, 3))
    y = silu_of_norm(block(e.blocks[1], conv(e.widen[1], y)))
    mean, log_variance = np.split(linear(e.out, y.reshape(-1)), 2)
    z = mean + np.exp(log_variance / 2) * np.float64(noise[0])
    y = block(d.blocks[0], linear(d.project, z).reshape(6, 4, 16))
    y = block(d.blocks[1], conv(d.narrow[0], y.repeat(2, 0).repeat(2, 1)))
    location, log_scale = np.split(conv(d.out, silu_of_norm(y)), 2, -1)
    for out, expected in zip(model(x, noise), (mean, log_variance, location, log_scale), strict=True):
        np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [pytest.param("sagan", marks=pytest.mark.full), "none", "se"])
def test_the_smallest_maps_attend(attention):
    maps = attention_maps(vae(attention=attention), random(3, 12, 8, 2), random(3, 5))
    assert set(maps) == (set() if attention == "none" else {"encoder.attention", "decoder.attention"})
    if attention == "sagan":
        assert {m.shape for m in maps.values()} == {(3, 24, 24)}


@pytest.mark.full
@pytest.mark.parametrize(
    ("image_size", "in_channels", "features"), [((8, 8), 1, (8,)), ((32, 32), 3, (8, 16, 8)), ((4, 12), 1, (16, 8, 8))]
)
def test_sizes_are_arguments(image_size, in_channels, features):
    model = vae(image_size=image_size, in_channels=in_channels, features=features)
    out = model(random(2, *image_size, in_channels), random(2, 5))
    assert [x.shape for x in out] == [(2, 5)] * 2 + [(2, *image_size, in_channels)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": (8, 12)}, r"features must be multiples of 8, got \(8, 12\)"),
        ({"features": ()}, r"features must be multiples of 8, got \(\)"),
        ({"image_size": (12, 7)}, r"multiples of 2 for features=\(8, 16\), got \(12, 7\)"),
        ({"latent_features": 0}, "latent_features must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        vae(**arguments)


def test_images_and_latents_of_another_size_are_refused():
    model = vae()
    with pytest.raises(InputError, match=r"x must be images \(b, 12, 8, 2\), got shape \(3, 12, 8, 1\)"):
        model.encode(random(3, 12, 8, 1))
    with pytest.raises(InputError, match=r"z must be \(b, 5\), got shape \(3, 4\)"):
        model.decode(random(3, 4))
