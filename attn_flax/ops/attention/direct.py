"""Softmax attention with the whole n×m map, for short sequences."""

import math

import jax
import jax.numpy as jnp

from attn_flax.ops.attention.operands import Operands, Rule, scores, survivors, weighted_values


def attend(x: Operands, dropout_key: jax.Array | None, rule: Rule) -> jax.Array:
    """o_i = Σ_j α_ij v_j."""
    alpha = weights(x, rule)
    if rule.dropout_rate:
        alpha = alpha * _survivors(dropout_key, rule, alpha.shape)
    return weighted_values(alpha, x.v).astype(x.v.dtype)


def weights(x: Operands, rule: Rule) -> jax.Array:
    """α_ij = exp(s_ij) / Σ_j exp(s_ij); zeros where a query sees no key."""
    n, m = x.q.shape[-2], x.k.shape[-2]
    s = scores(x, rule.scale, jnp.tri(n, m, dtype=bool) if rule.is_causal else None)
    if x.bias is None and x.mask is None:
        return jax.nn.softmax(s)
    sees_any = s.max(-1, keepdims=True) > -jnp.inf
    return jnp.where(sees_any, jax.nn.softmax(jnp.where(sees_any, s, 0)), 0)


def _survivors(key, rule, shape):
    *rows, m = shape
    numbers = jnp.arange(math.prod(rows)).reshape(*rows, 1)
    return survivors(key, rule.dropout_rate, numbers, jnp.arange(m))
