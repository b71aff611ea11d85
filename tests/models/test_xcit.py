"""Cross-covariance image transformers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.xcit import MODELS, XCiT, XcitBlock
from tests import timm_oracle
from tests.mechanisms.self_attention import test_class_attention, test_xca
from tests.mechanisms.spatial.test_focal_modulation import depthwise
from tests.models import networks
from tests.models.naive_layers import Scaled, batch_norm, conv, gelu, linear, perceptron, scaled, under
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
from tests.models.test_cait import first_scales
from tests.models.test_vit import norm
from tests.models.timm_networks import assert_it_is_timms, random_network_of

in_full = pytest.mark.full

COUNTS = {
    "nano_12_p16": 3_053_224,
    "nano_12_p8": 3_049_016,
    "tiny_12_p16": 6_716_272,
    "tiny_12_p8": 6_706_504,
    "small_12_p16": 26_253_304,
    "small_12_p8": 26_213_032,
    "tiny_24_p16": 12_116_896,
    "tiny_24_p8": 12_107_128,
    "small_24_p16": 47_671_384,
    "small_24_p8": 47_631_112,
    "medium_24_p16": 84_395_752,
    "medium_24_p8": 84_323_624,
    "large_24_p16": 189_096_136,
    "large_24_p8": 188_932_648,
}


@pytest.mark.parametrize("size", first_quick(COUNTS))
def test_it_has_as_many_parameters_as_timms(size):
    assert parameters_of(MODELS, f"xcit_{size}_224") == COUNTS[size]


def test_no_parameter_belongs_to_a_position():
    assert set(MODELS) == {f"xcit_{size}_{image_size}" for size in COUNTS for image_size in (224, 384)}
    for size in COUNTS:
        assert MODELS[f"xcit_{size}_384"] == MODELS[f"xcit_{size}_224"]


create = partial(XCiT, 3, embed_dim=6, depth=2, num_heads=2, mlp_ratio=2, patch_size=4, in_channels=2)
IMAGE = (11, 6, 2)  # of 3×2 positions


def crossing(x, p):
    return test_xca.oracle(x, under(p, "attn"))


def interaction(x, p):
    x = gelu(depthwise(x, p["conv1.kernel"]) + p["conv1.bias"])
    return depthwise(batch_norm(x, p, "bn"), p["conv2.kernel"]) + p["conv2.bias"]


def block(x, p, attend=crossing):
    return alone(x + p["ls1.gamma"] * attend(norm(x, p, "norm1"), p), p)


def alone(x, p):
    x = x + p["ls3.gamma"] * interaction(norm(x, p, "norm3"), under(p, "local_mp"))
    return x + p["ls2.gamma"] * perceptron(norm(x, p, "norm2"), p)


def class_block(u, z, p, tokens_norm):
    tokens = norm(np.concatenate([u[None], z]), p, "norm1")
    u = norm(u + p["ls1.gamma"] * test_class_attention.oracle(tokens, under(p, "attn")), p, "norm2")
    z = z + p["ls1.gamma"] * tokens[1:]
    return u + p["ls2.gamma"] * perceptron(u, p), 2 * (norm(z, p, "norm2") if tokens_norm else z)


def waves(h, w):
    """The sines and cosines of each position, (h, w, 64)."""
    return np.array(
        [
            [
                [
                    wave(2 * np.pi * share * 10_000 ** (-f / 16))
                    for share in ((i + 1) / h, (j + 1) / w)
                    for f in range(16)
                    for wave in (np.sin, np.cos)
                ]
                for j in range(w)
            ]
            for i in range(h)
        ]
    )


def naive_features(image, p, block):
    x = batch_norm(conv(image, p, "patch_embed.layers.0.layers.0", 2, 1), p, "patch_embed.layers.0.layers.1")
    x = batch_norm(conv(gelu(x), p, "patch_embed.layers.2.layers.0", 2, 1), p, "patch_embed.layers.2.layers.1")
    x = x + linear(waves(*x.shape[:2]), p, "pos_embed.token_projection")
    maps = []
    for i in range(2):
        x = block(x, under(p, f"blocks.{i}"))
        maps.append(x)
    return maps


def naive_tokens(z, p, tokens_norm):
    u, z = p["cls_token"], z.reshape(-1, z.shape[-1])
    for i in range(2):
        u, z = class_block(u, z, under(p, f"cls_attn_blocks.{i}"), tokens_norm)
    return norm(np.concatenate([u[None], z]), p, "norm")


NETWORKS = {
    "its own": ({}, block),
    "a norm of the class token alone": ({"tokens_norm": False}, block),
    "another": ({"attention": Scaled}, partial(block, attend=scaled)),
    "none": ({"attention": None}, alone),
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
    tokens = naive_tokens(expected[-1], p, arguments.get("tokens_norm", True))
    assert_equal(networks.run(network, image, method="forward_features"), tokens)
    assert_equal(logits, linear(tokens[0], p, "head"))


@in_full
@pytest.mark.parametrize("name", [f"xcit_{size}_224" for size in COUNTS])
def test_at_first_its_scales_and_its_class_blocks_are_timms(name):
    theirs = timm_oracle.load("models").create_model(name, embed_dim=48, depth=1)
    network, own = MODELS[name]
    np.testing.assert_array_equal(first_scales(network, own), np.float32(theirs.blocks[0].gamma1[0].item()))
    assert own.get("tokens_norm", True) == theirs.cls_attn_blocks[0].tokens_norm


def branches(block, x, attended, interacted, transformed):
    x = x + attended * block.ls1(block.attn(block.norm1(x)))
    x = x + interacted * block.ls3(block.local_mp(block.norm3(x)))
    return x + transformed * block.ls2(block.mlp(block.norm2(x)))


SILENT = {
    "attention": ("ls1", lambda block, x, first, second: branches(block, x, 0, first, second)),
    "interaction": ("ls3", lambda block, x, first, second: branches(block, x, first, 0, second)),
}


@in_full
@pytest.mark.parametrize("silent", SILENT)
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged(silent):
    scale, form = SILENT[silent]
    block = XcitBlock(6, mlp_ratio=2, layer_scale=0.5, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    getattr(block, scale).gamma[...] = np.zeros(6, np.float32)
    block.local_mp.eval()
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), form)


def test_as_much_is_left_out_in_every_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    assert [block.drop_path.rate for block in network.blocks] == [0.3, 0.3]


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depth=1, patch_size=2), networks.random(3, 5, 4, 2))


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


FORMS = {
    "1/16": ({"patch_size": 16, "tokens_norm": True}, (83, 50)),
    "1/8, a norm of the class token alone": ({"patch_size": 8, "tokens_norm": False}, (41, 24)),
}


@in_full
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form):
    kind, size = FORMS[form]
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, **kind}
    network = random_network_of("Xcit", **sizes)
    model = nnx.eval_shape(lambda: XCiT(11, **sizes, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
