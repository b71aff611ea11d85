"""Softmax attention with scaled dot products, by the fastest implementation at hand.

The same for all of them: scores, softmax and sums in float32 or wider, and zeros where a query sees no key.
"""

import functools
import warnings
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_flax.checks import check, check_same_size
from attn_flax.ops.attention import blockwise, cpu, direct, kernels
from attn_flax.ops.attention.operands import Operands, Rule, arrange, disarrange, group_heads, map_bytes, materialized
from attn_flax.ops.scores import check_map_fits

Implementation = Literal["xla", "blockwise", "cudnn", "pallas"]
KERNELS = {
    "cudnn": (kernels.cudnn, kernels.unfit_for_cudnn),
    "pallas": (kernels.pallas, kernels.unfit_for_pallas),
}
KERNEL_OF = {"gpu": "cudnn", "tpu": "pallas"}
MOST_DIRECT_BYTES = 2**29
"""Maps of more bytes, over all heads and examples, are computed in blocks where no kernel fits."""


def dot_product_attention(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b m g d"],
    v: Float[Array, "*b m g e"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*b n k e"]:
    """o_i = Σ_j α_ij v_j,  α_ij = exp(s_ij) / Σ_j exp(s_ij),  s_ij = scale·q_iᵀ k_j + bias_ij, for each head by itself.

    Implementations, equal up to rounding:

    - "xla": the whole n×m map, differentiated by JAX, any number of times and in forward mode, too;
    - "blockwise": O(n + m) memory forward and backward, by an online softmax and a derivative of its own, which is of
      first order and for reverse mode only;
    - "cudnn": the fused kernel of cuDNN through jax.nn, on an NVIDIA GPU;
    - "pallas": JAX's kernels, flash attention on a TPU and, in float16, FlashAttention-3 on a Hopper GPU;
    - None takes "blockwise" on a CPU, and where nothing is differentiated "xla" if XLA fuses it (from jax 0.12 on,
      without bias, mask and dropout); on a GPU "cudnn" and on a TPU "pallas" where these fit, else "xla" for maps of up
      to 512 MiB in all and "blockwise" beyond.

    A kernel that was asked for and does not fit gives way to that choice, and a warning says why, once.

    Args:
        q: queries of k heads.
        k: keys; of g heads, each of which serves k/g heads of queries in a row (grouped-query attention; g = 1 is
            multi-query attention).
        v: values, of as many heads as the keys.
        bias: added to the scores; broadcasts to (*b, k, n, m).
        mask: True where a query sees a key; broadcasts likewise. A query that sees no key gets zeros.
        is_causal: query i sees the keys 0 to i only.
        scale: of the products, by default d^(-1/2).
        dropout_rate: the share of weights that are dropped, the others scaled up by 1/(1-rate). Which they are depends
            on the key and the place of the weight alone: not on implementation, blocks or devices.
        dropout_key: a random key, needed if the rate is not 0.
        implementation: how to compute it.

    Raises:
        InputError: shapes or types that do not fit each other; a rate outside [0, 1), or no key for it; an unknown
            implementation; an "xla" map of more than 1 GiB for an example's head.

    >>> q, k, v = jnp.zeros((1, 1, 2)), jnp.ones((2, 1, 2)), jnp.array([[[1.0]], [[3.0]]])
    >>> dot_product_attention(q, k, v)  # one query that prefers no key
    Array([[[2.]]], dtype=float32)

    Source: Vaswani et al., "Attention Is All You Need" (2017), arXiv:1706.03762; groups: Ainslie et al., "GQA: Training
    Generalized Multi-Query Transformer Models from Multi-Head Checkpoints" (2023), arXiv:2305.13245.
    """
    _check_arrays(q, k, v, bias, mask)
    check(0 <= dropout_rate < 1, f"dropout_rate must be in [0, 1), got {dropout_rate}.")
    check(not dropout_rate or dropout_key is not None, f"dropout_rate {dropout_rate} needs a dropout_key, got None.")
    check(
        implementation is None or implementation in get_args(Implementation),
        f"implementation must be one of {', '.join(get_args(Implementation))} or None, got {implementation!r}.",
    )
    dtype = jnp.result_type(q, k, v)
    x = kernels.Arrays(*(materialized(a.astype(dtype)) for a in (q, k, v)), bias, mask)
    rule = Rule(_scale(scale, q), is_causal, float(dropout_rate))
    chosen = _chosen(x, rule, implementation)
    if chosen in KERNELS:
        return KERNELS[chosen][0](x, rule)
    if chosen == "xla":
        check_map_fits(q.shape[-3], k.shape[-3], dtype)
        return disarrange(direct.attend(arrange(*x), dropout_key, rule))
    groups = k.shape[-2]
    grouped = x.q.reshape(*q.shape[:-2], groups, -1, q.shape[-1])
    tables = (group_heads(a, q.ndim, groups) for a in (bias, mask))
    attend = cpu.attend if chosen == "cpu" else blockwise.attend
    return attend(Operands(grouped, x.k, x.v, *tables), dropout_key, rule).reshape(*q.shape[:-1], v.shape[-1])


def dot_product_attention_weights(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b m g d"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "*b k n m"]:
    """α of `dot_product_attention` with the same arguments; rows sum to one, or are zero where a query sees no key.

    Raises:
        InputError: shapes or types that do not fit each other; a map of more than 1 GiB for an example's head.

    >>> dot_product_attention_weights(jnp.zeros((2, 1, 3)), jnp.ones((2, 1, 3)), is_causal=True)
    Array([[[1. , 0. ],
            [0.5, 0.5]]], dtype=float32)
    """
    _check_arrays(q, k, k, bias, mask)
    dtype = jnp.result_type(q, k)
    check_map_fits(q.shape[-3], k.shape[-3], dtype)
    q, k = (materialized(a.astype(dtype)) for a in (q, k))
    alpha = direct.weights(arrange(q, k, k, bias, mask), Rule(_scale(scale, q), is_causal, 0.0))
    return alpha.reshape(*q.shape[:-3], -1, *alpha.shape[-2:]).astype(dtype)


def _chosen(x, rule, asked):
    """The implementation asked for, or the one to be taken instead."""
    if asked in ("xla", "blockwise"):
        return asked
    if not all(isinstance(size, int) for size in x.q.shape):
        return "xla"  # a program for batches of any size, which the others cut in parts
    backend = jax.default_backend()
    kernel = asked or KERNEL_OF.get(backend)
    if kernel:
        reason = KERNELS[kernel][1](x, rule)
        if reason is None:
            return kernel
        if asked:
            _warn_once(f"attention by {asked!r} is not possible here, and another way is taken: {reason}.")
    if backend == "cpu":
        return "cpu"
    return "blockwise" if map_bytes(x.q, x.k.shape[-3]) > MOST_DIRECT_BYTES else "xla"


@functools.cache
def _warn_once(message):
    warnings.warn(message, stacklevel=4)


def _scale(scale, q):
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


def _check_arrays(q, k, v, bias, mask):
    shapes = f"got q {q.shape}, k {k.shape}, v {v.shape}"
    check(q.ndim >= 3 and q.ndim == k.ndim == v.ndim, f"q, k and v must be (*b, tokens, heads, features), {shapes}.")
    check(q.shape[:-3] == k.shape[:-3] == v.shape[:-3], f"q, k and v must have the same batch axes, {shapes}.")
    check_same_size(q=q.shape, k=k.shape, axes=(-1, -1))
    check(k.shape[-3:-1] == v.shape[-3:-1], f"k and v must have the same tokens and heads, {shapes}.")
    check(all(size >= 1 for size in (*q.shape, *k.shape, *v.shape)), f"no axis of q, k and v may be empty, {shapes}.")
    check(
        q.shape[-2] % k.shape[-2] == 0,
        f"the heads of k and v must divide those of q, got {k.shape[-2]} of k and v, {q.shape[-2]} of q.",
    )
    scores = (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    for name, x in (("bias", bias), ("mask", mask)):
        fits = x is None or (
            x.ndim <= len(scores)
            and all(size in (1, full) for size, full in zip(x.shape[::-1], scores[::-1], strict=False))
        )
        check(fits, f"{name} must broadcast to (*b, heads, queries, keys) = {scores}, got {getattr(x, 'shape', None)}.")
    check(
        bias is None or jnp.issubdtype(bias.dtype, jnp.floating),
        f"bias must be of floating-point numbers, got {getattr(bias, 'dtype', None)}.",
    )
    check(mask is None or mask.dtype == jnp.bool_, f"mask must be boolean, got {getattr(mask, 'dtype', None)}.")
