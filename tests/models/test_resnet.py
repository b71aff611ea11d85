"""Residual networks against naive NumPy: blocks, stems, features, and where the attention stands."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import interop, nn
from attn_flax.catalog import create_attention
from attn_flax.models import create_model
from attn_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.models import networks
from tests.models.networks import parameters

in_full = pytest.mark.full

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


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 25_557_032),
        pytest.param("resnet18", 11_689_512, marks=in_full),
        pytest.param("resnet34", 21_797_672, marks=in_full),
        pytest.param("resnet101", 44_549_160, marks=in_full),
    ],
)
def test_it_has_as_many_parameters_as_timms(name, count):
    assert parameters(name) == count


@in_full
@pytest.mark.parametrize("attention", OF_TIMM)
def test_with_timms_attention_in_every_block_it_has_as_many_as_timms(attention):
    assert parameters("resnet50", attention=partial(interop.timm_attention, attention)) == OF_TIMM[attention]


@in_full
def test_with_attention_in_every_block_it_has_as_many_as_the_papers():
    assert parameters("resnet101", attention=partial(interop.timm_attention, "se")) == 49_326_872
    assert parameters("resnet50", attention="cbam") == 28_089_624
    assert parameters("resnet50", attention=partial(create_attention, "gcnet", reduction=16)) == 28_105_032


def conv(x, kernel, stride=1):
    """The convolution of x (h, w, c), with as many zeros on all sides as half of the kernel."""
    size, pad = len(kernel), len(kernel) // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    h, w = ((length + 2 * pad - size) // stride + 1 for length in x.shape[:2])
    windows = [[padded[i * stride :, j * stride :][:size, :size] for j in range(w)] for i in range(h)]
    return np.array([[np.einsum("ijc,ijcd->d", window, kernel) for window in row] for row in windows])


def norm(x, p, name):
    return (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def basic(x, p, stride):
    x = relu(norm(conv(x, p["conv1.kernel"], stride), p, "bn1"))
    return norm(conv(x, p["conv2.kernel"]), p, "bn2")


def bottleneck(x, p, stride):
    x = relu(norm(conv(x, p["conv1.kernel"]), p, "bn1"))
    x = relu(norm(conv(x, p["conv2.kernel"], stride), p, "bn2"))
    return norm(conv(x, p["conv3.kernel"]), p, "bn3")


def block(x, p, *, branch, stride, attend=lambda y: y):
    shortcut = norm(conv(x, p["downsample.0.kernel"], stride), p, "downsample.1") if "downsample.0.kernel" in p else x
    return relu(shortcut + attend(branch(x, p, stride)))


class Scaled(nnx.Module):
    """An attention to tell the place of."""

    def __init__(self, channels, *, rngs):
        self.channels = channels

    def __call__(self, x):
        return scaled(x)


def scaled(y):
    return y * np.arange(1.0, y.shape[-1] + 1)


BLOCKS = {
    "basic": (partial(BasicBlock, 4, 4), {"branch": basic, "stride": 1}),
    "basic, half": (partial(BasicBlock, 4, 6, stride=2), {"branch": basic, "stride": 2}),
    "bottleneck": (partial(Bottleneck, 8, 2), {"branch": bottleneck, "stride": 1}),
    "bottleneck, wider": (partial(Bottleneck, 4, 2), {"branch": bottleneck, "stride": 1}),
    "bottleneck, half": (
        partial(Bottleneck, 4, 2, stride=2, attention=Scaled),
        {"branch": bottleneck, "stride": 2, "attend": scaled},
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "bottleneck, half" else in_full) for kind in BLOCKS]
)
def test_a_block_is_the_papers(kind):
    create, form = BLOCKS[kind]
    module, p = networks.build(create)
    x = networks.random(5, 4, create.args[0])
    np.testing.assert_allclose(networks.run(module, x), block(x, p, **form), rtol=1e-9, atol=1e-11)


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


@pytest.mark.parametrize(("stem", "attend"), [("imagenet", None), pytest.param("cifar", scaled, marks=in_full)])
def test_stem_features_and_logits_are_those_of_naive_layers(stem, attend):
    create = partial(ResNet, 3, block=BasicBlock, depths=(1, 1, 1, 1), in_channels=2, stem=stem)
    network, p = networks.build(create, attention=Scaled if attend else None)
    image = networks.random(11, 14, 2)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    is_large = stem == "imagenet"
    x = relu(norm(conv(image, p["conv1.kernel"], 2 if is_large else 1), p, "bn1"))
    expected = [x]
    x = maximum(x) if is_large else x
    for i in (1, 2, 3, 4):
        of_block = {name.removeprefix(f"layer{i}.0."): value for name, value in p.items() if f"layer{i}.0." in name}
        x = block(x, of_block, branch=basic, stride=2 if i > 1 else 1, attend=attend or (lambda y: y))
        expected.append(x)
    for ours, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(logits, x.mean((0, 1)) @ p["fc.kernel"] + p["fc.bias"], rtol=1e-9, atol=1e-11)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)


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
