"""What attention refuses."""

import functools

import jax
import jax.numpy as jnp
import pytest

from attn_flax import ops
from attn_flax.checks import InputError

LONG = jax.ShapeDtypeStruct((50176, 1, 4), "float32")

REFUSALS = {
    "axes": (lambda q, k, v: ops.dot_product_attention(q[0, 0], k, v), r"must be \(\*b, tokens, heads, features\)"),
    "batch": (lambda q, k, v: ops.dot_product_attention(q, k[:1], v[:1]), "must have the same batch axes, got q"),
    "features": (lambda q, k, v: ops.dot_product_attention(q, k[..., :2], v), "axis -1 of q and axis -1 of k"),
    "tokens": (lambda q, k, v: ops.dot_product_attention(q, k, v[:, :4]), "must have the same tokens and heads"),
    "nothing": (lambda q, k, v: ops.dot_product_attention(q, k[:, :0], v[:, :0]), "may be empty"),
    "heads": (
        lambda q, k, v: ops.dot_product_attention(q[:, :, :3], k, v),
        "must divide those of q, got 2 of k and v, 3 of q",
    ),
    "bias": (
        lambda q, k, v: ops.dot_product_attention(q, k, v, bias=jnp.ones((3, 7, 5))),
        r"bias must broadcast to \(\*b, heads, queries, keys\) = \(2, 4, 7, 5\), got \(3, 7, 5\)",
    ),
    "integers": (lambda q, k, v: ops.dot_product_attention(q, k, v, bias=jnp.ones((7, 5), int)), "got int32"),
    "mask": (lambda q, k, v: ops.dot_product_attention(q, k, v, mask=jnp.ones((7, 4), bool)), "mask must broadcast"),
    "numbers": (lambda q, k, v: ops.dot_product_attention(q, k, v, mask=jnp.ones((7, 5))), "boolean, got float32"),
    "rate": (lambda q, k, v: ops.dot_product_attention(q, k, v, dropout_rate=1.0), r"must be in \[0, 1\), got 1\.0"),
    "key": (lambda q, k, v: ops.dot_product_attention(q, k, v, dropout_rate=0.1), "needs a dropout_key, got None"),
    "name": (
        lambda q, k, v: ops.dot_product_attention(q, k, v, implementation="flash"),
        "must be one of xla, blockwise, cudnn, pallas or None, got 'flash'",
    ),
    "map": (
        lambda q, k, v: jax.eval_shape(ops.dot_product_attention_weights, LONG, LONG),
        r"would need 9\.4 GiB per example",
    ),
    "direct map": (
        lambda q, k, v: jax.eval_shape(
            functools.partial(ops.dot_product_attention, implementation="xla"),
            LONG,
            LONG,
            LONG,
        ),
        r"would need 9\.4 GiB per example",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call(jnp.ones((2, 7, 4, 3)), jnp.ones((2, 5, 2, 3)), jnp.ones((2, 5, 2, 3)))
