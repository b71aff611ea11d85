"""The vision transformer against naive NumPy: tokens, positions, poolings and attentions."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from attn_flax import nn
from attn_flax.models import create_model
from attn_flax.models.vit import MODELS, VisionTransformer
from tests.mechanisms.self_attention import test_attention_pool, test_mhsa
from tests.models import naive_layers, networks
from tests.models.naive_layers import Scaled, linear, perceptron, scaled, under
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_equal,
    assert_leaves_out_whole_examples,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    forward,
    in_training,
    parameters_of,
)

in_full = pytest.mark.full

COUNTS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "vit_small_patch32_224": 22_878_952,
    "vit_small_patch32_384": 22_915_432,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_small_patch8_224": 22_055_272,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch32_384": 88_297_192,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch8_224": 86_576_872,
    "vit_large_patch32_224": 306_535_400,
    "vit_large_patch32_384": 306_632_680,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch14_224": 304_203_752,
    "vit_huge_patch14_224": 632_045_800,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


D = 6
IMAGE = (6, 4, 2)  # of 3×2 patches
create = partial(
    VisionTransformer, 3, embed_dim=D, depth=2, num_heads=2, mlp_ratio=2, image_size=(6, 4), patch_size=2, in_channels=2
)
norm = partial(naive_layers.norm, epsilon=1e-6)


def resized(table, size):
    """By Pillow, of a map (h, w, d)."""
    planes = [Image.fromarray(np.float32(table[..., i])) for i in range(table.shape[-1])]
    return np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC)) for plane in planes], -1)


def embedded(image, p):
    patches = [image[i : i + 2, j : j + 2] for i in range(0, len(image), 2) for j in range(0, image.shape[1], 2)]
    z = [np.einsum("ijc,ijcd->d", x, p["patch_embed.kernel"]) + p["patch_embed.bias"] for x in patches]
    positions, others = p["pos_embed"][-6:], p["pos_embed"][:-6]
    if image.shape != IMAGE:
        positions = resized(positions.reshape(3, 2, D), (len(image) // 2, image.shape[1] // 2)).reshape(-1, D)
    prefix = np.array([p[name] for name in ("cls_token", "dist_token") if name in p])
    return np.concatenate([prefix + others if len(others) else prefix, z + positions])


def attending(x, p):
    return test_mhsa.oracle(x, under(p, "attn"))


def naive_tokens(image, p, attend=attending):
    """After each block."""
    z, after_blocks = embedded(image, p), []
    for i in range(2):
        q = under(p, f"blocks.{i}")
        if attend:
            z = z + q.get("ls1.gamma", 1) * attend(norm(z, q, "norm1"), q)
        z = z + q.get("ls2.gamma", 1) * perceptron(norm(z, q, "norm2"), q)
        after_blocks.append(z)
    return after_blocks


def of_class_token(z, p):
    z = norm(z, p, "norm")
    return z, z[0]


def of_mean(z, p):
    return z, norm(z[1:].mean(0), p, "fc_norm")


def of_attention(z, p):
    z = norm(z, p, "norm")
    return z, test_attention_pool.oracle(z[1:], under(p, "attn_pool"))


NETWORKS = {
    "its own": ({}, attending, of_class_token),
    "the patches' mean": ({"global_pool": "avg"}, attending, of_mean),
    "attention pooling": ({"global_pool": "map", "mlp_ratio": 1.5}, attending, of_attention),
    "scaled": ({"layer_scale": 1e-4, "class_position": False}, attending, of_class_token),
    "another attention": ({"attention": Scaled, "layer_scale": 1e-4}, scaled, of_class_token),
    "none": ({"attention": None, "layer_scale": 1e-4}, None, of_class_token),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, attend, pool = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    expected = naive_tokens(image, p, attend)
    features = networks.run(network, image, method="features")
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs[1:].reshape(3, 2, D))
    tokens, pooled = pool(expected[-1], p)
    assert_equal(networks.run(network, image, method="forward_features"), tokens)
    assert_equal(networks.run(network, image), linear(pooled, p, "head"))


@pytest.mark.parametrize(
    ("size", "arguments"),
    [((10, 8), {}), pytest.param((2, 4), {"class_position": False}, marks=in_full)],
)
def test_at_another_size_its_positions_are_resampled(size, arguments):
    network, p = networks.build(create, **arguments)
    image = networks.random(*size, 2)
    # Pillow computes in float32.
    expected = embedded(image, p)
    np.testing.assert_allclose(networks.run(network, image, method="embed"), expected, rtol=1e-5, atol=1e-5)


def test_without_attention_no_token_knows_another():
    network, _ = networks.build(create, attention=None)
    image = networks.random(*IMAGE)
    other = image.copy()
    other[:2, :2] += 1
    ours, moved = networks.run(network, np.stack([image, other]), method="forward_features")
    change = np.abs(moved - ours).max(-1)
    assert change[1] > 0.1
    np.testing.assert_array_equal(np.delete(change, 1), 0)


@in_full
def test_an_attention_is_a_factory_of_one_among_tokens():
    images = networks.random(3, *IMAGE)
    heads = partial(nn.MultiHeadSelfAttention, num_heads=2, qkv_bias=True, num_spatial_dims=1)
    external = partial(nn.ExternalAttention, num_spatial_dims=1)
    (by_default, _), (by_factory, _) = networks.build(create), networks.build(create, attention=heads)
    np.testing.assert_array_equal(networks.run(by_factory, images), networks.run(by_default, images))
    network, _ = networks.build(create, attention=external)
    logits = networks.run(network, images)
    np.testing.assert_allclose(networks.run(network, images[1]), logits[1], rtol=1e-9)
    assert np.abs(logits - networks.run(by_default, images)).max() > 1e-3


def test_none_by_name_is_no_attention():
    sizes = {"image_size": 32, "num_classes": 2}
    model = nnx.eval_shape(lambda: create_model("vit_tiny_patch16_224", attention="none", rngs=nnx.Rngs(0), **sizes))
    assert not [m for _, m in nnx.iter_modules(model) if hasattr(type(m), "attention_map")]


def branches(block, x, first, second):
    z = x + first * block.ls1(block.attn(block.norm1(x)))
    return z + second * block.ls2(block.mlp(block.norm2(z)))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    network = in_training(create, attention=Scaled, drop_path_rate=0.6, layer_scale=0.1)
    assert_leaves_out_whole_examples(network.blocks[1], float32(40, 1, 5, D), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(depth=4, drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    first, *others = network.blocks
    assert first.drop_path is jax.nn.identity
    np.testing.assert_allclose([block.drop_path.rate for block in others], [0.1, 0.2, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(create, float32(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network, _ = networks.build(create, np.float32)
    images = float32(2, *IMAGE)
    pooled = jax.jit(lambda network, x: network.pool(network.forward_features(x)))(network, images)
    network.reset_classifier(5, rngs=nnx.Rngs(0))
    logits = forward(network, images)
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(logits, pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-5)


@in_full
@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_it_computes_in_its_type_over_float32_parameters(pool):
    assert_computes_in_its_type(partial(create, global_pool=pool, layer_scale=1e-4), float32(2, *IMAGE))
