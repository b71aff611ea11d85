"""Residual networks and their kin against naive NumPy and timm's own, and where the attention stands."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import interop, nn
from attn_flax.catalog import create_attention
from attn_flax.models import create_model
from attn_flax.models.resnet import MODELS, BasicBlock, Bottleneck, ResNet
from tests.models import networks, timm_networks
from tests.models.naive_layers import Scaled, batch_norm, convolve, relu, scaled
from tests.models.networks import assert_equal, assert_the_same_computed_anew, first_quick, float32, parameters

in_full = pytest.mark.full

COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet26": 15_995_176,
    "resnet152": 60_192_808,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet26d": 16_014_408,
    "resnet26t": 16_011_872,
    "resnet50d": 25_576_264,
    "resnet50t": 25_573_728,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "seresnet18": 11_779_624,
    "seresnet34": 21_960_416,
    "seresnet50": 28_088_024,
    "seresnet101": 49_326_872,
    "seresnet152": 66_821_848,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101_32x4d": 48_955_416,
    "ecaresnet26t": 16_011_916,
    "ecaresnet50d": 25_576_350,
    "ecaresnet50t": 25_573_814,
    "ecaresnet101d": 44_568_563,
    "senet154": 115_088_984,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters(name) == COUNTS[name]


OF_TIMM = {
    "se": 28_088_024,
    "eca": 25_557_118,
    "ceca": 25_557_118,
    "gca": 30_622_808,
    "cbam": 28_073_576,
    "coord": 28_083_464,
    "scoord": 35_659_768,
    "strip": 25_647_656,
    "nl": 35_667_784,
}


@in_full
@pytest.mark.parametrize("attention", OF_TIMM)
def test_with_timms_attention_in_every_block_it_has_as_many_as_timms(attention):
    assert parameters("resnet50", attention=partial(interop.timm_attention, attention)) == OF_TIMM[attention]


@in_full
def test_with_attention_in_every_block_it_has_as_many_as_the_papers():
    assert parameters("resnet50", attention="cbam") == 28_089_624
    assert parameters("resnet50", attention=partial(create_attention, "gcnet", reduction=16)) == 28_105_032


def basic(x, p, stride):
    x = relu(batch_norm(convolve(x, p["conv1.kernel"], stride), p, "bn1"))
    return batch_norm(convolve(x, p["conv2.kernel"]), p, "bn2")


def bottleneck(x, p, stride, groups=1):
    x = relu(batch_norm(convolve(x, p["conv1.kernel"]), p, "bn1"))
    x = relu(batch_norm(convolve(x, p["conv2.kernel"], stride, groups), p, "bn2"))
    return batch_norm(convolve(x, p["conv3.kernel"]), p, "bn3")


def averaged(x, stride):
    h, w = x.shape[:2]
    means = [[x[i : i + stride, j : j + stride].mean((0, 1)) for j in range(0, w, stride)] for i in range(0, h, stride)]
    return np.array(means)


def shortcut(x, p, stride):
    if "downsample.0.kernel" in p:
        return batch_norm(convolve(x, p["downsample.0.kernel"], stride), p, "downsample.1")
    if "downsample.1.kernel" in p:
        return batch_norm(averaged(x, stride) @ p["downsample.1.kernel"][0, 0], p, "downsample.2")
    return x


def block(x, p, *, branch, stride, attend=lambda y: y):
    return relu(shortcut(x, p, stride) + attend(branch(x, p, stride)))


BLOCKS = {
    "basic": (partial(BasicBlock, 4, 4), {"branch": basic, "stride": 1}),
    "basic, half": (partial(BasicBlock, 4, 6, stride=2), {"branch": basic, "stride": 2}),
    "bottleneck": (partial(Bottleneck, 8, 2), {"branch": bottleneck, "stride": 1}),
    "bottleneck, wider": (partial(Bottleneck, 4, 2), {"branch": bottleneck, "stride": 1}),
    "bottleneck, half": (
        partial(Bottleneck, 4, 2, stride=2, attention=Scaled),
        {"branch": bottleneck, "stride": 2, "attend": scaled},
    ),
    "basic, half by averages": (
        partial(BasicBlock, 4, 6, stride=2, average_shortcut=True),
        {"branch": basic, "stride": 2},
    ),
    "bottleneck, as large as before": (
        partial(Bottleneck, 4, 2, average_shortcut=True),
        {"branch": bottleneck, "stride": 1},
    ),
    "in groups": (
        partial(Bottleneck, 6, 4, stride=2, groups=3, base_width=32, reduce_first=2, shortcut_size=3),
        {"branch": partial(bottleneck, groups=3), "stride": 2},
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "bottleneck, half" else in_full) for kind in BLOCKS]
)
def test_a_block_is_the_papers(kind):
    create, form = BLOCKS[kind]
    module, p = networks.build(create)
    x = networks.random(5, 4, create.args[0])
    assert_equal(networks.run(module, x), block(x, p, **form))


@in_full
@pytest.mark.parametrize("create", [partial(BasicBlock, 8, 8), partial(Bottleneck, 8, 2, attention=nn.SqueezeExcite)])
def test_at_first_a_block_is_its_shortcut(create):
    x = jnp.asarray(networks.random(2, 5, 3, 8), jnp.float32)
    np.testing.assert_array_equal(jax.jit(lambda x: create(rngs=nnx.Rngs(0))(x))(x), relu(x))


def maximum(x):
    """Of 3×3 windows, every other one of them."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    h, w = ((length + 1) // 2 for length in x.shape[:2])
    return np.array([[padded[2 * i :, 2 * j :][:3, :3].max((0, 1)) for j in range(w)] for i in range(h)])


