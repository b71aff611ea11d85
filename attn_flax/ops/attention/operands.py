"""What attention computes from, with its heads before its tokens, and the scores of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from attn_flax.ops.precision import at_least_float32


class Operands(NamedTuple):
    """Arrays with k = g·r heads, of which r in a row share the keys and values of one of g groups.

    Attributes:
        q: (*b, g, r, n, d).
        k: (*b, g, m, d).
        v: (*b, g, m, e).
        bias: broadcasts to (*b, g, r, n, m), with as many axes, or None.
        mask: likewise; True where a query sees a key.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    mask: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of the scores.

    Attributes:
        scale: their factor.
        is_causal: whether query i sees only the keys 0 to i.
        dropout_rate: the share of weights that are dropped.
    """

    scale: float
    is_causal: bool
    dropout_rate: float


def materialized(x: jax.Array) -> jax.Array:
    """x as it is in memory, and not as a broadcast that XLA may take into a product.

    From jax 0.12 on XLA's CPU backend gets a product with a broadcast operand wrong if it fuses it with a reduction,
    such as the maximum of a softmax.
    """
    return jax.lax.optimization_barrier(x)


def map_bytes(q: jax.Array, keys: int) -> int:
    """What the scores of all heads and examples take in float32."""
    return 4 * (q.size // q.shape[-1]) * keys


def arrange(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array | None) -> Operands:
    """Operands of (*b, n, k, d), (*b, m, g, d), (*b, m, g, e) and of arrays that broadcast to (*b, k, n, m)."""
    groups = k.shape[-2]
    q, k, v = (jnp.swapaxes(x, -2, -3) for x in (q, k, v))
    grouped = q.reshape(*q.shape[:-3], groups, -1, *q.shape[-2:])
    return Operands(grouped, k, v, *(group_heads(x, q.ndim, groups) for x in (bias, mask)))


def disarrange(o: jax.Array) -> jax.Array:
    """(*b, g, r, n, e) -> (*b, n, k, e)."""
    return jnp.swapaxes(o.reshape(*o.shape[:-4], -1, *o.shape[-2:]), -2, -3)


def group_heads(x: jax.Array | None, ndim: int, groups: int) -> jax.Array | None:
    """(…, k, n, m) -> (*b, g, r, n, m), with axes of one before the first and instead of k where it has one head."""
    if x is None:
        return None
    x = x.reshape((1,) * (ndim - x.ndim) + x.shape)
    heads = x.shape[-3]
    return x.reshape(*x.shape[:-3], *((1, 1) if heads == 1 else (groups, heads // groups)), *x.shape[-2:])


def scores(x: Operands, scale: float, seen: jax.Array | None = None) -> jax.Array:
    """s = scale·q kᵀ + bias, -∞ where masked or not seen: (*b, g, r, n, m), in float32 or wider."""
    s = scale * jnp.einsum("...grnd,...gmd->...grnm", x.q, x.k, preferred_element_type=_wide(x))
    return _mask(s if x.bias is None else s + x.bias, x.mask, seen)


def transposed_scores(x: Operands, scale: float, seen: jax.Array | None = None) -> jax.Array:
    """The same as (*b, g, m, r, n); `seen` comes as (m, 1, n)."""
    s = scale * jnp.einsum("...gmd,...grnd->...gmrn", x.k, x.q, preferred_element_type=_wide(x))
    bias, mask = (None if a is None else jnp.moveaxis(a, -1, -3) for a in (x.bias, x.mask))
    return _mask(s if bias is None else s + bias, mask, seen)


def weighted_values(p: jax.Array, v: jax.Array) -> jax.Array:
    """Σ_j p_ij v_j: (*b, g, r, n, e), in float32 or wider."""
    return jnp.einsum("...grnm,...gme->...grne", p.astype(v.dtype), v, preferred_element_type=at_least_float32(v.dtype))


def survivors(key: jax.Array, rate: float, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Dropout's factors: 0 with probability `rate`, else 1/(1-rate).

    Each is a hash of its place, so that it does not depend on how the scores are cut into blocks or over devices.

    Args:
        key: a random key.
        rate: the share to drop.
        rows: which query of which head of which example, as one number.
        columns: which key; broadcasts against the rows.
    """
    rows, columns = jnp.broadcast_arrays(rows.astype(jnp.uint32), columns.astype(jnp.uint32))
    bits = threefry_2x32(jax.random.bits(key, (2,)), jnp.stack([rows, columns]))[0]
    return (bits >= jnp.uint32(round(rate * 2**32))) / (1 - rate)


def _mask(s, *visible):
    for where in visible:
        if where is not None:
            s = jnp.where(where, s, -jnp.inf)
    return s


def _wide(x):
    return at_least_float32(x.q.dtype)
