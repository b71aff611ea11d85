"""Focal modulation networks against naive NumPy, and timm's own."""

import itertools
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.focal_modulation import FocalModulation
from attn_flax.models.focalnet import MODELS, FocalNet, PostNormBlock, PreNormBlock
from tests import timm_oracle
from tests.mechanisms.spatial import test_focal_modulation
from tests.models import networks, timm_networks
from tests.models.test_vit import gelu, linear, under

in_full = pytest.mark.full
run = jax.jit(lambda model, x: model(x))
assert_equal = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)

COUNTS = {
    "focalnet_tiny_srf": 28_427_116,
    "focalnet_small_srf": 49_891_216,
    "focalnet_base_srf": 88_148_144,
    "focalnet_tiny_lrf": 28_647_928,
    "focalnet_small_lrf": 50_342_440,
    "focalnet_base_lrf": 88_749_768,
    "focalnet_large_fl3": 207_100_744,
    "focalnet_large_fl4": 207_281_248,
    "focalnet_xlarge_fl3": 366_082_120,
    "focalnet_xlarge_fl4": 366_322_784,
    "focalnet_huge_fl3": 686_564_424,
    "focalnet_huge_fl4": 689_277_664,
}


def first_quick(names):
    return [pytest.param(name, marks=in_full if i else []) for i, name in enumerate(names)]


def parameters(models, name):
    """How many the network of that name has."""
    network, own = models[name]
    model = nnx.eval_shape(lambda: network(1000, **own, rngs=nnx.Rngs(0)))
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters(MODELS, name) == COUNTS[name]


def norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def perceptron(x, p):
    return linear(gelu(linear(x, p, "mlp.reduce")), p, "mlp.expand")


def conv(x, p, name, stride, pad=0):
    """The windows of x (h, w, c) that lie in it and so many zeros around it, at steps of the stride."""
    kernel = p[f"{name}.kernel"]
    size = len(kernel)
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    h, w = ((n - size) // stride + 1 for n in padded.shape[:2])
    windows = [[padded[i * stride :, j * stride :][:size, :size] for j in range(w)] for i in range(h)]
    return np.einsum("hwijc,ijcd->hwd", windows, kernel) + p.get(f"{name}.bias", 0)


def modulated(x, p):
    return test_focal_modulation.oracle(x, under(p, "modulation"))


def scaled(x, p=None):
    return x * np.arange(1.0, x.shape[-1] + 1)


class Scaled(nnx.Module):
    """An attention to tell the place of."""

    def __init__(self, channels, *, rngs):
        self.channels = channels

    def __call__(self, x):
        return scaled(x)


def pre_norm(x, p, attend=modulated):
    z = x + attend(norm(x, p, "norm1"), p)
    return z + perceptron(norm(z, p, "norm2"), p)


def post_norm(x, p, attend=modulated):
    z = x + p["ls1.gamma"] * norm(attend(x, p), p, "norm1_post")
    return z + p["ls2.gamma"] * norm(perceptron(z, p), p, "norm2_post")


def alone(x, p):
    return x + perceptron(norm(x, p, "norm2"), p)


BLOCKS = {"pre-norm": (PreNormBlock, pre_norm), "post-norm": (PostNormBlock, post_norm)}


@pytest.mark.parametrize("kind", first_quick(BLOCKS))
def test_a_block_is_the_authors(kind):
    block, oracle = BLOCKS[kind]
    module, p = networks.build(partial(block, 4, mlp_ratio=2))
    x = networks.random(5, 3, 4)
    assert_equal(networks.run(module, x), oracle(x, p))


create = partial(FocalNet, 3, embed_dim=4, depths=(1, 2), mlp_ratio=2, in_channels=2)
IMAGE = (19, 14, 2)


def naive_features(image, p, block, overlap):
    x = norm(conv(image, p, "stem.proj", 4, 2 if overlap else 0), p, "stem.norm")
    maps = [block(x, under(p, "layers.0.blocks.0"))]
    x = norm(conv(maps[0], p, "layers.1.downsample.proj", 2, int(overlap)), p, "layers.1.downsample.norm")
    for j in range(2):
        x = block(x, under(p, f"layers.1.blocks.{j}"))
    return [*maps, x]


NETWORKS = {
    "its own": ({}, pre_norm),
    "post-norm": ({"block": PostNormBlock, "overlap_down": True, "focal_window": 5, "focal_level": 1}, post_norm),
    "another": ({"attention": Scaled}, partial(pre_norm, attend=scaled)),
    "none": ({"attention": None}, alone),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, block = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, block, "overlap_down" in arguments)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    assert_equal(logits, linear(norm(expected[-1], p, "norm").mean((0, 1)), p, "head"))


def float32(*shape):
    return jnp.asarray(networks.random(*shape), jnp.float32)


def assert_leaves_out_whole_examples(block, x, form):
    """`form` gives y with the first branch so many times, and the second; of the block 0.6 are left out."""
    kept = 1 / 0.4
    y = nnx.jit(lambda block, x: block(x))(block, x)
    outcomes = [form(block, x, *times) for times in itertools.product((0, kept), repeat=2)]
    examples = [np.isclose(y, z, rtol=1e-4, atol=1e-4).all((1, 2, 3)).sum() for z in outcomes]
    assert sum(examples) == len(x)
    assert min(examples) > 0
    block.eval()
    np.testing.assert_allclose(run(block, x), form(block, x, 1, 1), rtol=1e-4, atol=1e-4)


def branches(block, x, first, second):
    z = x + first * block.modulate(x)
    return z + second * block.transform(z)


@in_full
@pytest.mark.parametrize("kind", BLOCKS)
def test_in_training_each_branch_of_an_example_is_left_out_or_enlarged(kind):
    block = BLOCKS[kind][0](6, attention=Scaled, drop_path_rate=0.6, rngs=nnx.Rngs(0))
    for scale in [block.ls1, block.ls2] if kind == "post-norm" else []:
        scale.gamma[...] = jnp.ones(6)
    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])


