"""Kernels that others wrote for an accelerator, and what each of them cannot compute."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attn_flax.ops.attention.operands import Rule


class Arrays(NamedTuple):
    """q (*b, n, k, d), k (*b, m, g, d), v (*b, m, g, e); bias and mask broadcast to (*b, k, n, m), or are None."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    mask: jax.Array | None


def cudnn(x: Arrays, rule: Rule) -> jax.Array:
    """By cuDNN's fused attention on an NVIDIA GPU, whose gradient wants even numbers of tokens."""
    batch = x.q.shape[:-3]
    q, k, v = (a.reshape(-1, *a.shape[-3:]) for a in x[:3])
    bias, mask = (_four_axes(a, batch) for a in (x.bias, x.mask))
    queries, keys = q.shape[1], k.shape[1]
    lengths = None
    if bias is None and mask is None and (queries % 2 or keys % 2):
        lengths = jnp.full(len(q), keys, jnp.int32)
        q, k, v = (jnp.pad(a, [(0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0)]) for a in (q, k, v))
    o = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        mask=mask,
        scale=rule.scale,
        is_causal=rule.is_causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )[:, :queries].reshape(*x.q.shape[:-1], x.v.shape[-1])
    if x.mask is None:
        return o
    sees_any = jnp.swapaxes(x.mask.any(-1, keepdims=True), -2, -3)
    return jnp.where(sees_any, o, 0)


def pallas(x: Arrays, rule: Rule) -> jax.Array:
    """By JAX's Pallas kernels: flash attention on a TPU, FlashAttention-3 on a Hopper GPU."""
    return _on_tpu(x, rule) if jax.default_backend() == "tpu" else _on_hopper(x, rule)


def unfit_for_cudnn(x: Arrays, rule: Rule) -> str | None:
    """Why cuDNN cannot compute it, or its gradient; None if it can."""
    if jax.default_backend() != "gpu":
        return "it needs an NVIDIA GPU"
    if rule.dropout_rate:
        return "it has no dropout that other implementations share"
    return _refusal_of(cudnn, x, rule)


def unfit_for_pallas(x: Arrays, rule: Rule) -> str | None:
    """Why Pallas's kernel for this backend cannot compute it, or its gradient; None if it can."""
    backend = jax.default_backend()
    if backend not in ("gpu", "tpu"):
        return "it needs a TPU or a Hopper GPU"
    if x.mask is not None or rule.dropout_rate:
        return "its kernels have neither masks nor dropout"
    if x.k.shape[-2] != x.q.shape[-2] or x.q.shape[-1] != x.v.shape[-1]:
        return "its kernels have as many heads of keys as of queries, and values as deep as these"
    if backend == "tpu":
        return _unfit_for_tpu(x)
    if jax.devices()[0].compute_capability != "9.0":
        return "it needs a Hopper GPU"
    if x.bias is not None or rule.is_causal or x.q.dtype != jnp.float16:
        return "its kernel for Hopper has no bias, and gradients in float16 only and where it is not causal"
    return _refusal_of(_on_hopper, x, rule)


def _unfit_for_tpu(x):
    tokens = x.q.shape[-3], x.k.shape[-3]
    return f"it needs multiples of 128 tokens, got {tokens}" if any(size % 128 for size in tokens) else None


def _on_tpu(x, rule):
    flash = importlib.import_module("jax.experimental.pallas.ops.tpu.flash_attention").flash_attention
    batch = x.q.shape[:-3]
    q, k, v = (jnp.swapaxes(a.reshape(-1, *a.shape[-3:]), 1, 2) for a in x[:3])
    bias = _four_axes(x.bias, batch)
    if bias is not None:
        bias = jnp.broadcast_to(bias / rule.scale, (*q.shape[:3], k.shape[2])).astype(q.dtype)  # it is scaled, too
    o = flash(q, k, v, bias, causal=rule.is_causal, sm_scale=rule.scale)
    return jnp.swapaxes(o, 1, 2).reshape(x.q.shape)


def _on_hopper(x, rule):
    fa3 = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    blocks = {f"block_{of}": 64 for of in ("q_dkv", "kv_dkv", "q_dq", "kv_dq")}
    config = fa3.TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, **blocks)
    q, k, v = (a.reshape(-1, *a.shape[-3:]) for a in x[:3])
    return fa3.attention((q * rule.scale).astype(q.dtype), k, v, config).reshape(x.q.shape)


def _refusal_of(kernel: Callable[[Arrays, Rule], jax.Array], x, rule):
    """What the kernel says when it and its gradient are traced."""

    def both(q, k, v):
        o, pull_back = jax.vjp(lambda q, k, v: kernel(x._replace(q=q, k=k, v=v), rule), q, k, v)
        return pull_back(o)

    try:
        jax.eval_shape(both, *x[:3])
    except (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def _four_axes(x, batch):
    """(…, k, n, m) with all batch axes as one, which is 1 where they all are."""
    if x is None:
        return None
    x = x.reshape((1,) * (len(batch) + 3 - x.ndim) + x.shape)
    if any(size > 1 for size in x.shape[:-3]):
        x = jnp.broadcast_to(x, (*batch, *x.shape[-3:]))
    return x.reshape(-1, *x.shape[-3:])
