"""Split-attention networks against naive NumPy and timm's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.resnest import MODELS, ResNeSt, SplitBottleneck
from tests.mechanisms.branch import test_split_attention
from tests.models import networks, test_resnet
from tests.models.naive_layers import Scaled, batch_norm, convolve, relu, scaled, under
from tests.models.networks import assert_equal, first_quick, parameters_of

in_full = pytest.mark.full

COUNTS = {
    "resnest14d": 10_611_688,
    "resnest26d": 17_069_448,
    "resnest50d": 27_483_240,
    "resnest101e": 48_275_016,
    "resnest50d_1s4x24d": 25_677_000,
    "resnest50d_4s2x40d": 30_417_592,
}


@pytest.mark.parametrize("name", first_quick(COUNTS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


def pooled(x, stride):
    """The sums of 3×3 positions, zeros around them, by nine."""
    if stride == 1:
        return x
    h, w = x.shape[:2]
    sums = [
        [x[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].sum((0, 1)) for j in range(0, w, stride)]
        for i in range(0, h, stride)
    ]
    return np.array(sums) / 9


def branch(x, p, stride, *, splat, pool_first=False):
    x = relu(batch_norm(convolve(x, p["conv1.kernel"]), p, "bn1"))
    x = splat(pooled(x, stride), p) if pool_first else pooled(splat(x, p), stride)
    return batch_norm(convolve(x, p["conv3.kernel"]), p, "bn3")


def split(form):
    return lambda x, p: test_split_attention.oracle(x, under(p, "conv2"), form)


def plain(x, p):
    return relu(batch_norm(convolve(x, p["conv2.kernel"]), p, "bn2"))


create = partial(
    SplitBottleneck, 6, 8, average_shortcut=True
)  # of eight channels within, as the mechanism's oracle has
BLOCKS = {
    "2s1x64d, half": (
        partial(create, stride=2, radix=2, pool_first=False),
        {"branch": partial(branch, splat=split("paper")), "stride": 2},
    ),
    "2s2x32d": (
        partial(create, base_width=32, radix=2, groups=2, pool_first=True),
        {"branch": partial(branch, splat=split("two cardinal groups")), "stride": 1},
    ),
    "1s2x32d, half, pooled first": (
        partial(create, stride=2, base_width=32, radix=1, groups=2, pool_first=True),
        {"branch": partial(branch, splat=split("one split"), pool_first=True), "stride": 2},
    ),
    "0s1x64d, half": (
        partial(create, stride=2, radix=0, pool_first=False, attention=Scaled),
        {"branch": partial(branch, splat=plain), "stride": 2, "attend": scaled},
    ),
}


@pytest.mark.parametrize("kind", first_quick(BLOCKS))
def test_a_block_is_the_papers(kind):
    create, form = BLOCKS[kind]
    module, p = networks.build(create)
    x = networks.random(5, 4, 6)
    assert_equal(networks.run(module, x), test_resnet.block(x, p, **form))


small = partial(ResNeSt, 3, depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), in_channels=2, stem_widths=(2, 3, 4))


@in_full
@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({}, {"branch": partial(branch, splat=split("paper"))}),
        ({"attention": Scaled}, {"branch": partial(branch, splat=plain), "attend": scaled}),
        ({"attention": None}, {"branch": partial(branch, splat=plain)}),
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
@pytest.mark.parametrize("name", ["resnest14d", "resnest101e", "resnest50d_1s4x24d", "resnest50d_4s2x40d"])
def test_it_is_timms(name):
    test_resnet.assert_timms(MODELS, name)
