"""MaxViT against naive NumPy, and timm's own."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.maxvit import MODELS, MaxVit
from tests.mechanisms.self_attention import test_coatnet_rel
from tests.models import networks
from tests.models.naive_layers import Scaled, scaled, under
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    forward,
    parameters_of,
)
from tests.models.test_coatnet import interleaved
from tests.models.test_mbconv import assert_it_is_naive, logits, mbconv, stem, tanh_gelu, transformer
from tests.models.timm_networks import assert_it_is_timms, random_network

in_full = pytest.mark.full

COUNTS = {
    "maxvit_tiny_tf_224": 30_916_528,
    "maxvit_small_tf_224": 68_927_956,
    "maxvit_base_tf_224": 119_467_708,
}


@pytest.mark.parametrize("name", first_quick(COUNTS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


M = 3
create = partial(
    MaxVit, 3, embed_dims=(4, 6), depths=(1, 2), stem_channels=3, head_dim=2, image_size=(24, 48), in_channels=2
)
one_block = partial(create, embed_dims=(4,), depths=(1,), image_size=(12, 24))
IMAGE = (23, 48, 2)  # maps of 12×24, 6×12 and 3×6
FROM_ODD_MAPS = (21, 22, 2)  # of 11×11, 6×6 and 3×3


def in_groups(x, p, *, spread):
    """Attention in each group of M×M positions, which are neighbours or, in a grid, as far apart as there is room."""
    h, w = x.shape[:2]
    y = np.zeros(x.shape)
    for i in range(h // M):
        for j in range(w // M):
            rows = i + np.arange(M) * (h // M) if spread else M * i + np.arange(M)
            columns = j + np.arange(M) * (w // M) if spread else M * j + np.arange(M)
            of_group = np.ix_(rows, columns)
            y[of_group] = test_coatnet_rel.oracle(x[of_group], p, split=interleaved)
    return y


def block(x, p, *, halve, attends, convolution):
    x = mbconv(x, under(p, "conv"), halve=halve, **convolution)
    for name, attend in zip(("attn_block", "attn_grid"), attends, strict=True):
        x = transformer(x, under(p, name), attend=attend, act=tanh_gelu, epsilon=1e-5)
    return x


its_own = (partial(in_groups, spread=False), partial(in_groups, spread=True))
FORMS = {
    "its own": ({}, IMAGE, its_own),
    "from odd maps": ({}, FROM_ODD_MAPS, its_own),
    "another": ({"attention": Scaled}, (19, 14, 2), (scaled, scaled)),
    "none": ({"attention": None}, (19, 14, 2), (None, None)),
}


@pytest.mark.parametrize("form", first_quick(FORMS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, size, attends = FORMS[form]
    network, p = networks.build(create, **arguments)
    convolution = {"act": tanh_gelu, "epsilon": 1e-3, "padding": "SAME"}
    form = partial(block, attends=attends, convolution=convolution)
    image, stages = networks.random(*size), [(1, form), (2, form)]
    assert_it_is_naive(network, p, image, epsilon=1e-5, of_stem=partial(stem, **convolution), stages=stages)


@pytest.mark.parametrize(("name", "window"), [("maxvit_tiny_tf_224", 7), ("maxvit_tiny_tf_384", 12)])
def test_a_window_is_as_large_as_the_last_map(name, window):
    network, own = MODELS[name]
    model = nnx.eval_shape(lambda: network(3, **(own | {"depths": (1, 1, 1, 1)}), rngs=nnx.Rngs(0)))
    assert {block.attn_grid.attn.window for stage in model.stages for block in stage.blocks} == {window}


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(drop_path_rate=0.4, rngs=nnx.Rngs(0)))
    blocks = [block for stage in network.stages for block in stage.blocks]
    rates = [[part.drop_path.rate for part in (block.conv, block.attn_block, block.attn_grid)] for block in blocks]
    np.testing.assert_allclose(rates, [[rate] * 3 for rate in (0, 0.2, 0.4)])


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    assert_the_same_computed_anew(one_block, networks.random(3, *IMAGE))


@in_full
def test_a_new_head_is_for_other_classes():
    network, p = networks.build(one_block, np.float32)
    network.reset_classifier(5, rngs=nnx.Rngs(1))
    image = float32(*IMAGE)
    last = jax.jit(lambda network, x: network.forward_features(x))(network, image)
    p = p | {"head.kernel": np.asarray(network.head.kernel), "head.bias": np.zeros(5)}
    np.testing.assert_allclose(forward(network, image), logits(np.asarray(last), p, 1e-5), rtol=1e-4, atol=1e-5)
    assert network.head.kernel.shape == (4, 5)


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(one_block, float32(2, *IMAGE))


@in_full
def test_it_is_timms():
    size = (64, 128)
    sizes = {"embed_dim": (32, 64, 32, 64), "depths": (1, 1, 2, 1), "stem_width": 8, "head_hidden_size": 64}
    window = {"transformer_window_size": 2, "transformer_grid_size": 2}
    network = random_network("maxvit_tiny_tf_224", num_classes=11, img_size=size, **sizes, **window)
    ours = {"embed_dims": sizes["embed_dim"], "depths": sizes["depths"], "stem_channels": 8, "image_size": size}
    model = nnx.eval_shape(lambda: MaxVit(11, **ours, rngs=nnx.Rngs(0)))
    assert_it_is_timms(model, network, (2, *size, 3))
