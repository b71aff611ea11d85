"""The parts of CoAtNet and MaxViT against naive NumPy."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.mbconv import ALIKE, MBConv, Stem, TransformerBlock
from tests.mechanisms.channel import test_se
from tests.models import networks
from tests.models.naive_layers import Scaled, batch_norm, gelu, linear, norm, scaled, under
from tests.models.networks import assert_equal, assert_leaves_out_whole_examples, first_quick, float32
from tests.oracles import sigmoid

in_full = pytest.mark.full


def tanh_gelu(u):
    return 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))


def silu(u):
    return u * sigmoid(u)


def windows(x, stride, padding):
    """Of 3×3, at steps, from one position before the map; "SAME" starts on the map where steps of 2 divide its size."""
    h, w = x.shape[:2]
    top, left = (0 if padding == "SAME" and stride == 2 and n % 2 == 0 else 1 for n in (h, w))
    padded = np.pad(x, ((top, 2), (left, 2), (0, 0)))
    return np.array([[padded[i : i + 3, j : j + 3] for j in range(0, w, stride)] for i in range(0, h, stride)])


def halved(x):
    h, w = x.shape[:2]
    return np.array([[x[i : i + 2, j : j + 2].mean((0, 1)) for j in range(0, w, 2)] for i in range(0, h, 2)])


def stem(x, p, *, act, epsilon, padding):
    def conv(x, name, stride):
        return np.einsum("hwijc,ijcd->hwd", windows(x, stride, padding), p[f"{name}.kernel"]) + p.get(f"{name}.bias", 0)

    return conv(act(batch_norm(conv(x, "conv1", 2), p, "norm1", epsilon)), "conv2", 1)


def shortcut(x, p, halve):
    x = halved(x) if halve else x
    return linear(x, p, "shortcut.proj") if "shortcut.proj.kernel" in p else x


def mbconv(x, p, *, halve=False, act, epsilon, padding):
    y = batch_norm(x, p, "pre_norm", epsilon) @ p["conv1_1x1.kernel"]
    y = windows(act(batch_norm(y, p, "norm1", epsilon)), 2 if halve else 1, padding)
    y = np.einsum("hwijc,ijc->hwc", y, p["conv2_kxk.kernel"])
    y = test_se.oracle(act(batch_norm(y, p, "norm2", epsilon)), under(p, "se"), act=silu)
    return shortcut(x, p, halve) + linear(y, p, "conv3_1x1")


def transformer(x, p, *, halve=False, attend, act, epsilon):
    z = shortcut(x, p, halve)
    if attend is not None:
        y = norm(x, p, "norm1", epsilon)
        z = z + attend(halved(y) if halve else y, under(p, "attn"))
    return z + linear(act(linear(norm(z, p, "norm2", epsilon), p, "mlp.reduce")), p, "mlp.expand")


def features(image, p, *, of_stem, stages):
    """`stages` has for each stage how many blocks it has, and their form."""
    maps = [of_stem(image, under(p, "stem"))]
    for i, (depth, block) in enumerate(stages):
        x = maps[-1]
        for j in range(depth):
            x = block(x, under(p, f"stages.{i}.blocks.{j}"), halve=j == 0)
        maps.append(x)
    return maps


def logits(x, p, epsilon):
    return linear(np.tanh(linear(norm(x.mean((0, 1)), p, "norm", epsilon), p, "pre_logits")), p, "head")


def assert_it_is_naive(network, p, image, *, epsilon, **parts):
    """Features and logits of a network with these numbers, of the stem and the stages of `features`."""
    expected = features(image, p, **parts)
    ours = networks.run(network, image, method="features")
    assert network.feature_channels == tuple(feature.shape[-1] for feature in ours)
    for feature, theirs in zip(ours, expected, strict=True):
        assert_equal(feature, theirs)
    assert_equal(networks.run(network, image), logits(expected[-1], p, epsilon))


FORMS = {
    "PyTorch's": (
        {"activation": partial(jax.nn.gelu, approximate=False), "epsilon": 1e-5, "padding": ALIKE},
        {"act": gelu, "epsilon": 1e-5, "padding": "alike"},
    ),
    "TensorFlow's": (
        {"activation": partial(jax.nn.gelu, approximate=True), "epsilon": 1e-3, "padding": "SAME"},
        {"act": tanh_gelu, "epsilon": 1e-3, "padding": "SAME"},
    ),
}


@pytest.mark.parametrize("form", first_quick(FORMS))
def test_a_stem_is_two_convolutions(form):
    ours, theirs = FORMS[form]
    module, p = networks.build(partial(Stem, 2, 3, use_bias=True, **ours))
    x = networks.random(7, 4, 2)
    assert_equal(networks.run(module, x), stem(x, p, **theirs))


@pytest.mark.parametrize("halve", [True, pytest.param(False, marks=in_full)])
@pytest.mark.parametrize("form", first_quick(FORMS))
def test_a_mobile_convolution_is_the_authors(form, halve):
    ours, theirs = FORMS[form]
    module, p = networks.build(partial(MBConv, 4, 6 if halve else 4, halve=halve, **ours))
    x = networks.random(5, 6, 4)
    assert_equal(networks.run(module, x), mbconv(x, p, halve=halve, **theirs))


@in_full
@pytest.mark.parametrize("halve", [False, True])
def test_where_channels_stay_so_does_what_the_shortcut_gives(halve):
    block = partial(TransformerBlock, 4, 4, halve=halve, attention=Scaled, activation=jax.nn.relu, epsilon=1e-5)
    module, p = networks.build(block)
    x = networks.random(5, 6, 4)
    expected = transformer(
        x, p, halve=halve, attend=lambda y, _: scaled(y), act=lambda u: np.maximum(u, 0), epsilon=1e-5
    )
    assert not any(name.startswith("shortcut") for name in p)
    assert_equal(networks.run(module, x), expected)


@in_full
def test_in_training_the_branch_of_an_example_is_left_out_or_enlarged():
    block = MBConv(4, 4, drop_path_rate=0.6, **FORMS["PyTorch's"][0], rngs=nnx.Rngs(0))
    x = float32(20, 3, 2, 4)
    y = nnx.jit(lambda block, x: block(x))(block, x)
    branch = block.branch(x)
    left_out, enlarged = (np.isclose(y, x + times * branch, rtol=1e-4, atol=1e-4) for times in (0, 1 / 0.4))
    examples = [outcome.all((1, 2, 3)).sum() for outcome in (left_out, enlarged)]
    assert sum(examples) == 20
    assert min(examples) > 0


@in_full
def test_in_training_each_branch_of_a_transformer_is_left_out_or_enlarged():
    block = TransformerBlock(
        6, 6, attention=Scaled, activation=jax.nn.gelu, epsilon=1e-5, drop_path_rate=0.6, rngs=nnx.Rngs(0)
    )

    def branches(block, x, first, second):
        z = x + first * block.attn(block.norm1(x))
        return z + second * block.mlp(block.norm2(z))

    assert_leaves_out_whole_examples(block, float32(40, 3, 2, 6), branches)
