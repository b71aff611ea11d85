"""Visual attention networks against naive NumPy; timm has none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.van import MODELS, VAN, VanBlock
from tests.mechanisms.spatial import test_lka
from tests.models import networks
from tests.models.naive_layers import Scaled, batch_norm, conv, gelu, linear, norm, scaled, under
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_equal,
    assert_leaves_out_whole_examples,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    parameters_of,
)

in_full = pytest.mark.full

COUNTS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,  # by the paper's formulas; it says 26.6 million
    "van_b3": 44_765_608,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_the_papers(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


def large_kernel(u, p):
    return test_lka.oracle(u, under(p, "attention"))


def perceptron(z, p):
    hidden = linear(batch_norm(z, p, "norm2"), p, "mlp.fc1")
    hidden = test_lka.depthwise(hidden, p["mlp.dwconv.kernel"], p["mlp.dwconv.bias"])
    return z + p["layer_scale_2.gamma"] * linear(gelu(hidden), p, "mlp.fc2")


def block(x, p, attend=large_kernel):
    u = batch_norm(x, p, "norm1")
    mixed = u + linear(attend(gelu(linear(u, p, "attn.proj_1")), under(p, "attn")), p, "attn.proj_2")
    return perceptron(x + p["layer_scale_1.gamma"] * mixed, p)


create = partial(VAN, 3, embed_dims=(4, 6), depths=(2, 1), mlp_ratios=(2, 3), in_channels=2)


def naive_features(image, p, block):
    x, maps = image, []
    for i, stride in enumerate((4, 2)):
        of_stage = under(p, f"stages.{i}")
        x = batch_norm(conv(x, of_stage, "proj", stride, 1 if i else 3), of_stage, "proj_norm")
        for j in range(2 - i):
            x = block(x, under(of_stage, f"blocks.{j}"))
        x = norm(x, of_stage, "norm", epsilon=1e-6)
        maps.append(x)
    return maps


NETWORKS = {
    "its own": ({}, block),
    "another": ({"attention": Scaled}, partial(block, attend=lambda u, _: scaled(u))),
    "none": ({"attention": None}, perceptron),
}


@pytest.mark.parametrize("attention", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(attention):
    arguments, block = NETWORKS[attention]
    network, p = networks.build(create, **arguments)
    image = networks.random(29, 37, 2)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, block)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    assert_equal(logits, linear(expected[-1].mean((0, 1)), p, "head"))


@in_full
def test_at_first_a_branch_is_a_hundredth():
    module = VanBlock(4, mlp_ratio=2, attention=Scaled, rngs=nnx.Rngs(0))
    for scale in (module.layer_scale_1, module.layer_scale_2):
        np.testing.assert_array_equal(scale.gamma[...], np.full(4, 0.01, np.float32))


def branches(block, x, first, second):
    z = x + first * block.attn(block.norm1(x))
    return z + second * block.mlp(block.norm2(z))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    module = VanBlock(6, mlp_ratio=2, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    for scale in (module.layer_scale_1, module.layer_scale_2):
        scale.gamma[...] = jnp.ones(6)
    for bn in (module.norm1, module.norm2):
        bn.use_running_average = True  # or what one example leaves out would change the others
    assert_leaves_out_whole_examples(module, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [module.drop_path.rate for stage in network.stages for module in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(create, float32(2, 33, 40, 2))


def test_a_new_head_is_for_other_classes():
    network, p = networks.build(create)
    with jax.enable_x64():
        network.reset_classifier(5, rngs=nnx.Rngs(1))
    kernel = np.asarray(network.head.kernel[...])
    assert kernel.shape == (6, 5)
    image = networks.random(13, 9, 2)
    pooled = np.asarray(networks.run(network, image, method="features")[-1]).mean((0, 1))
    assert_equal(networks.run(network, image), pooled @ kernel)
    np.testing.assert_array_equal(network.stages[0].proj.kernel[...], p["stages.0.proj.kernel"])


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(create, float32(2, 33, 40, 2))
