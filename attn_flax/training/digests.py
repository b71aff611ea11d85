"""Digests of arrays, the same wherever their parts lie, and seals of JSON."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

SEEDS = (0x9E3779B9, 0x7F4A7C15)
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def digest(x: Array) -> UInt32[Array, "2"]:
    """Two sums of Σ_i mix(word_i ⊕ mix(i + seed)) mod 2³² over the array's words, i their places.

    mix is a bijection (that of MurmurHash3), so a change within one word changes both sums for certain, and any other
    change leaves both with a probability of 2⁻⁶⁴. Sums have no order: an array spread over devices and processes has
    the digest that it has whole, and no part leaves its place to take it.

    Args:
        x: any numbers or booleans; words have 32 bits, or the 8 or 16 of a smaller type.

    >>> x = jnp.arange(6.0).reshape(2, 3)
    >>> bool((digest(x) == digest(x.at[1, 2].set(5.0000005))).any())
    False
    """
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    places = _places(words.shape)
    return jnp.stack([_mix(words ^ _mix(places + jnp.uint32(seed))).sum(dtype=jnp.uint32) for seed in SEEDS])


def seal(content: Any) -> dict[str, str]:
    """What JSON holds, with its SHA-256."""
    text = json.dumps(content)
    return {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def unseal(sealed: Mapping[str, str]) -> Any:
    """What was sealed.

    >>> unseal(seal({"loss": [0.5]}))
    {'loss': [0.5]}

    Raises:
        ValueError: it was changed since.
    """
    if hashlib.sha256(sealed["record"].encode()).hexdigest() != sealed["sha256"]:
        raise ValueError("its record is not the one written with it.")
    return json.loads(sealed["record"])


def _places(shape):
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    along = [
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride) for axis, stride in enumerate(strides)
    ]
    return functools.reduce(jnp.add, along, jnp.zeros(shape, jnp.uint32))


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
