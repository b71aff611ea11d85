"""What networks cost: against counts by hand, by XLA, by PyTorch of timm's networks, and against published figures."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import pallas as pl

from attn_flax import ops
from attn_flax.checks import InputError, UnknownNameError
from attn_flax.models import create_model, list_models
from attn_flax.models.cost import count_products, default_image_size, describe_model, is_classifier
from tests import costs, timm_oracle

PUBLISHED = {  # in units of 10^9, as torchvision's documentation has them for weights of these networks
    "resnet18": 1.81,
    "resnet50": 4.09,
    "resnext50_32x4d": 4.23,
    "vit_base_patch16_224": 17.56,
    "swin_tiny_patch4_window7_224": 4.49,
}
LIKE_TIMM = ("resnet26d", "ecaresnet26t", "skresnet18", "vit_tiny_patch16_224", "volo_d1_224", "focalnet_tiny_lrf")


def test_small_networks_by_hand():
    h, w = 9, 7
    net = describe_model("attention_net", image_size=(h, w), num_classes=5, in_channels=2)
    positions, gate = h * w, 2 * 64 * 8
    convolutions = positions * (9 * 2 * 64 + gate + 9 * 64 * 128)
    pooling = 128 * (8 * h * w + 8 * 8 * w)  # to 8×8, as two products
    linear = 64 * 128 * 512 + 512 * 5
    assert net.multiply_adds == convolutions + pooling + linear
    assert net.activations == positions * (64 + 8 + 64 + 128) + 128 * (8 * w + 8 * 8) + 512 + 5
    assert net.parameters == 18 * 64 + 64 + gate + 8 + 64 + 9 * 64 * 128 + 128 + 64 * 128 * 512 + 512 + 512 * 5 + 5


def test_attention_counts_both_of_its_products():
    d, tokens, depth = 6, 1 + 3 * 2, 2
    net = describe_model(
        "vit_tiny_patch16_224", image_size=(12, 8), patch_size=4, embed_dim=d, depth=depth, num_heads=3, num_classes=5
    )
    block = tokens * (4 * d * d + 2 * d * 4 * d) + 2 * tokens * tokens * d
    assert net.multiply_adds == 6 * (16 * 3) * d + depth * block + d * 5
    of_block = tokens * (4 * d + 4 * d + d) + 3 * tokens * tokens + tokens * d
    assert net.activations == 6 * d + depth * of_block + 5


def test_convolutions_count_their_zeros_groups_strides_and_gaps():
    x, kernel = jnp.zeros((2, 9, 7, 6)), jnp.zeros((3, 5, 2, 9))

    def convolved(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 1), "SAME", rhs_dilation=(1, 2), feature_group_count=3, dimension_numbers=numbers
        )

    assert count_products(convolved, x, kernel) == (2 * 5 * 7 * 9 * 15 * 2, 2 * 5 * 7 * 9)
    transposed = functools.partial(jax.lax.conv_transpose, strides=(2, 2), padding="SAME")
    assert count_products(transposed, x, jnp.zeros((3, 3, 6, 4))) == (2 * 18 * 14 * 4 * 9 * 6, 2 * 18 * 14 * 4)


def test_what_is_within_counts_as_often_as_it_is_computed():
    a = jnp.zeros((3, 3))
    once = (27, 9)

    def in_scan(a):
        return jax.lax.scan(lambda c, x: (c @ x, None), a, jnp.zeros((5, 3, 3)))[0]

    def in_branches(a):
        return jax.lax.cond(a.sum() > 0, lambda a: (a @ a) @ a, lambda a: a @ a, a)

    def in_kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] @ x_ref[...]

    by_pallas = pl.pallas_call(
        in_kernel,
        out_shape=jax.ShapeDtypeStruct((3, 15), jnp.float32),
        grid=(5,),
        in_specs=[pl.BlockSpec((3, 3), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((3, 3), lambda i: (0, i)),
    )
    for function, times in (
        (lambda a: jax.nn.relu(a) * a, 0),
        (jax.jit(lambda a: a @ a), 1),
        (jax.checkpoint(lambda a: jnp.sin(a @ a)), 1),
        (in_branches, 2),
        (in_scan, 5),
        (lambda a: jax.lax.fori_loop(0, 4, lambda _, a: a @ a, a), 4),
        (by_pallas, 5),
    ):
        assert count_products(function, a) == tuple(times * n for n in once)


def test_forms_by_platform_count_as_the_convolution_that_they_are():
    """On the CPU `ops.depthwise_conv` is a sum of products by element."""
    x, kernel = jnp.zeros((2, 9, 7, 6)), jnp.zeros((3, 5, 6))
    assert count_products(ops.depthwise_conv, x, kernel) == (2 * 9 * 7 * 6 * 15, 2 * 9 * 7 * 6)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"widths": (6, 5, 4, 3), "stem_widths": (7,)}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "head_dim": 6, "depths": (1, 2), "window": 3}),
    ],
)
def test_as_xla_counts(name, arguments):
    """Each product compiled and analysed alone."""
    model = create_model(name, num_classes=5, **arguments, rngs=nnx.Rngs(0))
    model.eval()
    counted = describe_model(name, image_size=(20, 28), num_classes=5, **arguments)
    assert counted.multiply_adds == costs.multiply_adds(model, jnp.zeros((1, 20, 28, 3)))
    assert counted.parameters == sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    assert describe_model(name).multiply_adds / 1e9 == pytest.approx(PUBLISHED[name], abs=0.0051)


@pytest.mark.full
@pytest.mark.parametrize("name", LIKE_TIMM)
def test_as_pytorch_counts_timms_network(name):
    create = timm_oracle.load("models").create_model
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counted = describe_model(name)
    with torch.device("meta"), torch.no_grad():
        network = create(name).eval()
        with FlopCounterMode(display=False) as flops:
            network(torch.zeros(1, 3, *counted.image_size))
    assert 2 * counted.multiply_adds == flops.get_total_flops()


def test_a_network_is_described_at_its_own_size_or_another():
    assert default_image_size("swinv2_base_window12_192") == (192, 192)
    assert default_image_size("resnet18") == (224, 224)
    small, large = (describe_model("resnet18", image_size=size) for size in ((64, 32), (128, 64)))
    head = 512 * 1000
    assert large.multiply_adds - head == 4 * (small.multiply_adds - head)
    assert large.parameters == small.parameters


def test_classifiers_are_told_from_other_networks():
    known = set(filter(is_classifier, list_models()))
    assert {"attention_net", "resnet50", "small_resnet", "vit_tiny_patch16_224"} <= known
    assert not any(map(is_classifier, ("detr_small", "gan", "timesformer", "unet", "vae")))


def test_refusals():
    with pytest.raises(InputError, match="model 'unet' is no image classifier"):
        describe_model("unet")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet50'"):
        describe_model("resnet_50")
    with pytest.raises(UnknownNameError, match="unknown resnet18 argument 'width': did you mean 'widths'"):
        describe_model("resnet18", width=3)
    with pytest.raises(InputError, match="patches of 16×16, got 20×32"):
        describe_model("vit_tiny_patch16_224", image_size=(20, 32))
    with pytest.raises(InputError, match="any number of times"):
        count_products(lambda a: jax.lax.while_loop(lambda a: a.sum() > 0, lambda a: a @ a, a), jnp.zeros((3, 3)))
