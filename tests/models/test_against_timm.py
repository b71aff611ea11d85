"""Residual networks and vision transformers against timm's own, with its numbers."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax import interop
from attn_flax.models import VisionTransformer, create_model
from tests.models import timm_networks

pytestmark = pytest.mark.full

assert_close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)


def pair(create, their_name, **theirs):
    network = timm_networks.random_network(their_name, num_classes=11, **theirs)
    model = nnx.eval_shape(lambda: create(num_classes=11, rngs=nnx.Rngs(0)))
    timm_networks.copy_numbers(network, model)
    return model, network


RESNETS = {
    "resnet18": {"name": "resnet18"},
    "seresnet50": {"name": "resnet50", "attention": partial(interop.timm_attention, "se")},
    "ecaresnet26t": {"name": "ecaresnet26t"},
}


@pytest.mark.parametrize("their_name", RESNETS)
def test_a_residual_network_and_all_its_features(their_name):
    model, network = pair(partial(create_model, **RESNETS[their_name]), their_name)
    ours, theirs = timm_networks.images(2, 65, 97, 3)
    features, logits = jax.jit(lambda model, x: (model.features(x), model(x)))(model, ours)
    assert [f.shape[-1] for f in features] == list(model.feature_channels)
    for feature, expected in zip(features, network.forward_intermediates(theirs, intermediates_only=True), strict=True):
        assert_close(feature, timm_networks.channels_last(expected))
    assert_close(logits, network(theirs).detach().numpy())
    assert logits.std(0).mean() > 0.01


NAME = "vit_tiny_patch16_224"
small = partial(VisionTransformer, embed_dim=192, depth=2, num_heads=3)
SCALED = {"layer_scale": 1e-5, "class_position": False}
VITS = {
    "as named": (partial(create_model, NAME), {}, (224, 224, 3)),
    "another size": (small, {"depth": 2, "dynamic_img_size": True}, (160, 96, 3)),
    "the patches' mean": (
        partial(small, image_size=(32, 40), patch_size=4, in_channels=1, global_pool="avg"),
        {"depth": 2, "img_size": (32, 40), "patch_size": 4, "in_chans": 1, "global_pool": "avg"},
        (32, 40, 1),
    ),
    "attention pooling": (
        partial(small, image_size=64, global_pool="map"),
        {"depth": 2, "img_size": 64, "global_pool": "map"},
        (64, 64, 3),
    ),
    "scaled, without a position of the class token, another size": (
        partial(small, image_size=64, **SCALED),
        {"depth": 2, "img_size": 64, "dynamic_img_size": True, "init_values": 1e-5, "no_embed_class": True},
        (48, 80, 3),
    ),
}


@pytest.mark.parametrize("form", VITS)
def test_a_vision_transformer_and_all_its_features(form):
    create, theirs, shape = VITS[form]
    model, network = pair(create, NAME, **theirs)
    our_images, their_images = timm_networks.images(2, *shape)
    features, tokens, logits = jax.jit(lambda model, x: (model.features(x), model.forward_features(x), model(x)))(
        model, our_images
    )
    expected_tokens, expected = network.forward_intermediates(their_images)
    for feature, theirs in zip(features, expected, strict=True):
        assert_close(feature, timm_networks.channels_last(theirs))
    assert_close(tokens, expected_tokens.detach().numpy())
    assert_close(logits, network(their_images).detach().numpy())
    assert logits.std(0).mean() > 0.01