def in_training(create, **arguments):
    """The network with other numbers than its own, which take long to draw."""
    network, _ = networks.build(create, np.float32, **arguments)
    network.train()
    nnx.reseed(network, default=0)
    return network


def assert_the_same_computed_anew(create, images):
    """Value and gradient in training, some branches left out, with and without `remat`."""
    results = []
    for remat in (False, True):
        network = in_training(create, remat=remat, drop_path_rate=0.5)
        loss = nnx.jit(nnx.value_and_grad(lambda network, x: jnp.square(network(x)).sum()))
        results.append(loss(network, images))
    (value, gradient), (value_anew, gradient_anew) = results
    np.testing.assert_allclose(value_anew, value, rtol=1e-5)
    assert value > 0.01
    for ours, theirs in zip(jax.tree.leaves(gradient_anew), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(jnp.abs(theirs).max()))


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(partial(create, depths=(1, 1), focal_level=1), float32(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network = in_training(create)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    network.eval()
    image = float32(*IMAGE)
    pooled = jax.jit(lambda network, x: network.forward_features(x).mean((0, 1)))(network, image)
    np.testing.assert_allclose(run(network, image), pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-6)
    assert network.head.kernel.shape == (8, 5)


def assert_computes_in_its_type(create, images):
    """In bfloat16 over parameters of float32, near what it is in float32."""
    wide, narrow = (networks.build(create, np.float32, dtype=dtype)[0] for dtype in (None, jnp.bfloat16))
    logits, expected = run(narrow, images), run(wide, images)
    assert logits.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(logits) - expected) < 0.05 * np.linalg.norm(expected)


@in_full
@pytest.mark.parametrize("block", [PreNormBlock, PostNormBlock])
def test_it_computes_in_its_type_over_float32_parameters(block):
    assert_computes_in_its_type(partial(create, block=block), float32(2, *IMAGE))


def random_network(kind, **arguments):
    """timm's class of that name, since the functions of its models' names do not let their sizes be changed."""
    models = timm_oracle.load("models")
    with mock.patch.object(models, "create_model", lambda name, **sizes: getattr(models, name)(**sizes)):
        return timm_networks.random_network(kind, num_classes=11, **arguments)


def assert_it_is_timms(model, network, images, theirs=None):
    """Features and logits, with the numbers of `theirs`, by default timm's network as it is."""
    timm_networks.copy_numbers(theirs or network, model)
    our_images, their_images = timm_networks.images(*images)
    features, logits = jax.jit(lambda model, x: (model.features(x), model(x)))(model, our_images)
    expected = network.forward_intermediates(their_images, intermediates_only=True)
    for feature, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(feature, timm_networks.channels_last(theirs), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(logits, network(their_images).detach().numpy(), rtol=2e-4, atol=2e-4)
    assert logits.std(0).mean() > 0.01


FORMS = {
    "pre-norm": ({}, {}),
    "three ranges from 5×5": (
        {"focal_level": 3, "focal_window": 5},
        {"focal_levels": (3, 3, 3), "focal_windows": (5, 5, 5)},
    ),
    "huge": (
        {"block": PostNormBlock, "overlap_down": True, "focal_level": 4, "modulation_norm": True},
        {
            "focal_levels": (4, 4, 4), "use_post_norm": True, "use_overlap_down": True, "layerscale_value": 1e-4,
            "use_post_norm_in_modulation": True,
        },
    ),
}  # fmt: skip


@in_full
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form, size):
    ours, theirs = FORMS[form]
    sizes = {"embed_dim": 24, "depths": (1, 2, 1)}
    network = random_network("FocalNet", **sizes, **({"focal_levels": (2, 2, 2), "focal_windows": (3, 3, 3)} | theirs))
    model = nnx.eval_shape(lambda: FocalNet(11, **sizes, **ours, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))


def test_its_own_attention_is_the_default_by_arguments_alone():
    ours = nnx.eval_shape(lambda: create(attention=partial(FocalModulation, focal_level=1), rngs=nnx.Rngs(0)))
    given = nnx.eval_shape(lambda: create(focal_level=1, rngs=nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, nnx.state(ours, nnx.Param)) == jax.tree.map(jnp.shape, nnx.state(given, nnx.Param))
