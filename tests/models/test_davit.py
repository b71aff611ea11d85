"""Dual attention vision transformers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.channel_attn_davit import ChannelGroupAttention
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.models.davit import MODELS, Block, DaViT
from tests.mechanisms.channel import test_channel_attn_davit
from tests.mechanisms.self_attention import test_mhsa
from tests.mechanisms.spatial.test_focal_modulation import depthwise
from tests.models import networks, timm_networks
from tests.models.naive_layers import Scaled, conv, linear, norm, perceptron, scaled, under
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
from tests.models.timm_networks import assert_it_is_timms

in_full = pytest.mark.full

COUNTS = {
    "davit_tiny": 28_360_168,
    "davit_small": 49_745_896,
    "davit_base": 87_954_408,
    "davit_large": 196_811_752,
    "davit_huge": 348_922_856,
    "davit_giant": 1_406_470_120,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


def padded(x, side):
    """x with zeros below and on the right, up to whole cells."""
    h, w, c = x.shape
    y = np.zeros((h + -h % side, w + -w % side, c))
    y[:h, :w] = x
    return y


def in_windows(x, p, *, side=4, heads=2):
    whole = padded(x, side)
    y = np.empty_like(whole)
    attend = partial(test_mhsa.oracle, p=under(p, "attn"), split=partial(test_mhsa.asked, heads=heads))
    for i in range(0, len(y), side):
        for j in range(0, y.shape[1], side):
            y[i : i + side, j : j + side] = attend(whole[i : i + side, j : j + side])
    return y[: len(x), : x.shape[1]]


def among_channels(x, p, *, groups=2):
    return test_channel_attn_davit.oracle(x, under(p, "attn"), groups=groups)


def dual(x, p, *, attend):
    x = x + depthwise(x, p["cpe1.kernel"]) + p["cpe1.bias"]
    if attend is not None:
        x = x + attend(norm(x, p, "norm1"), p)
    x = x + depthwise(x, p["cpe2.kernel"]) + p["cpe2.bias"]
    return x + perceptron(norm(x, p, "norm2"), p)


BLOCKS = {
    "spatial": (
        {"attention": partial(MultiHeadSelfAttention, num_heads=2, qkv_bias=True, num_spatial_dims=1), "window": 4},
        in_windows,
    ),
    "channel": ({"attention": partial(ChannelGroupAttention, groups=2, use_bias=True)}, among_channels),
}


@pytest.mark.parametrize("kind", first_quick(BLOCKS))
def test_a_block_is_the_authors(kind):
    arguments, attend = BLOCKS[kind]
    module, p = networks.build(partial(Block, 6, mlp_ratio=2, **arguments))
    x = networks.random(5, 4, 6)
    assert_equal(networks.run(module, x), dual(x, p, attend=attend))


create = partial(DaViT, 3, embed_dims=(6, 6), depths=(1, 2), num_heads=(2, 3), window=4, mlp_ratio=2, in_channels=2)
IMAGE = (22, 13, 2)  # of 6×4 positions, then 3×2


def naive_features(image, p, attend):
    x = norm(conv(padded(image, 4), p, "stem.conv", 4, 3), p, "stem.norm")
    maps = []
    for i, heads in enumerate((2, 3)):
        if i:
            down = under(p, "stages.1.downsample")
            x = conv(padded(norm(x, down, "norm"), 2), down, "conv", 2)
        for j in range(1 + i):
            x = dual(x, under(p, f"stages.{i}.blocks.{j}.0"), attend=partial(in_windows, heads=heads))
            x = dual(x, under(p, f"stages.{i}.blocks.{j}.1"), attend=attend and attend(heads))
        maps.append(x)
    return maps


NETWORKS = {
    "its own": ({}, lambda heads: partial(among_channels, groups=heads)),
    "another": ({"attention": Scaled}, lambda heads: scaled),
    "none": ({"attention": None}, None),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, attend = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, attend)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    assert_equal(logits, linear(norm(expected[-1].mean((0, 1)), p, "norm"), p, "head"))


def branches(block, x, first, second):
    x = x + block.cpe1(x)
    x = x + first * block.attn(block.norm1(x))
    x = x + block.cpe2(x)
    return x + second * block.mlp(block.norm2(x))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    block = Block(6, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_pair_to_pair():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [[block.drop_path.rate for block in pair] for stage in network.stages for pair in stage.blocks]
    np.testing.assert_allclose(rates, [[0, 0], [0.15, 0.15], [0.3, 0.3]])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(1, 1)), float32(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    pooled = jax.jit(lambda network, x: network.norm(network.features(x)[-1].mean((0, 1))))(network, image)
    np.testing.assert_allclose(forward(network, image), pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (6, 5)


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))


@in_full
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (224, 224)])
def test_it_is_timms(size):
    sizes = {"embed_dims": (16, 32, 48), "depths": (1, 2, 1), "num_heads": (2, 2, 3)}
    network = timm_networks.random_network("davit_tiny", num_classes=11, **sizes)
    model = nnx.eval_shape(lambda: DaViT(11, **sizes, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
