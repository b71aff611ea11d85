"""ConViT against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.convit import MODELS, ConViT
from tests.mechanisms.self_attention import test_gpsa, test_mhsa
from tests.models import naive_layers, networks
from tests.models.naive_layers import Scaled, conv, linear, perceptron, scaled, under
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_equal,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    forward,
    in_training,
    parameters_of,
)
from tests.models.test_vit import resized
from tests.models.timm_networks import assert_it_is_timms, random_network_of

in_full = pytest.mark.full
norm = partial(naive_layers.norm, epsilon=1e-6)

COUNTS = {"convit_tiny": 5_710_512, "convit_small": 27_777_322, "convit_base": 86_540_040}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(
    ConViT, 3, embed_dim=6, num_heads=2, depths=(2, 1), mlp_ratio=2, image_size=(10, 6), patch_size=2, in_channels=2
)
IMAGE = (10, 6, 2)  # of 5×3 patches


def block(z, p, attend):
    z = z + attend(norm(z, p, "norm1"), under(p, "attn"))
    return z + perceptron(norm(z, p, "norm2"), p)


def alone(z, p):
    return z + perceptron(norm(z, p, "norm2"), p)


NETWORKS = {
    "its own": ({}, partial(block, attend=test_gpsa.oracle)),
    "another": ({"attention": Scaled}, partial(block, attend=scaled)),
    "none": ({"attention": None}, alone),
}


def naive(image, p, local):
    """The maps after the blocks, and the tokens after the last, normalised."""
    z = conv(image, p, "patch_embed", 2)
    positions = p["pos_embed"].reshape(5, 3, 6)
    z = z + (positions if z.shape == positions.shape else resized(positions, z.shape[:2]))
    maps = []
    for i in range(2):
        z = local(z, under(p, f"blocks.{i}"))
        maps.append(z)
    z = np.concatenate([p["cls_token"][None], z.reshape(-1, 6)])
    z = block(z, under(p, "blocks.2"), test_mhsa.oracle)
    return [*maps, z[1:].reshape(maps[0].shape)], norm(z, p, "norm")


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, local = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected, tokens = naive(image, p, local)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    assert_equal(networks.run(network, image, method="forward_features"), tokens)
    assert_equal(logits, linear(tokens[0], p, "head"))


@in_full
def test_at_another_size_its_positions_are_resampled():
    network, p = networks.build(create)
    image = networks.random(14, 8, 2)
    _, tokens = naive(image, p, NETWORKS["its own"][1])
    # Pillow computes in float32.
    np.testing.assert_allclose(networks.run(network, image, method="forward_features"), tokens, rtol=1e-5, atol=1e-5)


def test_more_is_left_out_from_block_to_block_of_maps_and_of_tokens():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    found = [(block.drop_path.rate, block.drop_path.broadcast_dims) for block in network.blocks]
    assert found == [(0, (-3, -2, -1)), (0.15, (-3, -2, -1)), (0.3, (-2, -1))]


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(1, 1)), float32(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    tokens = jax.jit(lambda network, x: network.forward_features(x))(network, image)
    np.testing.assert_allclose(forward(network, image), tokens[0] @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (6, 5)


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))


@in_full
def test_it_is_timms():
    """Of 5×5 patches, since timm takes the map to be square."""
    theirs = {"embed_dim": 8, "num_heads": 4, "depth": 3, "local_up_to_layer": 2, "img_size": 40, "patch_size": 8}
    ours = {"embed_dim": 32, "num_heads": 4, "depths": (2, 1), "image_size": 40, "patch_size": 8}
    network = random_network_of("ConVit", **theirs)
    model = nnx.eval_shape(lambda: ConViT(11, **ours, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, 40, 40, 3))
