"""Softmax attention on a CPU, where no implementation is named."""

import functools

import jax
import jax.numpy as jnp

from attn_flax.ops.attention import blockwise, direct
from attn_flax.ops.attention.operands import Operands, Rule, map_bytes
from attn_flax.ops.scores import MAX_MAP_BYTES

FUSING_JAX = (0, 12)
"""From this version on XLA fuses the two products and the softmax of the direct form, without a map in memory."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def attend(x: Operands, dropout_key: jax.Array | None, rule: Rule) -> jax.Array:
    """As `blockwise.attend`, which it is where it is differentiated; else the direct form where XLA fuses it."""
    if not _is_fused(x, rule):
        return blockwise.attend(x, dropout_key, rule)
    tokens = x.k.ndim - 3
    heads_first = (jnp.moveaxis(a, tokens, -2) for a in x[:3])
    return jnp.moveaxis(direct.attend(Operands(*heads_first, None, None), None, rule), -2, tokens)


attend.defvjp(blockwise.attend_and_keep, blockwise.pull_back)


def _is_fused(x, rule):
    """Whether XLA is known to; the bound on the map is for programs in which it does not."""
    plain = x.bias is None and x.mask is None and not rule.is_causal and not rule.dropout_rate
    narrow = x.q.dtype in (jnp.float32, jnp.bfloat16)
    return jax.__version_info__ >= FUSING_JAX and plain and narrow and map_bytes(x.q, x.k.shape[-3]) <= MAX_MAP_BYTES
