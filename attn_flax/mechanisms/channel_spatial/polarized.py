"""Polarized self-attention.

    A_ch = sigmoid(LN(W_z Σ_i softmax_i(q_i) v_i)),   q = W_q x,  v = W_v x
    A_sp,i = sigmoid(softmax_c(mean_j(Q_j))ᵀ V_i),   Q = W'_q x,  V = W'_v x
    y = A_ch · x + A_sp · x     or     y = A_sp(z) · z,  z = A_ch · x

with q of one channel, v, Q and V of c/2, and W_z back to c. Each branch gives up one direction, positions or channels,
down to a single vector of softmax weights, and keeps the other whole; the two gates act side by side and are added, or
one after the other.

Differs from the paper: W_q has no bias, since one number added to all scores leaves their softmax as it is. The
authors' code is another form (`authors_code`), of layers without biases: side by side it has no norm and A_sp =
sigmoid(softmax_i(mean_j(Q_j)ᵀ V_i)); in sequence W_z is W_2 relu(LN(W_1 ·)), over a quarter of the c/2 channels, with
biases, no norm after, and the softmax is of every channel of V over the positions.

Source: Liu, Liu, Fan and Huang, "Polarized Self-Attention: Towards High-quality Pixel-wise Regression" (2021),
arXiv:2107.00782; the authors' form compared with their code, the paper's with the reading of a widely copied
implementation.
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote, reduced

Layout = Literal["parallel", "sequential"]
BOTTLENECK = 4


def polarized_channel_weights(
    x: Float[Array, "*b h w c"], query: Callable, value: Callable, restore: Callable
) -> Float[Array, "*b c"]:
    """A_ch = sigmoid(restore(Σ_i softmax_i(q_i) v_i)), in (0, 1), one for each channel.

    Args:
        x: maps.
        query: x -> q, any callable from (*b, n, c) to (*b, n, 1).
        value: x -> v, any callable from (*b, n, c) to (*b, n, e).
        restore: from (*b, e) to (*b, c), in the paper LN(W_z ·).
    """
    x = flatten_positions(x, 2)
    weights = _softmax(query(x)[..., 0])
    return jax.nn.sigmoid(restore(jnp.einsum("...n,...ne->...e", weights, value(x))))


def softmax_of_query(q: Float[Array, "*b e"], v: Float[Array, "*b n e"]) -> Float[Array, "*b n"]:
    """softmax(q)ᵀ v_i, the paper's scores."""
    return _match(_softmax(q), v)


def softmax_of_scores(q: Float[Array, "*b e"], v: Float[Array, "*b n e"]) -> Float[Array, "*b n"]:
    """softmax_i(qᵀ v_i), those of the authors' parallel code."""
    return _softmax(_match(q, v))


def softmax_of_values(q: Float[Array, "*b e"], v: Float[Array, "*b n e"]) -> Float[Array, "*b n"]:
    """qᵀ softmax_i(v_i), those of the authors' sequential code."""
    return _match(q, jnp.swapaxes(ops.softmax(jnp.swapaxes(v, -2, -1)), -2, -1))


def polarized_spatial_weights(
    x: Float[Array, "*b h w c"], query: Callable, value: Callable, *, match: Callable = softmax_of_query
) -> Float[Array, "*b h w"]:
    """A_sp = sigmoid(match(query(mean_hw(x)), value(x))), in (0, 1), one for each position.

    The mean is taken first, which for a linear query is the same.

    Args:
        x: maps.
        query: x -> Q, a linear callable from (*b, c) to (*b, e).
        value: x -> V, any callable from (*b, n, c) to (*b, n, e).
        match: the scores of the averaged query and the values.
    """
    return jax.nn.sigmoid(match(query(ops.average(x)), value(flatten_positions(x, 2)))).reshape(x.shape[:-1])


