"""Attention that never compares two tokens: keys and values are summed to a d×e map first, which the queries read.

Cost and memory are O(n·d·e) and O(d·e), the number of tokens squared enters nowhere. All sums, softmaxes and norms are
in float32 or wider, results in the type of the values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_flax.checks import check_same_size
from attn_flax.ops.normalizers import guarded_reciprocal
from attn_flax.ops.precision import at_least_float32

SMALLEST_NORM = 1e-12


def elu_plus_one(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """φ(x) = elu(x) + 1: x + 1 where x is positive, eˣ elsewhere; positive everywhere.

    Source: Katharopoulos et al., "Transformers are RNNs" (2020), arXiv:2006.16236, equation 7.
    """
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def linear_attention(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b m k_kv d_k"],
    v: Float[Array, "*b m_v k_v e"],
    *,
    feature_map: Callable[[Array], Array],
    epsilon: float = 1e-6,
) -> Float[Array, "*b n k e"]:
    """o_i = (Σ_j v_j φ(k_j)ᵀ) φ(q_i) / (φ(q_i)ᵀ Σ_j φ(k_j)), with the similarity φ(q_i)ᵀ φ(k_j).

    The division is guarded: with d the denominator, 1/d is d/(d²+ε²), so the weights sum to d²/(d²+ε²) and o is zero
    where no key resembles the query. The paper adds nothing to d, its authors' code adds ε.

    Args:
        q: the queries.
        k: the keys.
        v: the values.
        feature_map: φ, applied to the features of each token and head; the similarity is a kernel, and the weights
            an average, where φ is positive, as `elu_plus_one` is.
        epsilon: ε.

    Raises:
        InputError: q and k differ in d or heads; k and v differ in m or heads.

    >>> v = jnp.array([[1.0], [2.0], [3.0], [6.0]])[:, None]
    >>> linear_attention(jnp.ones((1, 1, 2)), jnp.zeros((4, 1, 2)), v, feature_map=elu_plus_one).squeeze()
    Array(3., dtype=float32)

    Source: Katharopoulos, Vyas, Pappas and Fleuret, "Transformers are RNNs: Fast Autoregressive Transformers with
    Linear Attention" (2020), arXiv:2006.16236.
    """
    _check(q, k, v)
    q, k, v_wide = _widened(q, k, v)
    q, k = feature_map(q), feature_map(k)
    denominator = jnp.einsum("...nkd,...kd->...nk", q, k.sum(-3))
    o = _read(q, k, v_wide) * guarded_reciprocal(denominator, epsilon=epsilon)[..., None]
    return o.astype(v.dtype)


def efficient_attention(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b m k_kv d_k"], v: Float[Array, "*b m_v k_v e"]
) -> Float[Array, "*b n k e"]:
    """o_i = (Σ_j v_j κ_jᵀ) ρ_i, with ρ_i the softmax of q_i over its features and κ the softmax of k over its tokens.

    The weights ρ_iᵀ κ_j are positive and sum to one over j. Nothing else is scaled: of the paper's two normalisations
    this is "softmax"; the other divides q and k by √n each.

    Raises:
        InputError: q and k differ in d or heads; k and v differ in m or heads.

    >>> v = jnp.array([[1.0], [2.0], [3.0], [6.0]])[:, None]
    >>> efficient_attention(jnp.zeros((1, 1, 2)), jnp.zeros((4, 1, 2)), v).squeeze()
    Array(3., dtype=float32)

    Source: Shen, Zhang, Zhao, Yi and Li, "Efficient Attention: Attention with Linear Complexities" (2018),
    arXiv:1812.01243.
    """
    _check(q, k, v)
    q, k, v_wide = _widened(q, k, v)
    return _read(jax.nn.softmax(q, axis=-1), jax.nn.softmax(k, axis=-3), v_wide).astype(v.dtype)


def cross_covariance_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b n_k k_kv c"], *, temperature: Float[Array, "*heads"] | float
) -> Float[Array, "*b k d c"]:
    """α_ij = softmax_j(τ q̂_iᵀ k̂_j) for the features i of q and j of k, each a unit vector over the tokens.

    In float32 or wider. As in the authors' code the learned τ multiplies; the paper writes its inverse.

    Args:
        q: the queries.
        k: the keys.
        temperature: τ, a number or one for each head.

    Raises:
        InputError: q and k differ in tokens or heads.

    Source: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers" (2021), arXiv:2106.09681.
    """
    check_same_size(q=q.shape, k=k.shape, axes=(-3, -3))
    check_same_size(q=q.shape, k=k.shape, axes=(-2, -2))
    wide = at_least_float32(jnp.promote_types(q.dtype, k.dtype))
    covariance = jnp.einsum("...nkd,...nkc->...kdc", q, k, preferred_element_type=wide)
    scale = _inverse_norms(q, wide)[..., :, None] * _inverse_norms(k, wide)[..., None, :]
    return jax.nn.softmax(covariance * scale * jnp.asarray(temperature, wide)[..., None, None], axis=-1)


def cross_covariance_attention(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b n_k k_kv c"],
    v: Float[Array, "*b n_v k_v c_v"],
    *,
    temperature: Float[Array, "*heads"] | float,
) -> Float[Array, "*b n_v k d"]:
    """o_i = Σ_j α_ij v_j over features: the weights of `cross_covariance_weights` mix the features of every token.

    Args:
        q: the queries.
        k: the keys.
        v: the values.
        temperature: τ, a number or one for each head.

    Raises:
        InputError: q and k differ in tokens or heads; k and v differ in features or heads.

    >>> x = jnp.arange(12.0).reshape(3, 2, 2)
    >>> cross_covariance_attention(x, x, x, temperature=0.0)[0]
    Array([[0.5, 0.5],
           [2.5, 2.5]], dtype=float32)

    Source: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers" (2021), arXiv:2106.09681.
    """
    check_same_size(k=k.shape, v=v.shape, axes=(-1, -1))
    check_same_size(k=k.shape, v=v.shape, axes=(-2, -2))
    weights = cross_covariance_weights(q, k, temperature=temperature)
    return jnp.einsum("...kdc,...nkc->...nkd", weights, v.astype(weights.dtype)).astype(v.dtype)


def _check(q, k, v):
    check_same_size(q=q.shape, k=k.shape, axes=(-1, -1))
    check_same_size(q=q.shape, k=k.shape, axes=(-2, -2))
    check_same_size(k=k.shape, v=v.shape, axes=(-3, -3))
    check_same_size(k=k.shape, v=v.shape, axes=(-2, -2))


def _widened(*arrays):
    wide = at_least_float32(jnp.result_type(*arrays))
    return [a.astype(wide) for a in arrays]


def _read(q, k, v):
    return jnp.einsum("...nkd,...kde->...nke", q, jnp.einsum("...mkd,...mke->...kde", k, v))


def _inverse_norms(x, wide):
    """1 / max(‖x‖, 10⁻¹²) over the tokens, whose derivative at zero is zero."""
    return jax.lax.rsqrt(jnp.maximum(jnp.square(x.astype(wide)).sum(-3), SMALLEST_NORM**2))