def naive_stem(image, p, stride):
    if "conv1.kernel" in p:
        return relu(batch_norm(convolve(image, p["conv1.kernel"], stride), p, "bn1"))
    x = relu(batch_norm(convolve(image, p["conv1.layers.0.kernel"], stride), p, "conv1.layers.1"))
    x = relu(batch_norm(convolve(x, p["conv1.layers.3.kernel"]), p, "conv1.layers.4"))
    return relu(batch_norm(convolve(x, p["conv1.layers.6.kernel"]), p, "bn1"))


def assert_naive(network, p, image, *, stem="imagenet", branch=basic, attend=lambda y: y):
    """Of a network of one block in each layer: all features and the logits."""
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    is_large = stem == "imagenet"
    x = naive_stem(image, p, 2 if is_large else 1)
    expected = [x]
    x = maximum(x) if is_large else x
    for i in (1, 2, 3, 4):
        of_block = {name.removeprefix(f"layer{i}.0."): value for name, value in p.items() if f"layer{i}.0." in name}
        x = block(x, of_block, branch=branch, stride=2 if i > 1 else 1, attend=attend)
        expected.append(x)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    assert_equal(logits, x.mean((0, 1)) @ p["fc.kernel"] + p["fc.bias"])
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)


@pytest.mark.parametrize(("stem", "attend"), [("imagenet", None), pytest.param("cifar", scaled, marks=in_full)])
def test_stem_features_and_logits_are_those_of_naive_layers(stem, attend):
    create = partial(ResNet, 3, block=BasicBlock, depths=(1, 1, 1, 1), in_channels=2, stem=stem)
    network, p = networks.build(create, attention=Scaled if attend else None)
    assert_naive(network, p, networks.random(11, 14, 2), stem=stem, attend=attend or (lambda y: y))


small = partial(ResNet, 3, block=BasicBlock, depths=(1, 1, 1, 1), widths=(4, 3, 5, 6), in_channels=2)


@in_full
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_a_deep_stem_is_three_convolutions(stem):
    network, p = networks.build(partial(small, stem=stem, stem_widths=(2, 3, 4)))
    assert_naive(network, p, networks.random(11, 14, 2), stem=stem)


def test_every_block_has_an_attention_by_name_or_by_factory():
    for attention in ("se", nn.SqueezeExcite):
        model = nnx.eval_shape(lambda a=attention: create_model("resnet18", attention=a, rngs=nnx.Rngs(0)))
        widths = [m.excite.reduce.in_features for _, m in nnx.iter_modules(model) if isinstance(m, nn.SqueezeExcite)]
        assert sorted(widths) == [64, 64, 128, 128, 256, 256, 512, 512]


def test_an_attention_by_name_computes_in_the_networks_type():
    model = nnx.eval_shape(
        lambda: create_model("resnet18", attention="se", dtype=jnp.bfloat16, num_classes=3, rngs=nnx.Rngs(0))
    )
    assert model.layer1[0].attention.excite.reduce.dtype == jnp.bfloat16
    images = jax.ShapeDtypeStruct((2, 33, 47, 3), jnp.bfloat16)
    features, logits = jax.eval_shape(lambda model, x: (model.features(x), model(x)), model, images)
    assert {x.dtype for x in (*features, logits)} == {jnp.dtype(jnp.bfloat16)}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}


