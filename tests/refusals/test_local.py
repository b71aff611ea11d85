"""What the mechanisms that attend within windows, or over maps of one size, refuse."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.self_attention.bottleneck import BottleneckAttention
from attn_flax.mechanisms.self_attention.halo import HaloAttention, halo
from attn_flax.mechanisms.self_attention.lambda_layer import LambdaLayer, lambda_layer_weights, relative_lambdas
from attn_flax.mechanisms.self_attention.neighborhood import NeighborhoodAttention
from attn_flax.mechanisms.self_attention.outlook import OutlookAttention

MODULES = {
    BottleneckAttention: {"size": (7, 5)},
    HaloAttention: {},
    LambdaLayer: {},
    NeighborhoodAttention: {"kernel_size": 3},
    OutlookAttention: {},
}
TABLE = {"kernel_size": None, "size": (7, 5)}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("num_heads", [0, 3])
def test_heads(module, num_heads):
    message = f"num_heads must be at least 1 and divide channels, got num_heads={num_heads}, channels=8"
    with pytest.raises(InputError, match=message):
        module(8, **MODULES[module], num_heads=num_heads, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_tokens(module, method):
    with pytest.raises(InputError, match=r"x must be a map \(\*b, h, w, 8\), got shape \(5, 8\)"):
        getattr(module(8, **MODULES[module], rngs=nnx.Rngs(0)), method)(jnp.ones((5, 8)))


CONSTRUCTIONS = {
    "a map without rows": (BottleneckAttention, {"size": (0, 5)}, r"size must be .* of at least 1, got \(0, 5\)"),
    "three sizes": (BottleneckAttention, {"size": (7, 5, 3)}, r"size must be a height and a width .* got \(7, 5, 3\)"),
    "no features": (BottleneckAttention, {"size": (7, 5), "key_features": 0}, "key_features must be at least 1, got 0"),
    "no block": (HaloAttention, {"block_size": 0}, "block_size must be at least 1, got 0"),
    "a halo below none": (HaloAttention, {"halo_size": -1}, "halo_size must be at least 0, got -1"),
    "a stride beside the blocks": (
        HaloAttention,
        {"stride": 3},
        "stride must be at least 1 and divide block_size, got stride=3, block_size=8",
    ),
    "no features of a halo": (HaloAttention, {"key_features": 0}, "key_features must be at least 1, got 0"),
    "no features of a lambda": (LambdaLayer, {"key_features": 0}, "key_features must be at least 1, got 0"),
    "an even convolution": (LambdaLayer, {"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
    "a convolution and a table": (
        LambdaLayer,
        {"size": (7, 5)},
        r"one of kernel_size and size must be None, and not both, got kernel_size=9, size=\(7, 5\)",
    ),
    "neither": (LambdaLayer, {"kernel_size": None}, "and not both, got kernel_size=None, size=None"),
    "a table without columns": (
        LambdaLayer,
        {"kernel_size": None, "size": (7, 0)},
        r"size must be a height and a width of at least 1, got \(7, 0\)",
    ),
    "an even window": (NeighborhoodAttention, {"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
    "no dilation": (NeighborhoodAttention, {"dilation": 0}, "dilation must be at least 1, got 0"),
    "an even kernel": (OutlookAttention, {"kernel_size": 2}, "kernel_size must be odd and positive, got 2"),
    "no stride": (OutlookAttention, {"stride": 0}, "stride must be from 1 to kernel_size=3, got 0"),
    "a stride over the kernel": (OutlookAttention, {"stride": 4}, "stride must be from 1 to kernel_size=3, got 4"),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name):
    module, arguments, message = CONSTRUCTIONS[name]
    with pytest.raises(InputError, match=message):
        module(8, **arguments, rngs=nnx.Rngs(0))


SIZES = {
    "another map": (BottleneckAttention, {"size": (7, 5)}, r"x must be a map of 7×5, got shape \(5, 7, 8\)"),
    "another map than the table's": (LambdaLayer, TABLE, r"x must be a map of 7×5, got shape \(5, 7, 8\)"),
    "less than a window": (
        NeighborhoodAttention,
        {"kernel_size": 3, "dilation": 2},
        r"the map must be of at least \(6, 6\) positions, .* got \(5, 7\)",
    ),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_maps_of_other_sizes(name, method):
    module, arguments, message = SIZES[name]
    with pytest.raises(InputError, match=message):
        getattr(module(8, **arguments, rngs=nnx.Rngs(0)), method)(jnp.ones((5, 7, 8)))


@pytest.mark.parametrize(("module", "arguments"), [(BottleneckAttention, {"size": (224, 224)}), (LambdaLayer, {})])
def test_attention_maps_that_do_not_fit(module, arguments):
    large = jax.ShapeDtypeStruct((224, 224, 8), "float32")
    mechanism = module(8, **arguments, rngs=nnx.Rngs(0))
    mechanism.eval()
    with pytest.raises(InputError, match=r"would need 9\.4 GiB per example"):
        jax.eval_shape(mechanism.attention_map, large)


def halo_of(rows, columns, **arguments):
    x = jnp.ones((6, 4, 2, 3))
    return halo(x, x, x, jnp.ones((rows, 3)), jnp.ones((columns, 3)), block_size=2, halo_size=1, **arguments)


def position_weights(*sizes):
    return lambda_layer_weights(jnp.ones((6, 4, 2, 3)), jnp.ones((6, 4, 3)), jnp.ones((*sizes, 3)))


TABLES = {
    "rows": (lambda: halo_of(8, 7), "rows must be 7 vectors, of twice a window less one, got 8"),
    "columns": (lambda: halo_of(7, 5), "columns must be 7 vectors, of twice a window less one, got 5"),
    "queries of another stride": (
        lambda: halo_of(7, 7, stride=2),
        r"q must be a map of 3×2 for keys of 6×4, got shape \(6, 4, 2, 3\)",
    ),
    "even": (lambda: position_weights(3, 4), r"table must be of odd sizes, got shape \(3, 4, 3\)"),
    "another map's": (
        lambda: relative_lambdas(jnp.ones((6, 4, 2)), jnp.ones((11, 5, 3))),
        r"table must be \(11, 7, d\) for a map of 6×4, got shape \(11, 5, 3\)",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_lengths(name):
    call, message = TABLES[name]
    with pytest.raises(InputError, match=message):
        call()