def polarized(
    x: Float[Array, "*b h w c"], by_channel: Callable, by_position: Callable, *, sequential: bool = False
) -> Float[Array, "*b h w c"]:
    """The two gates side by side, A_ch · x + A_sp · x, or one after the other.

    Args:
        x: maps.
        by_channel: x -> A_ch, such as `polarized_channel_weights`.
        by_position: x -> A_sp, such as `polarized_spatial_weights`.
        sequential: whether A_sp is taken of, and applied to, A_ch · x.

    >>> x, half = jnp.array([[[2.0, 4.0]]]), lambda x: jnp.full(1, 0.5)
    >>> polarized(x, half, lambda x: x[..., 0]), polarized(x, half, lambda x: x[..., 0], sequential=True)
    (Array([[[ 5., 10.]]], dtype=float32), Array([[[1., 2.]]], dtype=float32))
    """
    z = by_channel(x)[..., None, None, :] * x
    return by_position(z)[..., None] * z if sequential else z + by_position(x)[..., None] * x


class PolarizedSelfAttention(nnx.Module):
    """Polarized self-attention over maps of any size.

    Parameters, for even c: 2c² + 5.5c; of the authors' code 2c² + c in parallel, and in sequence with c divisible by 8
    1.6875c² + 2.375c. Multiply-adds, with n positions and e = ⌊c/2⌋: n·(c + 2ce + 2e) + 2ce, where the last c·e, of
    W_z, becomes (e + c)·⌊e/4⌋ in the authors' sequential form.

    Args:
        channels: c.
        layout: "parallel" or "sequential".
        authors_code: whether to compute what the authors' code does and not what their paper says.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: channels below 1 or an unknown layout at construction; an input that is no map of these channels at
            the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        layout: Layout = "parallel",
        authors_code: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        inner = reduced(channels, 2)
        check(layout in get_args(Layout), f"layout must be 'parallel' or 'sequential', got {layout!r}.")
        self.sequential = layout == "sequential"
        self.authors_code = authors_code
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.channel_query = nnx.Linear(channels, 1, use_bias=False, **layer)
        self.channel_value = nnx.Linear(channels, inner, use_bias=not authors_code, **layer)
        self.spatial_query = nnx.Linear(channels, inner, use_bias=not authors_code, **layer)
        self.spatial_value = nnx.Linear(channels, inner, use_bias=not authors_code, **layer)
        self.restore = nnx.Sequential(*self._restoring_layers(channels, inner, **layer))

    def _restoring_layers(self, channels, inner, **layer):
        norm = functools.partial(LayerNorm, epsilon=1e-5, **layer)
        if not self.authors_code:
            return nnx.Linear(inner, channels, **layer), norm(channels)
        if not self.sequential:
            return (nnx.Linear(inner, channels, use_bias=False, **layer),)
        narrow = reduced(inner, BOTTLENECK)
        return nnx.Linear(inner, narrow, **layer), norm(narrow), jax.nn.relu, nnx.Linear(narrow, channels, **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """A_ch (*b, c) as "channel" and A_sp (*b, h, w) as "spatial"."""
        x = self._map(x)
        by_channel = self._by_channel(x)
        z = by_channel[..., None, None, :] * x if self.sequential else x
        return {"channel": by_channel, "spatial": self._by_position(z)}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return polarized(self._map(x), self._by_channel, self._by_position, sequential=self.sequential)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, e = h * w, self.channel_value.out_features
        restoring, others = e * c, 3 * e + 3 * c  # numbers in matrices, in biases and norms
        if self.authors_code and self.sequential:
            narrow = reduced(e, BOTTLENECK)
            restoring, others = narrow * (e + c), 3 * narrow + c
        elif self.authors_code:
            others = 0
        return Cost(c + 3 * c * e + restoring + others, n * (c + 2 * c * e + 2 * e) + c * e + restoring)

    def _by_channel(self, x):
        return polarized_channel_weights(x, self.channel_query, self.channel_value, self.restore)

    def _by_position(self, x):
        return polarized_spatial_weights(x, self.spatial_query, self.spatial_value, match=self._match())

    def _match(self):
        if not self.authors_code:
            return softmax_of_query
        return softmax_of_values if self.sequential else softmax_of_scores

    def _map(self, x):
        check_map(x, self.channel_query.in_features)
        return promote(x, self.channel_query)


def _match(q, v):
    return jnp.einsum("...e,...ne->...n", q, v)


def _softmax(scores):
    """Of vectors; `ops.softmax` is of matrices."""
    return ops.softmax(scores[..., None, :])[..., 0, :]
