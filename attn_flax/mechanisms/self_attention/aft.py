"""Attention-free transformer.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    y_i = sigmoid(q_i) ∘ Σ_j exp(k_j + w_ij) ∘ v_j / Σ_j exp(k_j + w_ij)

where i and j are tokens, or the positions of a map, and exp, products and quotient are taken feature by feature. The
learned number w_ij depends on the two places alone, and the key on one; so what every feature attends to, as if it were
a head of its own, takes two matrix products and no n×n map of the tokens. The forms:

    full     any w_ij
    local    w_ij = 0 unless i and j are less than s apart, on each axis
    simple   w_ij = 0
    conv     w_ij = w_(j-i) in a window of size s, else 0; one such window for each head, a group of features

All of them see all tokens: a w_ij of zero is a weight like the others.

Differs from the paper: the w_ij are learned as they are, neither as products of small factors nor standardised, and
start at zero. exp is taken of k less its largest, feature by feature, and of w less its largest, row by row, which
cancel. A denominator of less than about 1e-37 counts as zero, where k and w differ by more than 80 among the tokens,
and such a y_i is zero.

Errors elsewhere: External-Attention-pytorch takes exp without subtracting the largest, which overflows, and forms an
array of n×b×n×c; fast-transformers multiplies k_j by w_ij.

Source: Zhai, Talbott, Srivastava, Huang, Goh, Zhang and Susskind, "An Attention Free Transformer" (2021),
arXiv:2105.14103. Stated from the paper's equations, not compared with the authors' code.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, check_heads, flatten_positions, promote
from attn_flax.ops.scores import check_map_fits

Form = Literal["full", "local", "simple", "conv"]
SMALLEST = 1e-37


def aft_weights(k: Float[Array, "*b n c"], w: Float[Array, "*features n n"]) -> Float[Array, "*b c n n"]:
    """exp(k_j + w_ij) / Σ_j exp(k_j + w_ij) of every feature, a row for each i.

    Args:
        k: the keys.
        w: the w_ij, for all features or for each.
    """
    return ops.softmax(jnp.swapaxes(k, -1, -2)[..., None, :] + w).astype(k.dtype)


def aft(
    q: Float[Array, "*b n c"],
    k: Float[Array, "*b n c"],
    v: Float[Array, "*b n c"],
    mix: Callable[[Array], Array],
) -> Float[Array, "*b n c"]:
    """y = sigmoid(q) ∘ mix(exp(k) ∘ v) / mix(exp(k)), with the weights of `aft_weights`, none of which is computed.

    Args:
        q: the queries.
        k: the keys.
        v: the values.
        mix: z -> Σ_j exp(w_ij) z_j up to a positive factor for each i and feature, on (*b, n, c): `aft_sum`,
            `aft_biased_sum` or `aft_convolved_sum`.

    >>> v = jnp.array([[1.0], [3.0]])
    >>> aft(0 * v, 0 * v, v, aft_sum)  # half of the mean
    Array([[1.],
           [1.]], dtype=float32)
    """
    wide = ops.at_least_float32(v.dtype)
    q, k, v_wide = (a.astype(wide) for a in (q, k, v))
    keys = jnp.exp(k - jax.lax.stop_gradient(k.max(-2, keepdims=True)))
    average = mix(keys * v_wide) * ops.guarded_reciprocal(mix(keys), epsilon=SMALLEST)
    return (jax.nn.sigmoid(q) * average).astype(v.dtype)


def aft_sum(z: Float[Array, "*b n c"]) -> Float[Array, "*b 1 c"]:
    """Σ_j z_j."""
    return z.sum(-2, keepdims=True)


def aft_biased_sum(z: Float[Array, "*b n c"], w: Float[Array, "n n"]) -> Float[Array, "*b n c"]:
    """Σ_j exp(w_ij) z_j, divided by the largest exp(w_ij) of the row."""
    w = w.astype(z.dtype)
    return jnp.einsum("nm,...mc->...nc", jnp.exp(w - jax.lax.stop_gradient(w.max(-1, keepdims=True))), z)


def aft_convolved_sum(
    z: Float[Array, "*b n c"], w: Float[Array, "*window k"], size: tuple[int, ...]
) -> Float[Array, "*b n c"]:
    """(exp(w) - 1) * z + Σ_j z_j, divided by the largest of exp(w) and 1 of each head; * is a convolution.

    Args:
        z: the features of n positions in row-major order.
        w: the window of each head.
        size: of the map.
    """
    w = jnp.repeat(w.astype(z.dtype), z.shape[-1] // w.shape[-1], axis=-1)
    largest = jax.lax.stop_gradient(jnp.maximum(w.max(range(w.ndim - 1)), 0))
    near = ops.depthwise_conv(z.reshape(*z.shape[:-2], *size, -1), jnp.exp(w - largest) - jnp.exp(-largest))
    return near.reshape(z.shape) + jnp.exp(-largest) * aft_sum(z)


class AttentionFreeTransformer(nnx.Module):
    """The attention of the attention-free transformer over the positions of maps, or over tokens.

    Parameters: 3c² + 3c, and n² if full or local, s^axes·heads if conv. Multiply-adds: 3n·c², and 2n²·c if full or
    local, 2n·c·s^axes if conv.

    Args:
        channels: c.
        size: of the map, as many numbers as `num_spatial_dims`, if full or local; else of no effect, None say.
        form: "full", "local", "simple" or "conv".
        window: s; of no effect if full or simple, and odd if conv.
        num_heads: which must divide c; of no effect unless conv.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: an unknown form, sizes below 1, no size where one is needed, or heads or a window that do not fit,
            at construction; at the call, channels, axes or another size that do not fit, or for `attention_map` a map
            of more than 1 GiB for an example's feature.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, ...] | None,
        form: Form = "full",
        window: int = 7,
        num_heads: int = 1,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(form in get_args(Form), f"form must be one of {', '.join(get_args(Form))}, got {form!r}.")
        check_heads(channels, num_heads)
        check(window >= 1, f"window must be at least 1, got {window}.")
        check(form != "conv" or window % 2 == 1, f"window must be odd for form 'conv', got {window}.")
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        if form in ("full", "local"):
            check(
                size is not None and len(size) == num_spatial_dims and min(size) >= 1,
                f"size must be {num_spatial_dims} numbers of at least 1 for form {form!r}, got {size}.",
            )
            size, shape = tuple(size), (math.prod(size),) * 2
        else:
            size, shape = None, (*(window,) * num_spatial_dims, num_heads)
        self.qkv = nnx.Linear(channels, 3 * channels, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.w = nnx.data(None if form == "simple" else nnx.Param(jnp.zeros(shape, param_dtype)))
        self.form = form
        self.size = size
        self.window = window
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b c n n"]:
        """exp(k_j + w_ij) / Σ_j exp(k_j + w_ij) of every feature, positions in row-major order."""
        _, k, _ = self._split(x)
        n = k.shape[-2]
        check_map_fits(n, n, k.dtype)
        return aft_weights(k, self._dense(self._size(x)))

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        return aft(*self._split(x), self._mix(self._size(x))).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n = math.prod(positions)
        terms = {"full": n, "local": n, "simple": 0, "conv": self.window**self.num_spatial_dims}[self.form]
        learned = 0 if self.w is None else self.w.size
        return Cost(3 * c * c + 3 * c + learned, 3 * n * c * c + 2 * n * c * terms)

    def _mix(self, size):
        """The sum over the tokens of this form."""
        if self.form == "simple":
            return aft_sum
        if self.form == "conv":
            return lambda z: aft_convolved_sum(z, self.w[...], size)
        return lambda z: aft_biased_sum(z, self._dense(size))

    def _dense(self, size):
        """w_ij, for all features or for each."""
        n = math.prod(size)
        if self.form == "simple":
            return jnp.zeros((n, n))
        if self.form == "full":
            return self.w[...]
        steps = _steps(size)
        if self.form == "local":
            return jnp.where((np.abs(steps) < self.window).all(-1), self.w[...], 0)
        reach = self.window // 2
        met = self.w[tuple(np.moveaxis(np.clip(steps, -reach, reach) + reach, -1, 0))]
        near = jnp.where((np.abs(steps) <= reach).all(-1)[..., None], met, 0)
        return jnp.moveaxis(jnp.repeat(near, self.qkv.in_features // near.shape[-1], axis=-1), -1, 0)

    def _split(self, x):
        check_channels(x, self.qkv.in_features)
        tokens = flatten_positions(promote(x, self.qkv), self.num_spatial_dims)
        size = self._size(x)
        check(self.size in (None, size), f"x must be of size {self.size} for form {self.form!r}, got shape {x.shape}.")
        return jnp.split(self.qkv(tokens), 3, axis=-1)

    def _size(self, x):
        return x.shape[-1 - self.num_spatial_dims : -1]


def _steps(size):
    """The steps on each axis from position i to position j of a map, (n, n, axes)."""
    positions = np.stack(np.unravel_index(np.arange(math.prod(size)), size), -1)
    return positions[None] - positions[:, None]
