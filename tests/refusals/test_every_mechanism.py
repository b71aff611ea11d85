"""What every mechanism of the catalogue refuses, by the examples of the contract."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.catalog import CATALOG, create_attention
from attn_flax.checks import InputError
from tests.contract import CASES


@pytest.mark.parametrize("name", sorted(CATALOG))
@pytest.mark.parametrize("channels", [0, -3])
def test_channels_below_one_are_refused(name, channels):
    with pytest.raises(InputError, match=f"channels must be at least 1, got {channels}"):
        create_attention(name, channels, rngs=nnx.Rngs(0), **CASES[name].arguments)


@pytest.mark.parametrize("name", sorted(CATALOG))
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_other_channels_are_refused(name, method):
    *positions, channels = CASES[name].shape
    others = CASES[name].inputs()[1:]
    module = create_attention(name, channels, rngs=nnx.Rngs(0), **CASES[name].arguments)
    for wrong in (1, channels + 1):
        with pytest.raises(InputError, match=rf"{channels} channels on its last axis, got shape \(.*{wrong},?\)"):
            getattr(module, method)(jnp.ones((*positions, wrong)), *others)
