"""Attention over meshes of devices: the same numbers, and nothing moves between devices that need not."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attn_flax import ops
from attn_flax.ops.attention import blockwise

COMMUNICATION = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
SPLITS = {
    "batch": ((8,), PartitionSpec("a")),
    "heads": ((8,), PartitionSpec(None, None, "a")),
    "both": ((4, 2), PartitionSpec("a", None, "b")),
    "batch over both": ((4, 2), PartitionSpec(("a", "b"))),
}


def both_passes(attend):
    def run(q, k, v, cotangent, bias):
        output, pull_back = jax.vjp(functools.partial(attend, bias=bias), q, k, v)
        return output, *pull_back(cotangent)

    return run


@pytest.mark.parametrize("tokens", [37, pytest.param(300, marks=pytest.mark.full)])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
def test_no_communication_where_batch_or_heads_are_sharded(split, implementation, tokens, monkeypatch):
    monkeypatch.setattr(blockwise, "CPU_ELEMENTS", 2**10)  # so that there are many steps
    shape, spec = SPLITS[split]
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))
    sharding = NamedSharding(mesh, spec)
    whole = NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(16, tokens, 8, 4)), "float32") for _ in range(4)]
    bias = jnp.asarray(rng.normal(size=(tokens, tokens)), "float32")
    run = both_passes(functools.partial(ops.dot_product_attention, implementation=implementation))
    sharded = jax.jit(run, in_shardings=(*[sharding] * 4, whole), out_shardings=sharding)
    lowered = sharded.lower(*arrays, bias)
    assert (lowered.as_text().count("stablehlo.while") >= 2) == (implementation == "blockwise")
    compiled = lowered.compile()
    assert not [name for name in COMMUNICATION if name in compiled.as_text()]
    expected = jax.jit(run)(*(jax.device_put(x, jax.devices()[0]) for x in (*arrays, bias)))
    chex.assert_trees_all_close(
        compiled(*jax.device_put(arrays, sharding), jax.device_put(bias, whole)), expected, atol=1e-5
    )
