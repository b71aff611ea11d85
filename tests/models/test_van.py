"""Visual attention networks against naive NumPy; timm has none."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.van import MODELS, VAN, VanBlock
from tests.mechanisms.spatial import test_lka
from tests.models import networks, test_resnet
from tests.models.test_resnet import Scaled, conv, scaled
from tests.models.test_resnet import norm as batch_norm
from tests.models.test_vit import gelu, linear, norm, under

in_full = pytest.mark.full

COUNTS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,  # by the paper's formulas; it says 26.6 million
    "van_b3": 44_765_608,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_full if i else []) for i, name in enumerate(MODELS)])
def test_it_has_as_many_parameters_as_the_papers(name):
    network, own = MODELS[name]
    model = nnx.eval_shape(lambda: network(1000, **own, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == COUNTS[name]


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
        x = batch_norm(conv(x, of_stage["proj.kernel"], stride) + of_stage["proj.bias"], of_stage, "proj_norm")
        for j in range(2 - i):
            x = block(x, under(of_stage, f"blocks.{j}"))
        x = norm(x, of_stage, "norm")
        maps.append(x)
    return maps


NETWORKS = {
    "its own": ({}, block),
    "another": ({"attention": Scaled}, partial(block, attend=lambda u, _: scaled(u))),
    "none": ({"attention": None}, perceptron),
}


@pytest.mark.parametrize(
    "attention", [pytest.param(name, marks=in_full if i else []) for i, name in enumerate(NETWORKS)]
)
def test_features_and_logits_are_those_of_naive_layers(attention):
    arguments, block = NETWORKS[attention]
    network, p = networks.build(create, **arguments)
    image = networks.random(29, 37, 2)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, block)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(logits, linear(expected[-1].mean((0, 1)), p, "head"), rtol=1e-9, atol=1e-11)


@in_full
def test_at_first_a_branch_is_a_hundredth():
    module = VanBlock(4, mlp_ratio=2, attention=Scaled, rngs=nnx.Rngs(0))
    for scale in (module.layer_scale_1, module.layer_scale_2):
        np.testing.assert_array_equal(scale.gamma[...], np.full(4, 0.01, np.float32))


@in_full
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged():
    module = VanBlock(6, mlp_ratio=2, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    for scale in (module.layer_scale_1, module.layer_scale_2):
        scale.gamma[...] = jnp.ones(6)
    for bn in (module.norm1, module.norm2):
        bn.use_running_average = True  # or what one example leaves out would change the others
    x = jnp.asarray(networks.random(40, 3, 2, 6), jnp.float32)
    y = nnx.jit(lambda module, x: module(x))(module, x)
    kept = 1 / 0.4
    mixed = module.attn(module.norm1(x))
    examples = []
    for first, second in itertools.product((0, kept), repeat=2):
        z = x + first * mixed
        same = np.isclose(y, z + second * module.mlp(module.norm2(z)), rtol=1e-4, atol=1e-4)
        examples.append(same.all((1, 2, 3)).sum())
    assert sum(examples) == 40
    assert min(examples) > 0
    module.eval()
    z = x + mixed
    np.testing.assert_allclose(
        jax.jit(lambda module, x: module(x))(module, x), z + module.mlp(module.norm2(z)), rtol=1e-4, atol=1e-4
    )


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [module.drop_path.rate for stage in network.stages for module in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    test_resnet.assert_computed_anew_the_same(create)


def test_a_new_head_is_for_other_classes():
    network, p = networks.build(create)
    with jax.enable_x64():
        network.reset_classifier(5, rngs=nnx.Rngs(1))
    kernel = np.asarray(network.head.kernel[...])
    assert kernel.shape == (6, 5)
    image = networks.random(13, 9, 2)
    pooled = np.asarray(networks.run(network, image, method="features")[-1]).mean((0, 1))
    np.testing.assert_allclose(networks.run(network, image), pooled @ kernel, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(network.stages[0].proj.kernel[...], p["stages.0.proj.kernel"])


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    images = jnp.asarray(networks.random(2, 33, 40, 2), jnp.float32)
    run = jax.jit(lambda model, x: model(x))
    wide, narrow = (networks.build(create, np.float32, dtype=dtype)[0] for dtype in (None, jnp.bfloat16))
    logits, expected = run(narrow, images), run(wide, images)
    assert logits.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(logits) - expected) < 0.05 * np.linalg.norm(expected)
