"""Focal modulation networks against naive NumPy, and timm's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.focal_modulation import FocalModulation
from attn_flax.models.focalnet import MODELS, FocalNet, PostNormBlock, PreNormBlock
from tests.mechanisms.spatial import test_focal_modulation
from tests.models import networks
from tests.models.naive_layers import Scaled, alone, conv, linear, norm, perceptron, pre_norm, scaled, under
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
from tests.models.timm_networks import assert_it_is_timms, random_network_of

in_full = pytest.mark.full

COUNTS = {
    "focalnet_tiny_srf": 28_427_116,
    "focalnet_small_srf": 49_891_216,
    "focalnet_base_srf": 88_148_144,
    "focalnet_tiny_lrf": 28_647_928,
    "focalnet_small_lrf": 50_342_440,
    "focalnet_base_lrf": 88_749_768,
    "focalnet_large_fl3": 207_100_744,
    "focalnet_large_fl4": 207_281_248,
    "focalnet_xlarge_fl3": 366_082_120,
    "focalnet_xlarge_fl4": 366_322_784,
    "focalnet_huge_fl3": 686_564_424,
    "focalnet_huge_fl4": 689_277_664,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


def modulated(x, p):
    return test_focal_modulation.oracle(x, under(p, "modulation"))


def post_norm(x, p, attend=modulated):
    z = x + p["ls1.gamma"] * norm(attend(x, p), p, "norm1_post")
    return z + p["ls2.gamma"] * norm(perceptron(z, p), p, "norm2_post")


BLOCKS = {"pre-norm": (PreNormBlock, partial(pre_norm, attend=modulated)), "post-norm": (PostNormBlock, post_norm)}


@pytest.mark.parametrize("kind", first_quick(BLOCKS))
def test_a_block_is_the_authors(kind):
    block, oracle = BLOCKS[kind]
    module, p = networks.build(partial(block, 4, mlp_ratio=2))
    x = networks.random(5, 3, 4)
    assert_equal(networks.run(module, x), oracle(x, p))


create = partial(FocalNet, 3, embed_dim=4, depths=(1, 2), mlp_ratio=2, in_channels=2)
IMAGE = (19, 14, 2)


def naive_features(image, p, block, overlap):
    x = norm(conv(image, p, "stem.proj", 4, 2 if overlap else 0), p, "stem.norm")
    maps = [block(x, under(p, "layers.0.blocks.0"))]
    x = norm(conv(maps[0], p, "layers.1.downsample.proj", 2, int(overlap)), p, "layers.1.downsample.norm")
    for j in range(2):
        x = block(x, under(p, f"layers.1.blocks.{j}"))
    return [*maps, x]


NETWORKS = {
    "its own": ({}, partial(pre_norm, attend=modulated)),
    "post-norm": ({"block": PostNormBlock, "overlap_down": True, "focal_window": 5, "focal_level": 1}, post_norm),
    "another": ({"attention": Scaled}, partial(pre_norm, attend=scaled)),
    "none": ({"attention": None}, alone),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, block = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, block, "overlap_down" in arguments)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    assert_equal(logits, linear(norm(expected[-1], p, "norm").mean((0, 1)), p, "head"))


def branches(block, x, first, second):
    z = x + first * block.modulate(x)
    return z + second * block.transform(z)


@in_full
@pytest.mark.parametrize("kind", BLOCKS)
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged(kind):
    block = BLOCKS[kind][0](6, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    for scale in [block.ls1, block.ls2] if kind == "post-norm" else []:
        scale.gamma[...] = jnp.ones(6)
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(1, 1), focal_level=1), float32(3, *IMAGE))


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
@pytest.mark.parametrize("block", [PreNormBlock, PostNormBlock])
def test_it_computes_in_its_type_over_float32_parameters(block):
    assert_computes_in_its_type(partial(create, block=block), float32(2, *IMAGE))


FORMS = {
    "pre-norm": ({}, {}),
    "three ranges from 5×5": (
        {"focal_level": 3, "focal_window": 5},
        {"focal_levels": (3, 3, 3), "focal_windows": (5, 5, 5)},
    ),
    "huge": (
        {"block": PostNormBlock, "overlap_down": True, "focal_level": 4, "modulation_norm": True},
        {
            "focal_levels": (4, 4, 4), "use_post_norm": True, "use_overlap_down": True, "layerscale_value": 1e-4,
            "use_post_norm_in_modulation": True,
        },
    ),
}  # fmt: skip


@in_full
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form, size):
    ours, theirs = FORMS[form]
    sizes = {"embed_dim": 24, "depths": (1, 2, 1)}
    network = random_network_of(
        "FocalNet", **sizes, **({"focal_levels": (2, 2, 2), "focal_windows": (3, 3, 3)} | theirs)
    )
    model = nnx.eval_shape(lambda: FocalNet(11, **sizes, **ours, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))


def test_its_own_attention_is_the_default_by_arguments_alone():
    ours = nnx.eval_shape(lambda: create(attention=partial(FocalModulation, focal_level=1), rngs=nnx.Rngs(0)))
    given = nnx.eval_shape(lambda: create(focal_level=1, rngs=nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, nnx.state(ours, nnx.Param)) == jax.tree.map(jnp.shape, nnx.state(given, nnx.Param))
