"""timm's numbers in whole networks of ours, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import interop, nn
from attn_flax.checks import InputError
from attn_flax.interop import Layout
from attn_flax.mechanisms.layers import DepthwiseConv
from attn_flax.models import MODELS, create_model
from tests import timm_oracle
from tests.models import timm_networks

NETWORKS = (
    "botnet26t_256",
    "cait_xxs24_224",
    "coatnet_0_224",
    "convit_tiny",
    "davit_tiny",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "ecaresnet26t",
    "focalnet_tiny_srf",
    "halonet26t",
    "lambda_resnet26t",
    "maxvit_tiny_tf_224",
    "pvt_v2_b0",
    "pvt_v2_b2_li",
    "resnest14d",
    "resnet18d",
    "senet154",
    "seresnet18",
    "skresnet18",
    "skresnext50_32x4d",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "twins_pcpvt_small",
    "twins_svt_small",
    "vit_tiny_patch16_224",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
)
"""Of every family that timm has too, in every form that names or layouts depend on."""


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_of_a_network_come_back_as_they_were(name):
    """That they are in their places, the logits tell, which the families' own tests compare."""
    network = timm_networks.random_network(name, num_classes=11)
    ours = nnx.eval_shape(lambda: create_model(name, num_classes=11, rngs=nnx.Rngs(0)))
    interop.load_timm(ours, network.state_dict())
    back = interop.to_timm(ours)
    expected = {key: array.numpy() for key, array in network.state_dict().items() if "num_batches" not in key}
    assert back.keys() == expected.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, expected[key], strict=True, err_msg=key)


def test_every_family_that_has_names_of_timm_is_compared():
    named = {entry[0] for entry in MODELS.values() if hasattr(entry[0], "timm_names")}
    assert named - {MODELS[name][0] for name in NETWORKS} == set()


class Toy(nnx.Module):
    """A part of each kind whose names or layouts differ."""

    timm_names = (
        (r"^theirs\.k\b", "theirs.kv[0]"),
        (r"^theirs\.v\b", "theirs.kv[1]"),
        (r"^ours\.qkv\b", "ours.{qk,qk,v}"),
        (r"^shared_too\b", "again"),
    )
    timm_convs = "^point"
    timm_arrays = {r"^table$": Layout((1, 0), square=True), r"^turned$": Layout(index=lambda n: np.arange(n)[::-1])}  # noqa: RUF012

    def __init__(self, rngs):
        self.theirs = nn.ClassAttention(6, num_heads=2, qkv_bias=True, rngs=rngs)
        self.ours = nn.MultiHeadSelfAttention(6, num_heads=2, rngs=rngs)
        self.point = nnx.Linear(3, 5, rngs=rngs)
        self.grouped = nnx.Conv(4, 6, (3, 2), feature_group_count=2, rngs=rngs)
        self.depthwise = DepthwiseConv(4, (3, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (6,)))
        self.table = nnx.Param(jax.random.normal(rngs.params(), (9, 2)))
        self.turned = nnx.Param(jnp.arange(3.0))
        self.shared = nnx.Linear(2, 3, rngs=rngs)
        self.shared_too = self.shared


@pytest.fixture(scope="module")
def toy():
    module = Toy(nnx.Rngs(0))
    module.norm.mean[...] = jnp.arange(4.0)
    return module, interop.to_timm(module)


