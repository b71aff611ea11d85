"""Selective kernel networks against naive NumPy and timm's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.sknet import MODELS, SelectiveBasicBlock, SelectiveBottleneck, SKNet
from tests.mechanisms.branch.test_sk import weights_of
from tests.models import networks, test_resnet
from tests.models.naive_layers import Scaled, batch_norm, convolve, relu, scaled, under
from tests.models.networks import assert_equal, first_quick, parameters_of
from tests.models.test_resnet import basic, bottleneck

in_full = pytest.mark.full

COUNTS = {
    "skresnet18": 11_958_056,
    "skresnet34": 22_282_376,
    "skresnet50": 25_803_160,
    "skresnet50d": 25_822_392,
    "skresnext50_32x4d": 27_479_784,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


def dilated(kernel):
    """The window of 3×3 as one of 5×5."""
    wide = np.zeros((5, 5, *kernel.shape[2:]))
    wide[::2, ::2] = kernel
    return wide


def selected(x, p, stride, *, groups=1, parts=2):
    near, far = np.split(x, 2, -1) if parts == 2 else (x, x)
    us = [
        convolve(near, p["convs.0.kernel"], stride, groups),
        convolve(far, dilated(p["convs.1.kernel"]), stride, groups),
    ]
    us = [relu(batch_norm(u, p, f"norms.{m}")) for m, u in enumerate(us)]
    return sum(a * u for a, u in zip(weights_of(us, p), us, strict=True))


def selective_basic(x, p, stride):
    return batch_norm(convolve(selected(x, under(p, "conv1"), stride), p["conv2.kernel"]), p, "bn2")


def selective_bottleneck(x, p, stride, **kinds):
    x = relu(batch_norm(convolve(x, p["conv1.kernel"]), p, "bn1"))
    return batch_norm(convolve(selected(x, under(p, "conv2"), stride, **kinds), p["conv3.kernel"]), p, "bn3")


FORM = {"reduction": 2, "minimum": 1}
BLOCKS = {
    "basic, half": (
        partial(SelectiveBasicBlock, 4, 6, stride=2, split_input=True, **FORM),
        {"branch": selective_basic, "stride": 2},
    ),
    "bottleneck, split": (
        partial(SelectiveBottleneck, 8, 2, split_input=True, **FORM),
        {"branch": selective_bottleneck, "stride": 1},
    ),
    "bottleneck in groups, half": (
        partial(SelectiveBottleneck, 4, 4, stride=2, groups=2, base_width=32, **FORM),
        {"branch": partial(selective_bottleneck, groups=2, parts=1), "stride": 2},
    ),
    "basic, not selective": (
        partial(SelectiveBasicBlock, 4, 6, stride=2, selective=False),
        {"branch": basic, "stride": 2},
    ),
    "bottleneck, not selective": (
        partial(SelectiveBottleneck, 6, 4, stride=2, groups=2, base_width=32, selective=False),
        {"branch": partial(bottleneck, groups=2), "stride": 2},
    ),
}


@pytest.mark.parametrize("kind", first_quick(BLOCKS))
def test_a_block_is_the_papers(kind):
    create, form = BLOCKS[kind]
    module, p = networks.build(create)
    x = networks.random(5, 4, create.args[0])
    assert_equal(networks.run(module, x), test_resnet.block(x, p, **form))


small = partial(
    SKNet,
    3,
    block=partial(SelectiveBasicBlock, split_input=True, **FORM),
    depths=(1, 1, 1, 1),
    widths=(4, 4, 6, 4),
    in_channels=2,
    stem_widths=(4,),
)


@in_full
@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({}, {"branch": selective_basic}),
        ({"attention": Scaled}, {"branch": basic, "attend": scaled}),
        ({"attention": None}, {"branch": basic}),
    ],
)
def test_features_and_logits_are_those_of_naive_layers(given, kinds):
    network, p = networks.build(partial(small, **given))
    test_resnet.assert_naive(network, p, networks.random(11, 14, 2), **kinds)


def test_what_is_left_out_is_the_networks_argument():
    network = nnx.eval_shape(lambda: small(drop_path_rate=0.3, rngs=nnx.Rngs(0)))
    rates = [layer[0].drop_path.rate for layer in (network.layer2, network.layer3, network.layer4)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3])


def test_it_computes_in_its_type_over_float32_parameters():
    model = nnx.eval_shape(lambda: small(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    logits = jax.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 33, 47, 2), jnp.bfloat16))
    assert logits.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}


@in_full
@pytest.mark.parametrize("name", MODELS)
def test_it_is_timms(name):
    test_resnet.assert_timms(MODELS, name)
