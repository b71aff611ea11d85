"""What the mechanisms of tests/contract/second_order.py refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.channel.dia import Dia
from attn_flax.mechanisms.channel.enc import Enc
from attn_flax.mechanisms.channel.fca import Fca
from attn_flax.mechanisms.channel.gsop import Gsop
from attn_flax.mechanisms.channel.soca import Soca
from attn_flax.mechanisms.channel_spatial.bam import Bam
from attn_flax.mechanisms.channel_spatial.cbam import Cbam
from attn_flax.mechanisms.channel_spatial.scse import ScSE

REFUSALS = {
    "cbam reduction": (Cbam, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "cbam hidden": (Cbam, {"hidden": 0}, "hidden must be at least 1, got 0"),
    "cbam kernel": (Cbam, {"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
    "cbam negative kernel": (Cbam, {"kernel_size": -1}, "kernel_size must be odd and positive, got -1"),
    "bam reduction": (Bam, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "bam dilation": (Bam, {"dilation": 0}, "dilation must be at least 1, got 0"),
    "bam merge": (Bam, {"merge": "max"}, "merge must be 'sum' or 'product', got 'max'"),
    "scse reduction": (ScSE, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "scse merge": (ScSE, {"merge": "product"}, "merge must be 'max' or 'sum', got 'product'"),
    "soca reduction": (Soca, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "soca iterations": (Soca, {"iterations": 1}, "iterations must be at least 2, got 1"),
    "gsop hidden": (Gsop, {"hidden": 0}, "hidden must be at least 1, got 0"),
    "gsop stride": (Gsop, {"stride": 0}, "stride must be at least 1, got 0"),
    "fca reduction": (Fca, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "fca size": (Fca, {"size": (7, 6)}, r"size must be at least \(7, 7\), got \(7, 6\)"),
    "fca number": (Fca, {"frequencies": [(0, 0)] * 3}, "must divide channels, got 3 frequencies, channels=16"),
    "fca none": (Fca, {"frequencies": []}, "must divide channels, got 0 frequencies, channels=16"),
    "fca frequency": (Fca, {"frequencies": [(0, 7)]}, r"frequencies must be pairs of 0 to 6, got \(0, 7\)"),
    "enc codes": (Enc, {"num_codes": 0}, "num_codes must be at least 1, got 0"),
    "dia reduction": (Dia, {"reduction": 0}, "reduction must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_arguments_out_of_range_are_refused(name):
    module, arguments, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        module(16, **arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("method", ["__call__", "attention_map"])
@pytest.mark.parametrize("shapes", [[(16,), (16,)], [(2, 16)], [(2, 16), (2, 1)]])
def test_a_state_of_another_shape_is_refused(method, shapes):
    state = tuple(map(jnp.zeros, shapes))
    with pytest.raises(InputError, match=r"state must be two arrays of shape \(2, 16\), got shapes"):
        getattr(Dia(16, rngs=nnx.Rngs(0)), method)(jnp.ones((2, 7, 5, 16)), state)
