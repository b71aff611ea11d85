"""Attention normalised by the plain sum of its scores, which needs no n×m map."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_flax.checks import check_same_size
from attn_flax.ops.normalizers import guarded_reciprocal, sum_normalize
from attn_flax.ops.precision import at_least_float32
from attn_flax.ops.scores import attend, dot_product_scores


def sum_attention(
    q: Float[Array, "*b n d"], k: Float[Array, "*b m d"], v: Float[Array, "*b m e"], *, epsilon: float = 1e-6
) -> Float[Array, "*b n e"]:
    """o_i = Σ_j (q_iᵀ k_j) v_j / Σ_j q_iᵀ k_j, by the cheaper of its two associations.

    Without a softmax between the products they re-associate exactly,

        o_i = (Σ_j v_j k_jᵀ) q_i / (q_iᵀ Σ_j k_j),

    in d·e·(n+m) multiply-adds and O(d·e) memory, against n·m·(d+e) and O(n·m) for the map. The division is that of
    `sum_normalize`.

    With u the unit round-off, γ = 2(m+2d)u, d_i the denominator and g' the derivative of d/(d²+ε²), the two forms
    differ in o_i by at most

        γ (|g(d_i)| Σ_j |q_i|ᵀ|k_j| |v_j|  +  |g'(d_i)| |Σ_j (q_iᵀk_j) v_j| |q_i|ᵀ Σ_j |k_j|)

    to first order in u: the error grows with the cancellation in the sums, not with their length alone.

    Raises:
        InputError: q and k differ in d, or k and v in m.
    """
    check_same_size(q=q.shape, k=k.shape, axes=(-1, -1))
    check_same_size(k=k.shape, v=v.shape, axes=(-2, -2))
    n, m, d, e = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    if n * m * (d + e) <= d * e * (n + m):
        return attend(sum_normalize(dot_product_scores(q, k), epsilon=epsilon), v)
    return _reassociated(q, k, v, epsilon=epsilon)


def _reassociated(q, k, v, *, epsilon):
    wide = at_least_float32(jnp.result_type(q, k, v))
    kv = jnp.einsum("...md,...me->...de", k, v, preferred_element_type=wide)
    numerator = jnp.einsum("...nd,...de->...ne", q.astype(wide), kv)
    denominator = jnp.einsum("...nd,...d->...n", q.astype(wide), k.sum(-2, dtype=wide))
    return (numerator * guarded_reciprocal(denominator, epsilon=epsilon)[..., None]).astype(v.dtype)
