"""The vision transformer against naive NumPy: tokens, positions, poolings and attentions."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from attn_flax import nn
from attn_flax.models import VisionTransformer, create_model
from tests.mechanisms.self_attention import test_attention_pool, test_mhsa
from tests.models import networks
from tests.models.networks import parameters

D = 6
create = partial(
    VisionTransformer, 3, embed_dim=D, depth=2, num_heads=2, mlp_ratio=2, image_size=(6, 4), patch_size=2, in_channels=2
)


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("vit_tiny_patch16_224", {}, 5_717_416),
        pytest.param("vit_base_patch16_224", {"patch_size": 32}, 88_224_232, marks=pytest.mark.full),
        pytest.param("vit_small_patch16_224", {}, 22_050_664, marks=pytest.mark.full),
        pytest.param("vit_base_patch16_224", {}, 86_567_656, marks=pytest.mark.full),
        pytest.param("vit_large_patch16_224", {}, 304_326_632, marks=pytest.mark.full),
    ],
)
def test_it_has_as_many_parameters_as_timms(name, arguments, count):
    assert parameters(name, **arguments) == count


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.scale"] + p[f"{name}.bias"]


def gelu(u):
    return u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))


def under(p, name):
    return {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}


def resized(table, size):
    """By Pillow, of a map (h, w, d)."""
    planes = [Image.fromarray(np.float32(table[..., i])) for i in range(table.shape[-1])]
    return np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC)) for plane in planes], -1)


def tokens(image, p):
    patches = [image[i : i + 2, j : j + 2] for i in range(0, len(image), 2) for j in range(0, image.shape[1], 2)]
    embedded = [np.einsum("ijc,ijcd->d", x, p["patch_embed.kernel"]) + p["patch_embed.bias"] for x in patches]
    positions = p["pos_embed"]
    if image.shape[:2] != (6, 4):
        grid = resized(positions[1:].reshape(3, 2, D), (len(image) // 2, image.shape[1] // 2))
        positions = np.concatenate([positions[:1], grid.reshape(-1, D)])
    z = np.array([p["cls_token"], *embedded]) + positions
    for i in range(2):
        q = under(p, f"blocks.{i}")
        if "attn.qkv.kernel" in q:
            z = z + test_mhsa.oracle(norm(z, q, "norm1"), under(q, "attn"))
        z = z + linear(gelu(linear(norm(z, q, "norm2"), q, "mlp.reduce")), q, "mlp.expand")
    return z


POOLS = {
    "token": lambda z, p: norm(z[0], p, "norm"),
    "avg": lambda z, p: norm(z[1:].mean(0), p, "norm"),
    "map": lambda z, p: test_attention_pool.oracle(norm(z[1:], p, "norm"), under(p, "attn_pool")),
}


@pytest.mark.parametrize("pool", ["token", *(pytest.param(pool, marks=pytest.mark.full) for pool in ("avg", "map"))])
def test_it_is_the_papers(pool):
    module, p = networks.build(create, global_pool=pool)
    image = networks.random(6, 4, 2)
    expected = linear(POOLS[pool](tokens(image, p), p), p, "head")
    np.testing.assert_allclose(networks.run(module, image), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [(10, 8), pytest.param((2, 4), marks=pytest.mark.full)])
def test_at_another_size_its_positions_are_resampled(size):
    module, p = networks.build(create)
    image = networks.random(*size, 2)
    # Pillow computes in float32.
    expected = tokens(image, p)
    np.testing.assert_allclose(networks.run(module, image, method="tokens"), expected, rtol=1e-5, atol=1e-5)


def test_without_attention_no_token_knows_another():
    module, _ = networks.build(create, attention=None)
    image = networks.random(6, 4, 2)
    other = image.copy()
    other[:2, :2] += 1
    ours, moved = networks.run(module, np.stack([image, other]), method="tokens")
    change = np.abs(moved - ours).max(-1)
    assert change[1] > 0.1
    np.testing.assert_array_equal(np.delete(change, 1), 0)


@pytest.mark.full
def test_an_attention_is_a_factory_of_one_among_tokens():
    images = networks.random(3, 6, 4, 2)
    heads = partial(nn.MultiHeadSelfAttention, num_heads=2, qkv_bias=True, num_spatial_dims=1)
    external = partial(nn.ExternalAttention, num_spatial_dims=1)
    (by_default, _), (by_factory, _) = networks.build(create), networks.build(create, attention=heads)
    np.testing.assert_array_equal(networks.run(by_factory, images), networks.run(by_default, images))
    module, _ = networks.build(create, attention=external)
    logits = networks.run(module, images)
    np.testing.assert_allclose(networks.run(module, images[1]), logits[1], rtol=1e-9)
    assert np.abs(logits - networks.run(by_default, images)).max() > 1e-3


def test_none_by_name_is_no_attention():
    sizes = {"image_size": 32, "num_classes": 2}
    model = nnx.eval_shape(lambda: create_model("vit_tiny_patch16_224", attention="none", rngs=nnx.Rngs(0), **sizes))
    assert not [m for _, m in nnx.iter_modules(model) if hasattr(type(m), "attention_map")]


@pytest.mark.full
def test_it_computes_in_its_type_over_float32_parameters():
    images = jnp.asarray(networks.random(2, 6, 4, 2), jnp.float32)
    wide, narrow = (
        networks.build(create, np.float32, global_pool="map", dtype=dtype)[0] for dtype in (None, jnp.bfloat16)
    )
    logits = jax.jit(lambda model, x: model(x))(narrow, images)
    assert logits.dtype == jnp.bfloat16
    expected = jax.jit(lambda model, x: model(x))(wide, images)
    assert np.linalg.norm(np.float32(logits) - expected) < 0.05 * np.linalg.norm(expected)
