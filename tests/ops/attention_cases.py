"""Attention by loops over examples, heads and queries in float64 NumPy, and random operands of all kinds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


def naive_weights(q, k, *, bias=None, mask=None, is_causal=False, scale=None):
    """α (*b, k, n, m) of q (*b, n, k, d) and k (*b, m, g, d); rows of zeros where a query sees nothing."""
    *batch, n, heads, d = q.shape
    m, groups = k.shape[-3:-1]
    full = (*batch, heads, n, m)
    scale = d**-0.5 if scale is None else scale
    bias = np.broadcast_to(0.0 if bias is None else bias, full)
    mask = np.broadcast_to(True if mask is None else mask, full)
    alpha = np.zeros(full)
    for *b, head, i in itertools.product(*map(range, (*batch, heads, n))):
        group = head // (heads // groups)
        seen = [j for j in range(m) if mask[*b, head, i, j] and (j <= i or not is_causal)]
        if not seen:
            continue
        s = np.array([scale * q[*b, i, head] @ k[*b, j, group] + bias[*b, head, i, j] for j in seen])
        e = np.exp(s - s.max())
        alpha[*b, head, i, seen] = e / e.sum()
    return alpha


def naive_attention(q, k, v, **options):
    """o (*b, n, k, e)."""
    *batch, n, heads, _ = q.shape
    alpha = naive_weights(q, k, **options)
    o = np.zeros((*batch, n, heads, v.shape[-1]))
    for *b, head, i in itertools.product(*map(range, (*batch, heads, n))):
        o[*b, i, head] = alpha[*b, head, i] @ v[*b, :, head // (heads // v.shape[-2])]
    return o


def textbook(q, k, v, bias=None, *, mask=None, is_causal=False, scale=None):
    """The same in one line each, for JAX to differentiate; every query must see a key."""
    repeats = q.shape[-2] // k.shape[-2]
    k, v = (jnp.repeat(x, repeats, axis=-2) for x in (k, v))
    s = jnp.einsum("...nkd,...mkd->...knm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s if bias is None else s + bias
    mask = jnp.broadcast_to(True if mask is None else mask, s.shape)
    mask = jnp.tril(mask) if is_causal else mask
    return jnp.einsum("...knm,...mke->...nke", jax.nn.softmax(jnp.where(mask, s, -1e30)), v)


@st.composite
def cases(draw):
    """Operands and options of `dot_product_attention`; each query sees its first key."""
    batch = draw(st.lists(st.sampled_from([1, 2, 3]), max_size=2))
    n, m = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    groups, r = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (3, 1)]))
    d, e = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    scores = (*batch, groups * r, n, m)

    def table():
        if not draw(st.booleans()):
            return None
        kept = scores[draw(st.integers(0, len(scores))) :]
        return tuple(size if draw(st.booleans()) else 1 for size in kept)

    arrays = [rng.normal(size=(*batch, *shape)) for shape in ((n, groups * r, d), (m, groups, d), (m, groups, e))]
    bias, mask = table(), table()
    options = {"is_causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.7]))}
    if mask is not None:
        options["mask"] = np.asarray(rng.random(mask) < 0.6)
        options["mask"][(..., slice(1)) if mask else ()] = True
    bias = None if bias is None else rng.normal(size=bias)
    return arrays, bias, options
