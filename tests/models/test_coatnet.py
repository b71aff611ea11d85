"""CoAtNet against naive NumPy, and timm's own."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.models.coatnet import MODELS, CoAtNet
from tests.mechanisms.self_attention import test_coatnet_rel
from tests.models import networks
from tests.models.naive_layers import Scaled, gelu, linear, scaled
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    parameters_of,
)
from tests.models.test_mbconv import assert_it_is_naive, mbconv, stem, transformer
from tests.models.timm_networks import assert_it_is_timms, random_network

in_full = pytest.mark.full

COUNTS = {
    "coatnet_0_224": 25_036_820,
    "coatnet_1_224": 42_225_776,
    "coatnet_2_224": 74_684_744,
    "coatnet_3_224": 166_966_264,
    "coatnet_4_224": 275_425_288,
    "coatnet_5_224": 687_472_008,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(
    CoAtNet,
    3,
    embed_dims=(4, 6, 8, 10),
    depths=(1, 1, 2, 1),
    stem_channels=3,
    head_dim=2,
    image_size=(35, 72),
    in_channels=2,
)
once_each = partial(create, depths=(1, 1, 1, 1))
IMAGE = (35, 72, 2)  # maps of 18×36, 9×18, 5×9, 3×5 and 2×3
ANOTHER = (48, 40, 2)  # of which the last two are 3×3 and 2×2


def interleaved(x, p):
    """q, k and v of each head of two features."""
    features = linear(x.reshape(-1, x.shape[-1]), p, "qkv")
    by_head = features.reshape(len(features), -1, 3, 2)
    return [[by_head[:, j, part] for j in range(by_head.shape[1])] for part in range(3)]


def interpolated(table, h, w, *, sizes):
    """The numbers of a table for a map of one of these sizes, interpolated for another."""
    ((r, c),) = [(r, c) for r, c in sizes if (2 * r - 1) * (2 * c - 1) == len(table)]
    rows = table.reshape(2 * r - 1, 2 * c - 1)
    for axis, size in enumerate((2 * h - 1, 2 * w - 1)):
        at = (np.arange(size) + 0.5) * rows.shape[axis] / size - 0.5
        places = np.arange(rows.shape[axis])
        rows = np.apply_along_axis(lambda line, at, places: np.interp(at, places, line), axis, rows, at, places)
    return test_coatnet_rel.position_bias(rows, h, w)


its_own = partial(test_coatnet_rel.oracle, split=interleaved)
between = partial(its_own, bias=partial(interpolated, sizes=[(3, 5), (2, 3)]))


def another(x, p):
    return scaled(linear(x, p, "widen") if "widen.kernel" in p else x)


FORMS = {
    "its own": ({}, IMAGE, its_own),
    "for another size": ({}, ANOTHER, between),
    "another": ({"attention": Scaled}, IMAGE, another),
    "none": ({"attention": None}, IMAGE, None),
}


@pytest.mark.parametrize("form", first_quick(FORMS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, size, attend = FORMS[form]
    network, p = networks.build(create, **arguments)
    convolution = {"act": gelu, "epsilon": 1e-5, "padding": "alike"}
    conv, attention = partial(mbconv, **convolution), partial(transformer, attend=attend, act=gelu, epsilon=1e-6)
    stages = [(1, conv), (1, conv), (2, attention), (1, attention)]
    image = networks.random(*size)
    assert_it_is_naive(network, p, image, epsilon=1e-6, of_stem=partial(stem, **convolution), stages=stages)


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.4, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(once_each, networks.random(3, *IMAGE))


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(once_each, float32(2, *IMAGE))


@in_full
def test_it_is_timms():
    size = (96, 64)
    sizes = {"embed_dim": (32, 32, 64, 96), "depths": (1, 2, 2, 1), "stem_width": 8, "head_hidden_size": 96}
    network = random_network("coatnet_0_224", num_classes=11, img_size=size, **sizes)
    ours = {"embed_dims": sizes["embed_dim"], "depths": sizes["depths"], "stem_channels": 8, "image_size": size}
    model = nnx.eval_shape(lambda: CoAtNet(11, **ours, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
