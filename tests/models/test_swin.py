"""The Swin transformers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.swin import ShiftedWindowAttention
from attn_flax.mechanisms.self_attention.swinv2 import CosineWindowAttention
from attn_flax.models.swin import MODELS, PatchMerging, SwinBlock, SwinTransformer
from tests.mechanisms.self_attention import test_mhsa, test_swin, test_swinv2
from tests.models import networks, timm_networks
from tests.models.naive_layers import Scaled, alone, linear, norm, perceptron, pre_norm, scaled, under
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_equal,
    assert_leaves_out_whole_examples,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    forward,
    parameters_of,
)
from tests.models.timm_networks import assert_it_is_timms

in_full = pytest.mark.full

COUNTS = {
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
    "swin_large_patch4_window7_224": 196_532_476,
    "swin_base_patch4_window12_384": 87_903_584,
    "swin_large_patch4_window12_384": 196_735_516,
    "swinv2_tiny_window8_256": 28_347_154,
    "swinv2_small_window8_256": 49_728_418,
    "swinv2_base_window8_256": 87_918_816,
    "swinv2_tiny_window16_256": 28_347_154,
    "swinv2_small_window16_256": 49_728_418,
    "swinv2_base_window16_256": 87_918_816,
    "swinv2_base_window12_192": 87_918_816,
    "swinv2_large_window12_192": 196_739_932,
}


def made(name, **arguments):
    """The network of that name, without numbers."""
    network, own = MODELS[name]
    return nnx.eval_shape(lambda: network(1000, **(own | arguments), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("swin_tiny_patch4_window7_224", [(7, 3), (7, 3), (7, 3), (7, 0)]),
        pytest.param("swinv2_tiny_window16_256", [(16, 8), (16, 8), (16, 0), (8, 0)], marks=in_full),
        pytest.param("swinv2_base_window12_192", [(12, 6), (12, 6), (12, 0), (6, 0)], marks=in_full),
    ],
)
def test_windows_are_no_larger_than_the_map_and_rolled_in_every_other_block_if_smaller(name, windows):
    for stage, (window, shift) in zip(made(name).layers, windows, strict=True):
        found = [(block.attn.window, block.attn.shift) for block in stage.blocks]
        assert found == [(window, shift if j % 2 else 0) for j in range(len(found))]


create = partial(
    SwinTransformer,
    3,
    embed_dim=4,
    depths=(2, 2),
    head_dim=2,
    mlp_ratio=2,
    image_size=14,
    window=5,
    patch_size=2,
    in_channels=2,
)
IMAGE = (14, 10, 2)  # of 7×5 patches, merged to 4×3


def windowed(x, p, **kinds):
    return test_swin.oracle(x, under(p, "attn"), **kinds)


def post_norm(x, p, attend):
    z = x + norm(attend(x, under(p, "attn")), p, "norm1")
    return z + norm(perceptron(z, p), p, "norm2")


BLOCKS = {
    "V1": (
        partial(SwinBlock, attention=partial(ShiftedWindowAttention, head_dim=3, window=3)),
        partial(pre_norm, attend=windowed),
    ),
    "V2": (
        partial(SwinBlock, attention=partial(CosineWindowAttention, head_dim=3, window=3), post_norm=True),
        partial(post_norm, attend=test_swinv2.oracle),
    ),
}


@pytest.mark.parametrize("version", ["V1", pytest.param("V2", marks=in_full)])
def test_a_block_is_the_papers(version):
    block, oracle = BLOCKS[version]
    module, p = networks.build(partial(block, 6, mlp_ratio=2))
    x = networks.random(7, 5, 6)
    assert_equal(networks.run(module, x), oracle(x, p))


def cells(x):
    h, w, c = x.shape
    padded = np.zeros((h + h % 2, w + w % 2, c))
    padded[:h, :w] = x
    return np.array(
        [
            [np.concatenate([padded[i + r, j + s] for s in (0, 1) for r in (0, 1)]) for j in range(0, w, 2)]
            for i in range(0, h, 2)
        ]
    )


MERGES = {
    "V1": ({}, lambda x, p: norm(cells(x), p, "norm") @ p["reduction.kernel"]),
    "V2": ({"post_norm": True}, lambda x, p: norm(cells(x) @ p["reduction.kernel"], p, "norm")),
}


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("version", MERGES)
def test_a_merge_is_the_papers(version, size):
    arguments, oracle = MERGES[version]
    module, p = networks.build(partial(PatchMerging, 3), **arguments)
    x = networks.random(*size, 3)
    assert_equal(networks.run(module, x), oracle(x, p))


def naive_features(image, p, block):
    patches = [[image[i : i + 2, j : j + 2] for j in range(0, image.shape[1], 2)] for i in range(0, len(image), 2)]
    x = np.einsum("hwijc,ijcd->hwd", patches, p["patch_embed.kernel"]) + p["patch_embed.bias"]
    maps = [norm(x, p, "patch_norm")]
    for i in range(2):
        x = MERGES["V1"][1](maps[-1], under(p, "layers.1.downsample")) if i else maps[-1]
        for j in range(2):
            x = block(x, under(p, f"layers.{i}.blocks.{j}"), i, j)
        maps.append(x)
    return maps[1:]


def in_windows(x, p, i, j):
    """The window is the map's size in the second stage, for which it is not rolled."""
    kinds = {"m": 4, "s": 0} if i else {"m": 5, "s": 2 * j}
    heads = x.shape[-1] // 2
    return pre_norm(x, p, partial(windowed, ask=partial(test_mhsa.asked, heads=heads), **kinds))