@in_full
@pytest.mark.parametrize("name", ["seresnet18", "ecaresnet26t"])
def test_a_networks_own_attention_computes_in_its_type_and_gives_way_to_another(name):
    own, other, none = (
        nnx.eval_shape(lambda given=given: create_model(name, dtype=jnp.bfloat16, **given, rngs=nnx.Rngs(0)))
        for given in ({}, {"attention": "cbam"}, {"attention": "none"})
    )
    images = jax.ShapeDtypeStruct((2, 33, 47, 3), jnp.bfloat16)
    assert jax.eval_shape(lambda model, x: model(x), own, images).dtype == jnp.bfloat16
    kinds = [type(model.layer4[1].attention) for model in (own, other, none)]
    assert kinds == [nn.SqueezeExcite if name == "seresnet18" else nn.EfficientChannel, nn.Cbam, type(None)]


def test_in_training_the_branch_of_an_example_is_left_out_or_enlarged():
    block = BasicBlock(6, 6, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    block.bn2.scale[...] = jnp.ones(6)
    x = jnp.asarray(networks.random(40, 3, 2, 6), jnp.float32)
    run = nnx.jit(lambda block, x: (block(x), block.branch(x)))
    y, branch = run(block, x)
    left_out, enlarged = (
        np.isclose(y, relu(x + factor * branch), rtol=1e-4, atol=1e-5).all((1, 2, 3)) for factor in (0, 1 / 0.4)
    )
    np.testing.assert_array_equal(left_out, ~enlarged)
    assert 0 < left_out.sum() < 40
    block.eval()
    y, branch = run(block, x)
    np.testing.assert_allclose(y, relu(x + branch), rtol=1e-5, atol=1e-6)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(
        lambda: ResNet(3, block=BasicBlock, depths=(1, 2, 1, 1), drop_path_rate=0.4, rngs=nnx.Rngs(0))
    )
    first, *others = [*network.layer1, *network.layer2, *network.layer3, *network.layer4]
    assert first.drop_path is None
    np.testing.assert_allclose([block.drop_path.rate for block in others], [0.1, 0.2, 0.3, 0.4])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(small, float32(2, 33, 40, 2))


def test_a_new_head_is_for_other_classes():
    network, p = networks.build(small)
    with jax.enable_x64():
        network.reset_classifier(5, rngs=nnx.Rngs(1))
    kernel = np.asarray(network.fc.kernel[...])
    assert kernel.shape == (6, 5)
    image = networks.random(11, 14, 2)
    pooled = np.asarray(networks.run(network, image, method="features")[-1]).mean((0, 1))
    assert_equal(networks.run(network, image), pooled @ kernel)
    np.testing.assert_array_equal(network.layer1[0].conv1.kernel[...], p["layer1.0.conv1.kernel"])


SIZES = {"depths": (1, 2, 1, 1), "widths": (32, 64, 128, 256)}


def assert_timms(models, name):
    """The features and logits of timm's network of that name, made small, for images of even and of odd sizes."""
    network = timm_networks.random_network(name, num_classes=11, layers=SIZES["depths"], channels=SIZES["widths"])
    create, own = models[name]
    model = nnx.eval_shape(lambda: create(11, **(own | SIZES), rngs=nnx.Rngs(0)))
    timm_networks.copy_numbers(network, model)
    for size in ((64, 96), (65, 97)):
        our_images, their_images = timm_networks.images(2, *size, 3)
        features, logits = jax.jit(lambda model, x: (model.features(x), model(x)))(model, our_images)
        expected = network.forward_intermediates(their_images, intermediates_only=True)
        for feature, theirs in zip(features, expected, strict=True):
            np.testing.assert_allclose(feature, timm_networks.channels_last(theirs), rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(logits, network(their_images).detach().numpy(), rtol=2e-4, atol=2e-4)
        assert logits.std(0).mean() > 0.01


@in_full
@pytest.mark.parametrize(
    "name", ["seresnet18", "resnet50d", "wide_resnet50_2", "resnext50_32x4d", "ecaresnet26t", "senet154"]
)
def test_it_is_timms(name):
    assert_timms(MODELS, name)
