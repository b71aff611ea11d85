"""Vision outlookers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.volo import MODELS, ClassBlock, Volo
from tests.mechanisms.self_attention import test_class_attention, test_mhsa, test_outlook
from tests.models import networks
from tests.models.naive_layers import (
    Scaled,
    alone,
    batch_norm,
    conv,
    linear,
    norm,
    perceptron,
    pre_norm,
    relu,
    scaled,
    under,
)
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
from tests.models.test_vit import resized
from tests.models.timm_networks import assert_it_is_timms, random_network_of

in_full = pytest.mark.full

COUNTS = {
    "volo_d1_224": 26_632_040,
    "volo_d1_384": 26_777_960,
    "volo_d2_224": 58_678_336,
}


@pytest.mark.parametrize("name", first_quick(COUNTS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


def of_class(tokens, p):
    u = tokens[0] + test_class_attention.oracle(norm(tokens, p, "norm1"), under(p, "attn"))
    u = u + perceptron(norm(u, p, "norm2"), p)
    return np.concatenate([u[None], tokens[1:]])


def test_a_class_block_is_the_papers():
    module, p = networks.build(partial(ClassBlock, 6, num_heads=2, mlp_ratio=2))
    tokens = networks.random(7, 6)
    assert_equal(networks.run(module, tokens), of_class(tokens, p))


create = partial(
    Volo, 3, embed_dims=(4, 6), depths=(2, 1, 2), num_heads=(2, 2), stem_channels=5, image_size=(33, 50), in_channels=2
)
IMAGE = (33, 50, 2)  # of 4×6 positions, then 2×3


def outlooking(x, p):
    return test_outlook.oracle(x, under(p, "attn"), stride=2)


def attending(x, p):
    return test_mhsa.oracle(x, under(p, "attn"))


def naive_features(image, p, outlooker):
    x = image
    for i, stride, pad in ((0, 2, 3), (3, 1, 1), (6, 1, 1)):
        x = conv(x, p, f"patch_embed.conv.layers.{i}", stride, pad)
        x = relu(batch_norm(x, p, f"patch_embed.conv.layers.{i + 1}"))
    x = conv(x, p, "patch_embed.proj", 4)
    for j in range(2):
        x = outlooker(x, under(p, f"network.0.{j}"))
    maps = [x]
    x = conv(x, p, "network.1", 2)
    positions = p["pos_embed"]
    x = x + (positions if x.shape == positions.shape else resized(positions, x.shape[:2]))
    for i, depth in ((2, 1), (3, 2)):
        for j in range(depth):
            x = pre_norm(x, under(p, f"network.{i}.{j}"), attend=attending)
        maps.append(x)
    return maps


def naive_tokens(z, p):
    tokens = np.concatenate([p["cls_token"][None], z.reshape(-1, z.shape[-1])])
    for i in range(2):
        tokens = of_class(tokens, under(p, f"post_network.{i}"))
    return norm(tokens, p, "norm")


NETWORKS = {
    "its own": ({}, partial(pre_norm, attend=outlooking)),
    "another": ({"attention": Scaled}, partial(pre_norm, attend=scaled)),
    "none": ({"attention": None}, alone),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, outlooker = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, outlooker)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    tokens = naive_tokens(expected[-1], p)
    assert_equal(networks.run(network, image, method="forward_features"), tokens)
    assert_equal(logits, linear(tokens[0], p, "head") + linear(tokens[1:], p, "aux_head").max(0) / 2)


@pytest.mark.parametrize("size", [(50, 70), pytest.param((16, 16), marks=in_full)])
def test_at_another_size_its_positions_are_resampled(size):
    network, p = networks.build(create)
    image = networks.random(*size, 2)
    expected = naive_features(image, p, partial(pre_norm, attend=outlooking))[-1]
    # Pillow computes in float32.
    np.testing.assert_allclose(networks.run(network, image, method="features")[-1], expected, rtol=1e-5, atol=1e-5)


def branches(block, x, first, second):
    z = x + first * block.attn(block.norm1(x))
    return z + second * block.mlp(block.norm2(z))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    network = in_training(create, depths=(1, 1), drop_path_rate=0.6)
    assert_leaves_out_whole_examples(network.network[2][0], float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_transformer_to_transformer():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.4, rngs=nnx.Rngs(0)))
    outlookers, _, *stages = network.network
    rates = [block.drop_path.rate for blocks in (outlookers, *stages) for block in blocks]
    np.testing.assert_allclose(rates, [0, 0, 0.2, 0.3, 0.4])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(1, 1)), float32(3, *IMAGE))


@in_full
def test_new_heads_are_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    tokens = jax.jit(lambda network, x: network.forward_features(x))(network, image)
    logits = tokens[0] @ network.head.kernel[...] + (tokens[1:] @ network.aux_head.kernel[...]).max(0) / 2
    np.testing.assert_allclose(forward(network, image), logits, rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == network.aux_head.kernel.shape == (6, 5)
    assert np.abs(network.head.kernel[...] - network.aux_head.kernel[...]).min() > 0


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))


@in_full
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_it_is_timms(size):
    theirs = {
        "embed_dims": (16, 32, 32), "layers": (2, 1, 1), "num_heads": (2, 4, 4), "img_size": size,
        "stem_hidden_dim": 8, "downsamples": (True, False, False), "outlook_attention": (True, False, False),
    }  # fmt: skip
    ours = {"embed_dims": (16, 32), "depths": (2, 1, 1), "num_heads": (2, 4), "stem_channels": 8, "image_size": size}
    network = random_network_of("VOLO", **theirs)
    model = nnx.eval_shape(lambda: Volo(11, **ours, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
