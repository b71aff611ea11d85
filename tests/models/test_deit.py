"""DeiT: the distilled networks against naive NumPy, and all against timm's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.deit import MODELS, DistilledVisionTransformer
from tests.models import networks, test_vit
from tests.models.naive_layers import linear
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_equal,
    first_quick,
    float32,
    forward,
    in_training,
    parameters_of,
)
from tests.models.test_vit import IMAGE, D, naive_tokens, norm
from tests.models.timm_networks import assert_it_is_timms, images, random_network

in_full = pytest.mark.full

COUNTS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "deit3_huge_patch14_224": 632_126_440,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(DistilledVisionTransformer, *test_vit.create.args, **test_vit.create.keywords)
both_heads = jax.jit(lambda network, x: network.logits_of_heads(x))


@pytest.mark.parametrize("has_positions", [True, pytest.param(False, marks=in_full)])
def test_features_and_logits_of_both_heads_are_those_of_naive_layers(has_positions):
    network, p = networks.build(create, class_position=has_positions)
    image = networks.random(*IMAGE)
    expected = naive_tokens(image, p)
    for ours, theirs in zip(networks.run(network, image, method="features"), expected, strict=True):
        assert_equal(ours, theirs[2:].reshape(3, 2, D))
    tokens = norm(expected[-1], p, "norm")
    heads = linear(tokens[0], p, "head"), linear(tokens[1], p, "head_dist")
    for ours, theirs in zip(networks.run(network, image, method="logits_of_heads"), heads, strict=True):
        assert_equal(ours, theirs)
    assert_equal(networks.run(network, image), sum(heads) / 2)
    assert_equal(networks.run(network, tokens, method="pool"), (tokens[0] + tokens[1]) / 2)


@in_full
def test_in_training_too_the_logits_are_the_mean_of_both_heads():
    network, image = in_training(create), float32(*IMAGE)
    np.testing.assert_allclose(forward(network, image), sum(both_heads(network, image)) / 2, rtol=1e-6)


@in_full
def test_at_first_the_tokens_before_the_patches_are_not_alike():
    network = create(rngs=nnx.Rngs(0))
    of_class, of_distillation = network.embed(float32(*IMAGE))[:2]
    assert np.abs(of_class - of_distillation).min() > 1e-5


@in_full
def test_new_heads_are_for_other_classes():
    network, _ = networks.build(create, np.float32)
    network.reset_classifier(5, rngs=nnx.Rngs(0))
    image = float32(*IMAGE)
    tokens = jax.jit(lambda network, x: network.forward_features(x))(network, image)
    for ours, token, head in zip(both_heads(network, image), tokens, (network.head, network.head_dist), strict=False):
        np.testing.assert_allclose(ours, token @ head.kernel[...], rtol=1e-5, atol=1e-5)
    assert network.head.kernel.shape == network.head_dist.kernel.shape == (D, 5)
    assert np.abs(network.head.kernel[...] - network.head_dist.kernel[...]).min() > 0


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))


SIZES = {"depth": 2, "embed_dim": 32, "num_heads": 2}
TIMMS = {
    "deit_tiny_patch16_224": (64, 64),
    "deit_base_patch16_384": (64, 64),
    "deit_tiny_distilled_patch16_224": (48, 80),
    "deit3_small_patch16_224": (48, 80),
}


def pair(name):
    """Ours, without numbers, and timm's, both small."""
    network = random_network(name, num_classes=11, img_size=64, dynamic_img_size=True, **SIZES)
    create, own = MODELS[name]
    return nnx.eval_shape(lambda: create(11, **(own | SIZES | {"image_size": 64}), rngs=nnx.Rngs(0))), network


@in_full
@pytest.mark.parametrize("name", TIMMS)
def test_it_is_timms(name):
    assert_it_is_timms(*pair(name), (2, *TIMMS[name], 3))


@in_full
def test_so_are_the_logits_of_both_heads():
    model, network = pair("deit_small_distilled_patch16_224")
    assert_it_is_timms(model, network, (2, 64, 64, 3))
    our_images, their_images = images(2, 64, 64, 3)
    network.train()
    network.set_distilled_training()
    for ours, theirs in zip(both_heads(model, our_images), network(their_images), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-4, atol=2e-4)
    ours = jnp.stack(both_heads(model, our_images))
    assert np.abs(ours[0] - ours[1]).mean() > 0.01
