"""Residual networks with attention within their bottlenecks against naive NumPy, and timm's own."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.interop import load_timm, timm_attention
from attn_flax.mechanisms.self_attention.halo import HaloAttention
from attn_flax.models.attention_resnet import (
    MODELS,
    AttentionBottleneck,
    AttentionResNet,
    bottleneck,
    halo,
)
from attn_flax.nn import GlobalContext, LambdaLayer
from tests import timm_oracle
from tests.mechanisms.self_attention import test_bottleneck, test_halo, test_lambda_layer
from tests.mechanisms.spatial import test_gcnet
from tests.models import networks, timm_networks
from tests.models.naive_layers import Scaled, batch_norm, convolve, linear, relu, scaled, under
from tests.models.networks import (
    assert_computes_in_its_type,
    assert_equal,
    assert_the_same_computed_anew,
    first_quick,
    float32,
    forward,
    in_training,
    parameters_of,
)
from tests.models.test_resnet import averaged, maximum

in_full = pytest.mark.full

COUNTS = {
    "resnext26ts": 10_297_952,
    "gcresnext26ts": 10_476_600,
    "seresnext26ts": 10_388_064,
    "eca_resnext26ts": 10_297_988,
    "bat_resnext26ts": 10_731_200,
    "resnet32ts": 17_963_616,
    "resnet33ts": 19_676_256,
    "gcresnet33ts": 19_880_698,
    "seresnet33ts": 19_779_200,
    "eca_resnet33ts": 19_676_302,
    "gcresnet50t": 25_897_080,
    "gcresnext50ts": 15_667_320,
    "botnet26t_256": 12_488_672,
    "sebotnet33ts_256": 13_701_984,
    "botnet50ts_256": 22_742_688,
    "eca_botnext26ts_256": 10_593_301,
    "halonet_h1": 8_100_056,
    "halonet26t": 12_480_288,
    "sehalonet33ts": 13_691_712,
    "halonet50ts": 22_733_280,
    "eca_halonext26ts": 10_756_885,
    "lambda_resnet26t": 10_958_272,
    "lambda_resnet50ts": 21_536_832,
    "lambda_resnet26rpt_256": 10_988_688,
    "lamhalobotnet50ts_256": 22_569_824,
    "halo2botnet50ts_256": 22_635_360,
}


@pytest.mark.parametrize("name", first_quick(MODELS))
def test_it_has_as_many_parameters_as_timms(name):
    assert parameters_of(MODELS, name) == COUNTS[name]


create = partial(
    AttentionResNet,
    3,
    depths=(1, 1, 1, 1),
    channels=(6, 6, 8, 8),
    widths=(4, 4, 8, 4),
    group_size=2,
    stem_widths=(2, 3, 6),
    in_channels=2,
    image_size=(21, 30),
)
IMAGE = (21, 30, 2)  # of 6×8 positions in the first stage, then 3×4, 2×2 and one
IN_PLACE = ((0,), (), (0,), (0,))


def silu(x):
    return x / (1 + np.exp(-x))


def conv_norm(x, p, name, stride=1, groups=1):
    return batch_norm(convolve(x, p[f"{name}.conv.kernel"], stride, groups), p, f"{name}.bn")


def block(x, p, stride, *, f, behind, replace):
    u = f(conv_norm(x, p, "conv1_1x1"))
    if "conv2_kxk.conv.kernel" in p:
        groups = u.shape[-1] // p["conv2_kxk.conv.kernel"].shape[2]
        m = behind(f(conv_norm(u, p, "conv2_kxk", stride, groups)), p)
    else:
        m = f(batch_norm(replace(u, under(p, "self_attn"), stride), p, "post_attn"))
    shortcut = conv_norm(x, p, "shortcut", stride) if "shortcut.conv.kernel" in p else x
    return f(shortcut + conv_norm(m, p, "conv3_1x1"))


def naive_features(image, p, *, f=relu, pool=True, **kinds):
    x = f(conv_norm(image, p, "stem.0", 2))
    x = f(conv_norm(x, p, "stem.1"))
    last = f(conv_norm(x, p, "stem.2", 1 if pool else 2))
    maps, x = ([last], maximum(last)) if pool else ([x], last)
    for i in range(4):
        x = block(x, under(p, f"stages.{i}.0"), 2 if i else 1, f=f, **kinds)
        maps.append(x)
    return maps


def nothing(m, p):
    return m


def context(m, p):
    return test_gcnet.oracle(m, under(p, "behind.0"), epsilon=1e-6)


def haloed(u, p, stride):
    return test_halo.oracle(u, p, block=2, stride=stride, **test_halo.TIMMS, compact_offsets=True)


def over_one_size(u, p, stride):
    return averaged(test_bottleneck.oracle(u, p, scale_positions=False), stride)


def by_lambdas(u, p, stride):
    return averaged(test_lambda_layer.oracle(u, p), stride)


def another(u, p, stride):
    return averaged(scaled(u), stride)


own_lambda = partial(LambdaLayer, num_heads=2, key_features=4)
NETWORKS = {
    "halo attention, and global context behind the convolution": (
        {
            "attention": partial(halo, num_heads=2, block_size=2, halo_size=1),
            "replaces": IN_PLACE,
            "gate": partial(timm_attention, "gca"),
        },
        {"replace": haloed, "behind": context},
    ),
    "attention over maps of one size, no maximum, a last convolution": (
        {
            "attention": partial(bottleneck, num_heads=2),
            "replaces": IN_PLACE,
            "stem_pool": False,
            "last_width": 5,
            "activation": jax.nn.silu,
        },
        {"replace": over_one_size, "behind": nothing, "pool": False, "f": silu},
    ),
    "lambdas by a table": (
        {"attention": partial(own_lambda, kernel_size=None), "replaces": IN_PLACE},
        {"replace": by_lambdas, "behind": nothing},
    ),
    "lambdas in one stage, another attention in the next": (
        {"attention": (None, own_lambda, Scaled, None), "replaces": ((0,), (0,), (0,), (0,))},
        {
            "replace": lambda u, p, stride: (by_lambdas if "qkv.kernel" in p else another)(u, p, stride),
            "behind": nothing,
        },
    ),
    "another behind every convolution": ({"attention": Scaled}, {"replace": None, "behind": scaled}),
    "none": ({"attention": None, "replaces": IN_PLACE}, {"replace": None, "behind": nothing}),
}


@pytest.mark.parametrize("form", first_quick(NETWORKS))
def test_features_and_logits_are_those_of_naive_layers(form):
    arguments, kinds = NETWORKS[form]
    network, p = networks.build(create, **arguments)
    image = networks.random(*IMAGE)
    features, logits = networks.run(network, image, method="features"), networks.run(network, image)
    expected = naive_features(image, p, **kinds)
    assert network.feature_channels == tuple(feature.shape[-1] for feature in features)
    for ours, theirs in zip(features, expected, strict=True):
        assert_equal(ours, theirs)
    x = expected[-1]
    x = kinds["f"](conv_norm(x, p, "final_conv")) if "last_width" in arguments else x
    assert_equal(logits, linear(x.mean((0, 1)), p, "head"))


@in_full
def test_at_first_a_block_is_its_shortcut():
    x = float32(2, 5, 3, 8)
    block = partial(AttentionBottleneck, 8, 8, width=4, size=(5, 3), replacement=partial(LambdaLayer, num_heads=2))
    np.testing.assert_array_equal(jax.jit(lambda x: block(rngs=nnx.Rngs(0))(x))(x), relu(x))


@in_full
def test_in_training_the_branch_of_an_example_is_left_out_or_enlarged():
    block = in_training(partial(AttentionBottleneck, 6, 6, width=4, size=(3, 2)), drop_path_rate=0.6)
    x = float32(40, 3, 2, 6)
    y, branch = nnx.jit(lambda block, x: (block(x), block.conv3_1x1(block.middle(block.conv1_1x1(x)))))(block, x)
    left_out, enlarged = (
        np.isclose(y, relu(x + factor * branch), rtol=1e-4, atol=1e-5).all((1, 2, 3)) for factor in (0, 1 / 0.4)
    )
    np.testing.assert_array_equal(left_out, ~enlarged)
    assert 0 < left_out.sum() < 40


def test_more_is_left_out_from_block_to_block():
    network = nnx.eval_shape(lambda: create(depths=(1, 2, 1, 1), drop_path_rate=0.4, rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.stages for block in stage]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


OWN = NETWORKS["halo attention, and global context behind the convolution"][0]


@in_full
def test_computed_anew_in_the_backward_pass_all_is_the_same():
    forms = {"attention": own_lambda, "replaces": ((), (), (), (0,)), "group_size": None}
    assert_the_same_computed_anew(partial(create, **forms), float32(3, *IMAGE))


@in_full
def test_it_computes_in_its_type_over_float32_parameters():
    assert_computes_in_its_type(partial(create, **OWN), float32(2, *IMAGE))


def test_its_own_mechanisms_compute_in_its_type():
    network = nnx.eval_shape(lambda: create(**OWN, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    mechanisms = [m for _, m in nnx.iter_modules(network) if isinstance(m, (HaloAttention, GlobalContext))]
    layers = [layer for m in mechanisms for _, layer in nnx.iter_modules(m) if isinstance(layer, nnx.Linear)]
    assert len(mechanisms) == 4
    assert {layer.dtype for layer in layers} == {jnp.bfloat16}


@in_full
def test_a_new_head_is_for_other_classes_of_the_same_features():
    network, _ = networks.build(create, np.float32, last_width=5)
    images = float32(2, *IMAGE)
    pooled = jax.jit(lambda network, x: network.pool(network.forward_features(x)))(network, images)
    network.reset_classifier(7, rngs=nnx.Rngs(0))
    assert network.head.kernel.shape == (5, 7)
    np.testing.assert_allclose(forward(network, images), pooled @ network.head.kernel[...], rtol=1e-5, atol=1e-6)


IN_50 = ((), (1,), (1,), (0,))
IN_33 = ((), (1,), (1,), (0, 1))
TIMMS = {
    "gcresnext26ts": ((65, 97), None),
    "eca_resnext26ts": ((65, 97), None),
    "bat_resnext26ts": ((256, 256), None),
    "seresnet33ts": ((65, 97), None),
    "gcresnet50t": ((65, 97), None),
    "sebotnet33ts_256": ((96, 128), IN_33),
    "eca_botnext26ts_256": ((96, 64), ((), (), (1,), (0, 1))),
    "halonet_h1": ((256, 256), ((0, 1),) * 4),
    "halonet50ts": ((128, 256), IN_50),
    "lambda_resnet26rpt_256": ((96, 64), ((), (), (1,), (0, 1))),
    "lamhalobotnet50ts_256": ((128, 256), IN_50),
}
"""The sizes of images, which timm's halo attention and BAT must be able to cut into blocks; and which of the last two
blocks of each stage, all that are left here, have attention in the place of their convolution."""
SIZES = {"channels": (256, 512, 1024, 2048), "widths": (64, 128, 256, 512), "stem_widths": (24, 32, 64)}


def last_two(stage):
    return stage[-2:] if isinstance(stage, tuple) else dataclasses.replace(stage, d=2)


def random_network(name, size):
    """timm's, half as wide, in float64: attention over random queries lets float32's rounding grow."""
    models = timm_oracle.load("models")
    kinds = models.byoanet.model_cfgs | models.byobnet.model_cfgs
    kind = kinds[name if name in kinds else name.removesuffix("_256")]
    short = {"blocks": [last_two(stage) for stage in kind.blocks], "width_factor": 0.5, "img_size": size}
    return timm_networks.random_network(name, num_classes=11, **short).double()


def made_like_it(name, size, replaces):
    network, own = MODELS[name]
    halved = {key: tuple(n // 2 for n in own.get(key, sizes)) for key, sizes in SIZES.items()}
    if "last_width" in own:
        halved["last_width"] = own["last_width"] // 2
    arguments = {**own, **halved, "depths": (2, 2, 2, 2), "replaces": replaces, "image_size": size}
    return nnx.eval_shape(lambda: network(11, **arguments, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))


@in_full
@pytest.mark.parametrize("name", TIMMS)
@jax.enable_x64()
def test_it_is_timms(name):
    size, replaces = TIMMS[name]
    network, model = random_network(name, size), made_like_it(name, size, replaces)
    load_timm(model, network.state_dict())
    model.eval()
    our_images, their_images = timm_networks.images(2, *size, 3)
    their_images = their_images.double()
    features, logits = jax.jit(lambda model, x: (model.features(x), model(x)))(model, our_images.astype(jnp.float64))
    expected = network.forward_intermediates(their_images, intermediates_only=True, exclude_final_conv=True)
    for feature, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(feature, timm_networks.channels_last(theirs), rtol=1e-7, atol=1e-9)
        assert feature.std() > 0.01
    np.testing.assert_allclose(logits, network(their_images).detach().numpy(), rtol=1e-7, atol=1e-9)
    assert logits.std(0).mean() > 1e-3
