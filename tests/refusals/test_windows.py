"""What attention in windows, grids and maps of one size refuses."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.self_attention.coatnet_rel import RelativeSelfAttention
from attn_flax.mechanisms.self_attention.grid_attention import PartitionAttention
from attn_flax.mechanisms.self_attention.lsa_gsa import LocallyGroupedAttention, SpatiallySeparableAttention
from attn_flax.mechanisms.self_attention.swin import ShiftedWindowAttention
from attn_flax.mechanisms.self_attention.swinv2 import CosineWindowAttention

IN_WINDOWS = [
    ShiftedWindowAttention,
    CosineWindowAttention,
    LocallyGroupedAttention,
    SpatiallySeparableAttention,
    partial(PartitionAttention, window=2),
]
ALL = [*IN_WINDOWS, partial(RelativeSelfAttention, size=(7, 5))]


def create(module, **arguments):
    return module(8, **{"head_dim": 4, **arguments}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("head_dim", [0, 3])
def test_heads(module, head_dim):
    message = f"head_dim must be at least 1 and divide channels, got head_dim={head_dim}, channels=8"
    with pytest.raises(InputError, match=message):
        create(module, head_dim=head_dim)


@pytest.mark.parametrize("module", IN_WINDOWS)
def test_a_window_of_nothing(module):
    with pytest.raises(InputError, match="window must be at least 1, got 0"):
        create(module, window=0)


@pytest.mark.parametrize("module", [ShiftedWindowAttention, CosineWindowAttention])
@pytest.mark.parametrize("shift", [-1, 3])
def test_a_shift_outside_the_window(module, shift):
    with pytest.raises(InputError, match=f"shift must be at least 0 and below window, got shift={shift}, window=3"):
        create(module, window=3, shift=shift)


@pytest.mark.parametrize("size", [(7,), (7, 0)])
def test_a_size_that_is_none(size):
    with pytest.raises(InputError, match="size must be a height and a width of at least 1, got "):
        create(RelativeSelfAttention, size=size)


def test_no_features_to_attend_to():
    with pytest.raises(InputError, match="in_channels must be at least 1, got 0"):
        create(RelativeSelfAttention, size=(7, 5), in_channels=0)


def test_another_partition():
    with pytest.raises(InputError, match="partition must be one of window, grid, got 'block'"):
        create(PartitionAttention, window=2, partition="block")


def test_cells_of_nothing():
    with pytest.raises(InputError, match="sr_ratio must be at least 1, got 0"):
        create(SpatiallySeparableAttention, sr_ratio=0)


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_tokens_where_maps_are_expected(module, method):
    with pytest.raises(InputError, match=r"x must be a map \(\*b, h, w, 8\), got shape \(35, 8\)"):
        getattr(create(module), method)(jnp.ones((35, 8)))


CALLS = {
    "a window that does not divide": (
        partial(PartitionAttention, window=2, partition="window"),
        r"window must be at least 1 and divide the map on each axis, got window=\(2, 2\) for a map of \(3, 4\)",
    ),
    "a grid that does not divide": (
        partial(PartitionAttention, window=2),
        r"grid must be at least 1 and divide the map on each axis, got grid=\(2, 2\) for a map of \(3, 4\)",
    ),
    "less than a cell": (
        partial(SpatiallySeparableAttention, sr_ratio=4),
        r"x must be a map of at least 4×4, got shape \(3, 4, 8\)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_maps_that_do_not_fit(name, method):
    module, message = CALLS[name]
    with pytest.raises(InputError, match=message):
        getattr(module(8, head_dim=4, rngs=nnx.Rngs(0)), method)(jnp.ones((3, 4, 8)))
