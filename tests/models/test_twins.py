"""The Twins transformers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.twins import MODELS, Twins
from tests.mechanisms.self_attention import test_lsa_gsa, test_mhsa, test_sra
from tests.mechanisms.spatial import test_lka
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
from tests.models.timm_networks import assert_it_is_timms, random_network_of

in_full = pytest.mark.full
norm = partial(naive_layers.norm, epsilon=1e-6)

COUNTS = {
    "twins_pcpvt_small": 24_106_216,
    "twins_pcpvt_base": 43_828_456,
    "twins_pcpvt_large": 60_989_672,
    "twins_svt_small": 24_060_776,
    "twins_svt_base": 56_070_952,
    "twins_svt_large": 99_271_400,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(
    Twins,
    3,
    embed_dims=(4, 6),
    depths=(3, 1),
    head_dim=2,
    sr_ratios=(2, 1),
    window=3,
    mlp_ratios=(2, 3),
    in_channels=2,
)
IMAGE = (30, 18, 2)  # of 7×4 positions, then 3×2


def to_all(x, p, i):
    reduce = test_sra.positions if i else test_sra.squares
    return test_sra.oracle(x, under(p, "attn"), heads=x.shape[-1] // 2, reduce=reduce)


def in_windows(x, p, i):
    ask = partial(test_mhsa.asked, heads=x.shape[-1] // 2)
    score = partial(test_lsa_gsa.scaled, scale=2**-0.5)
    return test_lsa_gsa.lsa(x, under(p, "attn"), ask=ask, score=score)


def block(x, p, i, attend):
    z = x + attend(norm(x, p, "norm1"), p, i)
    return z + perceptron(norm(z, p, "norm2"), p)


def with_another(x, p, i):
    return scaled(x)


def alone(x, p, i):
    return x + perceptron(norm(x, p, "norm2"), p)


NETWORKS = {
    "in turns": ({}, lambda j: partial(block, attend=to_all if j % 2 else in_windows)),
    "to all": ({"window": None}, lambda j: partial(block, attend=to_all)),
    "another": ({"attention": Scaled}, lambda j: partial(block, attend=with_another)),
    "none": ({"attention": None}, lambda j: alone),
}


def naive_features(image, p, block):
    x, maps = image, []
    for i, (stride, depth) in enumerate([(4, 3), (2, 1)]):
        x = naive_layers.norm(conv(x, p, f"patch_embeds.{i}.proj", stride), p, f"patch_embeds.{i}.norm")
        for j in range(depth):
            x = block(j)(x, under(p, f"blocks.{i}.{j}"), i)
            if j == 0:
                x = x + test_lka.depthwise(x, p[f"pos_block.{i}.kernel"], p[f"pos_block.{i}.bias"])
        maps.append(x)
    return maps


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
    assert_equal(logits, linear(norm(expected[-1], p, "norm").mean((0, 1)), p, "head"))


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for blocks in network.blocks for block in blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(2, 1)), float32(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    pooled = jax.jit(lambda network, x: network.forward_features(x).mean((0, 1)))(network, image)
    np.testing.assert_allclose(forward(network, image), pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (6, 5)


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, *IMAGE))


FORMS = {
    "to all": ({}, {"wss": None}, (75, 98)),
    "in turns": ({"window": 2}, {"wss": (2, 2, 2)}, (67, 98)),  # maps that the windows divide
}


@in_full
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form):
    ours, theirs, size = FORMS[form]
    sizes = {"embed_dims": (16, 24, 32), "depths": (2, 1, 3), "sr_ratios": (4, 3, 1), "mlp_ratios": (3, 2, 2)}
    network = random_network_of("Twins", **sizes, **theirs, num_heads=(2, 3, 4))
    model = nnx.eval_shape(lambda: Twins(11, **sizes, **ours, head_dim=8, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
