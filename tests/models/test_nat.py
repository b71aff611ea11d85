"""Neighbourhood attention transformers against naive NumPy; timm has none."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.nat import MODELS, NAT, NatBlock
from tests.mechanisms.self_attention import test_neighborhood
from tests.models import networks
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

in_full = pytest.mark.full

SIZES = {  # by the papers, c, heads, blocks and r; γ of how many branches; K; millions of parameters
    "nat_mini": (64, 2, (3, 4, 6, 5), 3, 0, 7, 20),
    "nat_tiny": (64, 2, (3, 4, 18, 5), 3, 0, 7, 28),
    "nat_small": (96, 3, (3, 4, 18, 5), 2, 2, 7, 51),
    "nat_base": (128, 4, (3, 4, 18, 5), 2, 2, 7, 90),
    "dinat_mini": (64, 2, (3, 4, 6, 5), 3, 0, 7, 20),
    "dinat_tiny": (64, 2, (3, 4, 18, 5), 3, 0, 7, 28),
    "dinat_small": (96, 3, (3, 4, 18, 5), 2, 0, 7, 51),
    "dinat_base": (128, 4, (3, 4, 18, 5), 2, 2, 7, 90),
    "dinat_large": (192, 6, (3, 4, 18, 5), 2, 0, 7, 200),
    "dinat_large_384": (192, 6, (3, 4, 18, 5), 2, 0, 7, 200),
    "dinat_large_384_11x11": (192, 6, (3, 4, 18, 5), 2, 0, 11, 200),
}


def count(c, heads, depths, r, scaled, K):
    """By the papers' formulas."""
    stem = 27 * c // 2 + c // 2 + 9 * c // 2 * c + c + 2 * c
    total = stem
    for i, depth in enumerate(depths):
        d, k = c * 2**i, heads * 2**i
        smaller = 9 * (d // 2) * d + 2 * d if i else 0
        attention = 4 * d * d + 4 * d + (2 * K - 1) ** 2 * k
        block = 2 * 2 * d + attention + 2 * r * d * d + r * d + d + scaled * d
        total += smaller + depth * block
    return total + 2 * d + 1000 * d + 1000


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_the_papers(name):
    *sizes, millions = SIZES[name]
    assert parameters_of(MODELS, name) == count(*sizes)
    assert abs(count(*sizes) / 1e6 - millions) < 1.5


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dinat_mini", 224),
        pytest.param("dinat_large_384", 384, marks=in_full),
        pytest.param("dinat_large_384_11x11", 384, marks=in_full),
    ],
)
def test_every_other_block_sees_the_whole_map(name, size):
    kind, own = MODELS[name]
    network = nnx.eval_shape(lambda: kind(1000, **own, rngs=nnx.Rngs(0)))
    for i, level in enumerate(network.levels):
        steps = [block.attn.dilation for block in level.blocks]
        widest = size // 2 ** (i + 2) // own.get("kernel_size", 7)
        assert steps == [widest if j % 2 else 1 for j in range(len(steps))]


create = partial(
    NAT,
    3,
    embed_dim=4,
    depths=(2, 1),
    mlp_ratio=2,
    num_heads=2,
    kernel_size=3,
    dilations=((1, 2), (1,)),
    in_channels=2,
)
IMAGE = (27, 21, 2)  # of 7×6 positions, then 4×3


def block(x, p, i, j, attend):
    first, second = (p.get(f"ls{branch}.gamma", 1) for branch in (1, 2))
    if attend is not None:
        x = x + first * attend(norm(x, p, "norm1"), under(p, "attn"), i, j)
    return x + second * perceptron(norm(x, p, "norm2"), p)


def nearby(x, p, i, j):
    """The second block of the first stage is dilated."""
    return test_neighborhood.oracle(x, p, heads=4 if i else 2, dilation=2 if (i, j) == (0, 1) else 1)


def naive_features(image, p, attend):
    stem = under(p, "patch_embed")
    x = norm(conv(conv(image, stem, "conv1", 2, 1), stem, "conv2", 2, 1), stem, "norm")
    maps = []
    for i, depth in enumerate((2, 1)):
        if i:
            down = under(p, "levels.1.downsample")
            x = norm(conv(x, down, "reduction", 2, 1), down, "norm")
        for j in range(depth):
            x = block(x, under(p, f"levels.{i}.blocks.{j}"), i, j, attend)
        maps.append(x)
    return maps


NETWORKS = {
    "its own": ({"layer_scale": 1e-5}, nearby),
    "without scales": ({}, nearby),
    "another": ({"attention": Scaled}, lambda x, p, i, j: scaled(x)),
    "none": ({"attention": None, "layer_scale": 1e-5}, None),
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
    assert_equal(logits, linear(norm(expected[-1], p, "norm").mean((0, 1)), p, "head"))


@in_full
def test_at_first_a_scaled_branch_is_a_hundred_thousandth():
    block = NatBlock(4, mlp_ratio=2, attention=Scaled, layer_scale=1e-5, rngs=nnx.Rngs(0))
    for scale in (block.ls1, block.ls2):
        np.testing.assert_array_equal(scale.gamma[...], np.full(4, 1e-5, np.float32))


def branches(block, x, first, second):
    z = x + first * block.ls1(block.attn(block.norm1(x)))
    return z + second * block.ls2(block.mlp(block.norm2(z)))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    block = NatBlock(6, mlp_ratio=2, attention=Scaled, layer_scale=0.5, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for level in network.levels for block in level.blocks]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(1, 1)), float32(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    pooled = jax.jit(lambda network, x: network.forward_features(x).mean((0, 1)))(network, image)
    np.testing.assert_allclose(forward(network, image), pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (8, 5)


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))