def test_names_and_layouts_follow_from_the_kind_of_the_layer(toy):
    module, theirs = toy
    for key, expected in {
        "theirs.kv.weight": np.concatenate([module.theirs.k.kernel[...].T, module.theirs.v.kernel[...].T]),
        "theirs.kv.bias": np.zeros(12),
        "theirs.q.weight": module.theirs.q.kernel[...].T,
        "ours.qk.weight": module.ours.qkv.kernel[:, :12].T,
        "ours.v.weight": module.ours.qkv.kernel[:, 12:].T,
        "point.weight": module.point.kernel[...].T[..., None, None],
        "grouped.weight": np.transpose(module.grouped.kernel[...], (3, 2, 0, 1)),
        "depthwise.weight": np.moveaxis(module.depthwise.kernel[...], -1, 0)[:, None],
        "norm.running_mean": np.arange(4),
        "norm.weight": np.ones(4),
        "cls_token": module.cls_token[None, None],
        "table": module.table[...].T.reshape(2, 3, 3),
        "turned": [2, 1, 0],
        "shared.weight": module.shared.kernel[...].T,
        "again.weight": module.shared.kernel[...].T,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(theirs[key], np.asarray(expected), err_msg=key)


def test_an_abstract_network_gets_the_same_numbers(toy):
    module, theirs = toy
    other = nnx.eval_shape(lambda: Toy(nnx.Rngs(1)))
    further = {
        "norm.num_batches_tracked": np.array(7),
        "ours.relative_position_index": np.zeros((3, 3), int),
        "point.weight": theirs["point.weight"][..., 0, 0],
        "cls_token": theirs["cls_token"][0],
    }
    interop.load_timm(other, theirs | further)
    expected = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat))))
    state = jax.tree.leaves(nnx.to_pure_dict(nnx.state(other, (nnx.Param, nnx.BatchStat))))
    for (path, ours), array in zip(expected, state, strict=True):
        np.testing.assert_array_equal(ours, array, err_msg=jax.tree_util.keystr(path))


def test_all_faults_are_listed_and_change_nothing(toy):
    _, theirs = toy
    module = Toy(nnx.Rngs(1))
    before = interop.to_timm(module)
    faulty = {key: array for key, array in theirs.items() if key != "ours.v.weight"}
    faulty |= {"ours.attn_maske": np.zeros(3), "theirs.kv.bias": np.zeros(18)}
    expected = r"missing ours\.v\.weight, theirs\.kv\.bias must be \(12,\), got \(18,\), unexpected ours\.attn_maske"
    with pytest.raises(InputError, match=expected):
        interop.load_timm(module, faulty)
    for key, array in interop.to_timm(module).items():
        np.testing.assert_array_equal(array, before[key])


SIZES = {
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 8, "depth": 1, "num_heads": 2}, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", {"embed_dim": 8, "depth": 1, "num_heads": 2}, 2),
    "cait": ("cait_xxs24_224", {"embed_dim": 8, "depth": 1, "num_heads": 2}, 0),
}


@pytest.mark.full
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("size", [(96, 160), (32, 48)])
def test_positions_are_resampled_as_timms(case, size):
    name, arguments, prefix = SIZES[case]
    resample = timm_oracle.load("layers.pos_embed").resample_abs_pos_embed
    import torch

    theirs = interop.to_timm(create_model(name, **arguments, image_size=112, rngs=nnx.Rngs(0)))
    ours = nnx.eval_shape(lambda: create_model(name, **arguments, image_size=size, rngs=nnx.Rngs(0)))
    interop.load_timm(ours, theirs, resample=True)
    grid = [side // 16 for side in size]
    expected = resample(torch.tensor(theirs["pos_embed"]), grid, num_prefix_tokens=prefix)
    np.testing.assert_allclose(interop.to_timm(ours)["pos_embed"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_tables_of_offsets_are_resampled_as_by_swins_authors():
    resample = timm_oracle.load("layers.pos_embed_rel").resize_rel_pos_bias_table_levit
    import torch

    sizes = {"embed_dim": 8, "depths": (1, 1), "head_dim": 4}
    name, key = "swin_tiny_patch4_window7_224", "layers.1.blocks.0.attn.relative_position_bias_table"
    theirs = interop.to_timm(create_model(name, **sizes, window=4, image_size=32, rngs=nnx.Rngs(0)))
    ours = nnx.eval_shape(lambda: create_model(name, **sizes, window=7, image_size=64, rngs=nnx.Rngs(0)))
    interop.load_timm(ours, theirs, resample=True)
    expected = resample(torch.tensor(theirs[key]), (13 * 13, 4))
    np.testing.assert_allclose(interop.to_timm(ours)[key], expected, rtol=1e-5, atol=1e-6)


def test_positions_of_another_size_are_refused_unless_they_may_be_resampled():
    name, arguments, _ = SIZES["vit"]
    theirs = interop.to_timm(create_model(name, **arguments, image_size=32, rngs=nnx.Rngs(0)))
    ours = nnx.eval_shape(lambda: create_model(name, **arguments, image_size=64, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"pos_embed must be \(1, 17, 8\), got \(1, 5, 8\)"):
        interop.load_timm(ours, theirs)