def with_block(block):
    return lambda x, p, i, j: block(x, p)


NETWORKS = {
    "its own": ({}, in_windows),
    "another": ({"attention": Scaled}, with_block(partial(pre_norm, attend=scaled))),
    "none": ({"attention": None}, with_block(alone)),
}


@pytest.mark.parametrize("attention", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(attention):
    arguments, block = NETWORKS[attention]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, block)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    pooled = norm(expected[-1], p, "norm").mean((0, 1))
    assert_equal(logits, linear(pooled, p, "head"))


@in_full
def test_at_first_a_block_of_v2_is_the_identity():
    x = float32(2, 7, 5, 6)
    block = partial(SwinBlock, 6, mlp_ratio=2, attention=partial(CosineWindowAttention, head_dim=3), post_norm=True)
    np.testing.assert_array_equal(jax.jit(lambda x: block(rngs=nnx.Rngs(0))(x))(x), x)


def branches(block, x, first, second):
    z = x + first * block.attn(block.norm1(x))
    return z + second * block.mlp(block.norm2(z))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    block = SwinBlock(6, mlp_ratio=2, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(2,)), float32(2, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes_of_the_same_features():
    network, _ = networks.build(create, np.float32)
    images = float32(2, *IMAGE)
    pooled = jax.jit(lambda network, x: network.pool(network.forward_features(x)))(network, images)
    network.reset_classifier(5, rngs=nnx.Rngs(0))
    logits = forward(network, images)
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(logits, pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-5)


@in_full
@pytest.mark.parametrize("version", [{}, {"post_norm": True, "attention": CosineWindowAttention}])
def test_it_computes_in_its_type_over_float32_parameters(version):
    assert_computes_in_its_type(partial(create, **version), float32(2, *IMAGE))


SWIN, SWIN_V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
FORMS = {
    "window 4": ({"image_size": 64, "window": 4, "depths": (2, 2, 2, 2)}, (64, 64)),
    "window 4, another size": ({"image_size": 64, "window": 4, "depths": (2, 2, 2, 2)}, (96, 64)),
    "odd maps": ({"image_size": 36, "window": 3, "depths": (2, 1, 1)}, (36, 60)),
}


@in_full
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [SWIN, SWIN_V2])
def test_it_is_timms(name, form):
    ours, size = FORMS[form]
    theirs = {
        "embed_dim": 32, "num_heads": tuple(2**i for i in range(len(ours["depths"]))), "depths": ours["depths"],
        "window_size": ours["window"], "img_size": ours["image_size"], "dynamic_img_size": True,
    }  # fmt: skip
    network = timm_networks.random_network(name, num_classes=11, **theirs)
    model, own = MODELS[name]
    model = nnx.eval_shape(lambda: model(11, **(own | ours | {"embed_dim": 32}), rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
