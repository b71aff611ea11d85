"""Digests: every bit counts, the layout does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from attn_flax.training.digests import SEEDS, digest

TYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool"]


def naive(x):
    """The sums of the definition, in Python's integers."""

    def mix(value):
        value = ((value ^ value >> 16) * 0x85EBCA6B) % 2**32
        value = ((value ^ value >> 13) * 0xC2B2AE35) % 2**32
        return value ^ value >> 16

    words = np.asarray(x).reshape(-1).view(f"u{min(np.asarray(x).dtype.itemsize, 4)}").tolist()
    return [sum(mix(word ^ mix((i + seed) % 2**32)) for i, word in enumerate(words)) % 2**32 for seed in SEEDS]


def numbers(dtype, shape=(7, 5, 3)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(7, 5, 3), (11,), (), (0, 3)])
def test_a_digest_is_its_definition(dtype, shape):
    x = numbers(dtype, shape)
    assert digest(x).tolist() == naive(x)


def test_double_precision_has_two_words():
    with jax.enable_x64(True):
        x = numbers("float64")
        assert digest(x).tolist() == naive(x)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 7 * 5 * 3 - 1), st.integers(0, 31))
def test_every_single_bit_changes_both_sums(place, bit):
    x = numbers("float32")
    words = np.array(x).reshape(-1).view(np.uint32)
    words[place] ^= np.uint32(1 << bit)
    flipped = words.view(np.float32).reshape(x.shape)
    assert (digest(x) != digest(jnp.asarray(flipped))).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_places_count(dtype):
    x = jnp.arange(12).reshape(4, 3).astype(dtype)
    for other in (x[::-1], x.at[0, 0].set(x[2, 1]).at[2, 1].set(x[0, 0]), jnp.roll(x, 1)):
        assert (digest(x) != digest(other)).any()


@pytest.mark.parametrize("spec", [PartitionSpec("a"), PartitionSpec(None, "b"), PartitionSpec("b", "a")])
def test_the_layout_does_not_count(spec):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = numbers("float32", (8, 12))
    spread = jax.device_put(x, NamedSharding(mesh, spec))
    assert jax.jit(digest)(spread).tolist() == naive(x)
