"""The second pyramid vision transformers against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.pvt_v2 import MODELS, Block, PyramidVisionTransformerV2
from tests.mechanisms.self_attention import test_sra
from tests.mechanisms.spatial import test_lka
from tests.models import naive_layers, networks
from tests.models.naive_layers import Scaled, conv, gelu, linear, relu, scaled, under
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
from tests.models.timm_networks import assert_it_is_timms, random_network
from tests.oracles import adaptive_average_pool

in_full = pytest.mark.full
norm = partial(naive_layers.norm, epsilon=1e-6)

COUNTS = {
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b1": 14_009_000,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b2_li": 22_553_512,
    "pvt_v2_b3": 45_238_696,
}


@pytest.mark.parametrize("name", first_quick(COUNTS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(
    PyramidVisionTransformerV2,
    3,
    embed_dims=(4, 6),
    depths=(2, 1),
    head_dim=2,
    sr_ratios=(3, 1),
    mlp_ratios=(2, 3),
    in_channels=2,
)
IMAGE = (29, 18, 2)  # of 8×5 positions, then 4×3


def perceptron(z, p, rectified):
    hidden = linear(norm(z, p, "norm2"), p, "mlp.fc1")
    hidden = test_lka.depthwise(relu(hidden) if rectified else hidden, p["mlp.dwconv.kernel"], p["mlp.dwconv.bias"])
    return z + linear(gelu(hidden), p, "mlp.fc2")


def block(x, p, reduce, rectified=False):
    attended = test_sra.oracle(norm(x, p, "norm1"), under(p, "attn"), heads=x.shape[-1] // 2, reduce=reduce)
    return perceptron(x + attended, p, rectified)


def in_squares(x, p, i):
    return block(x, p, test_sra.positions if i else test_sra.squares)


def in_bins(x, p, i):
    bins = partial(test_sra.bins, pool=lambda x: adaptive_average_pool(x, (7, 7)))
    return block(x, p, bins, rectified=True)


def with_another(x, p, i):
    return perceptron(x + scaled(norm(x, p, "norm1")), p, rectified=False)


def alone(x, p, i):
    return perceptron(x, p, rectified=False)


NETWORKS = {
    "its own": ({}, in_squares),
    "linear": ({"linear": True}, in_bins),
    "another": ({"attention": Scaled}, with_another),
    "none": ({"attention": None}, alone),
}


def naive_features(image, p, block):
    x, maps = image, []
    for i, (stride, depth) in enumerate([(4, 2), (2, 1)]):
        of_stage = under(p, f"stages.{i}")
        x = conv(x, of_stage, "downsample.proj", stride, stride - 1)
        x = naive_layers.norm(x, of_stage, "downsample.norm")
        for j in range(depth):
            x = block(x, under(of_stage, f"blocks.{j}"), i)
        x = norm(x, of_stage, "norm")
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
    assert_equal(logits, linear(expected[-1].mean((0, 1)), p, "head"))


def branches(block, x, first, second):
    z = x + first * block.attn(block.norm1(x))
    return z + second * block.mlp(block.norm2(z))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    block = Block(6, mlp_ratio=2, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.stages for block in stage.blocks]
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
    pooled = jax.jit(lambda network, x: network.features(x)[-1].mean((0, 1)))(network, image)
    np.testing.assert_allclose(forward(network, image), pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (6, 5)


@in_full
@pytest.mark.parametrize("linear", [False, True])
def test_it_computes_in_its_type_over_float32_parameters(linear):
    assert_computes_in_its_type(partial(create, linear=linear), float32(2, *IMAGE))


@in_full
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_it_is_timms(linear, size):
    sizes = {"embed_dims": (16, 24, 32), "depths": (2, 1, 1), "sr_ratios": (4, 3, 1), "mlp_ratios": (3, 2, 2)}
    theirs = {**sizes, "num_heads": (2, 3, 4), "linear": linear}
    network = random_network("pvt_v2_b0", num_classes=11, **theirs)
    model = nnx.eval_shape(lambda: PyramidVisionTransformerV2(11, **sizes, head_dim=8, linear=linear, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
