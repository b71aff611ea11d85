"""Class-attention image transformers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.cait import MODELS, CaiT, CaitBlock
from tests import timm_oracle
from tests.mechanisms.self_attention import test_class_attention, test_talking_heads
from tests.models import networks
from tests.models.naive_layers import Scaled, conv, linear, perceptron, scaled, under
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
from tests.models.test_vit import norm, resized
from tests.models.timm_networks import assert_it_is_timms, random_network_of

in_full = pytest.mark.full

COUNTS = {
    "cait_xxs24_224": 11_956_264,
    "cait_xxs36_224": 17_299_720,
    "cait_s24_224": 46_916_200,
    "cait_s24_384": 47_062_120,
}


@pytest.mark.parametrize("name", first_quick(COUNTS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(
    CaiT, 3, embed_dim=6, depth=2, num_heads=3, mlp_ratio=2, image_size=(6, 4), patch_size=2, in_channels=2
)
IMAGE = (6, 4, 2)  # of 3×2 patches


def talking(z, p):
    return test_talking_heads.oracle(z, under(p, "attn"))


def block(z, p, attend=talking):
    z = z + p["ls1.gamma"] * attend(norm(z, p, "norm1"), p)
    return transform(z, p)


def transform(z, p):
    return z + p["ls2.gamma"] * perceptron(norm(z, p, "norm2"), p)


def class_block(u, z, p):
    tokens = norm(np.concatenate([u[None], z]), p, "norm1")
    u = u + p["ls1.gamma"] * test_class_attention.oracle(tokens, under(p, "attn"), heads=3)
    return transform(u, p)


def naive_features(image, p, block):
    z = conv(image, p, "patch_embed", 2)
    positions = p["pos_embed"]
    z = z + (positions if z.shape == positions.shape else resized(positions, z.shape[:2]))
    maps = []
    for i in range(2):
        z = block(z, under(p, f"blocks.{i}"))
        maps.append(z)
    return maps


def naive_tokens(z, p):
    u, z = p["cls_token"], z.reshape(-1, z.shape[-1])
    for i in range(2):
        u = class_block(u, z, under(p, f"blocks_token_only.{i}"))
    return norm(np.concatenate([u[None], z]), p, "norm")


NETWORKS = {
    "its own": ({}, block),
    "another": ({"attention": Scaled}, partial(block, attend=scaled)),
    "none": ({"attention": None}, transform),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, block = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, block)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    tokens = naive_tokens(expected[-1], p)
    assert_equal(networks.run(network, image, method="forward_features"), tokens)
    assert_equal(logits, linear(tokens[0], p, "head"))


@in_full
@pytest.mark.parametrize("size", [(10, 8), (2, 4)])
def test_at_another_size_its_positions_are_resampled(size):
    network, p = networks.build(create)
    image = networks.random(*size, 2)
    expected = linear(naive_tokens(naive_features(image, p, block)[-1], p)[0], p, "head")
    # Pillow computes in float32.
    np.testing.assert_allclose(networks.run(network, image), expected, rtol=1e-5, atol=1e-5)


def first_scales(network, own):
    """γ at first, of a network of that name with one small block."""
    small = own | {"embed_dim": 48, "depth": 1}
    create = lambda: nnx.state(network(1, **small, rngs=nnx.Rngs(0)), nnx.PathContains("gamma"))  # noqa: E731
    return np.unique(jax.tree.leaves(jax.jit(create)()))


@in_full
@pytest.mark.parametrize("name", MODELS)
def test_at_first_its_scales_are_timms(name):
    theirs = timm_oracle.load("models").create_model(name, embed_dim=48, depth=1)
    scale = theirs.blocks[0].gamma_1[0].item()
    np.testing.assert_array_equal(first_scales(*MODELS[name]), np.float32(scale))
    assert scale < 2e-5


def branches(block, z, first, second):
    z = z + first * block.ls1(block.attn(block.norm1(z)))
    return z + second * block.ls2(block.mlp(block.norm2(z)))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    block = CaitBlock(6, mlp_ratio=2, layer_scale=0.5, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_as_much_is_left_out_in_every_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    assert [block.drop_path.rate for block in network.blocks] == [0.3, 0.3]


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depth=1), networks.random(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    u = jax.jit(lambda network, x: network.forward_features(x)[0])(network, image)
    np.testing.assert_allclose(forward(network, image), u @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (6, 5)


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))


@in_full
def test_it_is_timms():
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    network = random_network_of("Cait", **sizes, img_size=(48, 80))
    model = nnx.eval_shape(lambda: CaiT(11, **sizes, image_size=(48, 80), rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, 48, 80, 3))
