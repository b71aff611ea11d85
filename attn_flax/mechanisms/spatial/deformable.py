"""Deformable attention, over one map or over maps of several sizes.

    p_jlp = r + δ_jlp / (w_l, h_l),   δ = W_δ z + b_δ
    α_jlp = softmax_lp(W_α z + b_α)                           over the samples of all maps, for each head j
    y = W_O [o¹ … oᵏ] + b_O,   o^j = Σ_l Σ_p α_jlp v_l^j(p_jlp),   v_l = W_V x_l + b_V

for a query z whose reference point r = (x, y) is in shares of the image, where v_l(p) is the l-th map, of height h_l
and width w_l, read between its pixels by bilinear interpolation, with zeros outside. A query looks at a few learned
places around its own instead of everywhere, so the cost is linear in the positions and maps may be large.

At first the offsets do not depend on the query: head j looks along the direction 2πj/k, its p-th sample p cells away
along the farther axis, and all samples count alike.

Differs from the paper: nothing, for reference points; its reference boxes, by which a decoder scales the offsets, are
not here.

Source: Zhu, Su, Lu, Li, Wang and Dai, "Deformable DETR: Deformable Transformers for End-to-End Object Detection"
(2021), arXiv:2010.04159; stated from the paper's equations.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, check_heads, check_map, join_heads, promote


def deformable_locations(
    reference: Float[Array, "*b n 2"], offsets: Float[Array, "*b n k l p 2"], sizes: Sequence[tuple[int, int]]
) -> Float[Array, "*b n k l p 2"]:
    """p_jlp = r + δ_jlp / (w_l, h_l).

    Args:
        reference: r.
        offsets: δ, to the right and down, in cells of each map.
        sizes: (h_l, w_l).

    >>> deformable_locations(jnp.array([[0.5, 0.5]]), jnp.ones((1, 1, 2, 1, 2)), [(2, 4), (1, 2)]).squeeze()
    Array([[0.75, 1.  ],
           [1.  , 1.5 ]], dtype=float32)
    """
    width_and_height = jnp.asarray([size[::-1] for size in sizes], offsets.dtype)
    return reference[..., None, None, None, :] + offsets / width_and_height[:, None]


def deformable_weights(scores: Float[Array, "*b n k l p"]) -> Float[Array, "*b n k l p"]:
    """α = softmax_lp(scores).

    >>> deformable_weights(jnp.zeros((1, 1, 2, 2))).squeeze()
    Array([[0.25, 0.25],
           [0.25, 0.25]], dtype=float32)
    """
    return ops.softmax(scores.reshape(*scores.shape[:-2], -1)).reshape(scores.shape)


def deformable_attention(
    values: Sequence[Float[Array, "..."]],
    locations: Float[Array, "*b n k l p 2"],
    weights: Float[Array, "*b n k l p"],
) -> Float[Array, "*b n k e"]:
    """o^j = Σ_l Σ_p α_jlp v_l^j(p_jlp).

    Args:
        values: v_l of each map and head, (*b, h_l, w_l, k, e).
        locations: p_jlp, in shares of the image.
        weights: α_jlp.

    Raises:
        InputError: there are not as many maps as locations and weights are for.

    >>> v, between = jnp.array([2.0, 6.0]).reshape(1, 2, 1, 1), jnp.array([0.5, 0.5]).reshape(1, 1, 1, 1, 2)
    >>> deformable_attention([v], between, jnp.ones((1, 1, 1, 1))).squeeze()
    Array(4., dtype=float32)
    """
    check(
        len(values) == locations.shape[-3] == weights.shape[-2],
        f"values must be one map for each of the locations' and the weights', got {len(values)} for "
        f"{locations.shape[-3]} and {weights.shape[-2]}.",
    )
    grid = jnp.moveaxis(2 * locations - 1, -4, -5)  # (*b, k, n, l, p, 2)
    sampled = [
        ops.bilinear_sample(jnp.moveaxis(v, -2, -4), grid[..., level, :, :], align_corners=False)
        for level, v in enumerate(values)
    ]
    return jnp.einsum("...nklp,...knlpe->...nke", weights, jnp.stack(sampled, -3)).astype(values[0].dtype)


class MultiScaleDeformableAttention(nnx.Module):
    """Deformable attention of queries to maps of several sizes.

    Parameters: 2c² + 2c, and 3klp(c + 1) of offsets and scores.

    Args:
        channels: c.
        levels: l, the number of maps.
        num_heads: k, which must divide c.
        num_points: p, the samples of each head in each map.
        dtype: the type to compute in; by default that of input and parameters together. Positions are float32 or wider.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or heads that do not divide the channels, at construction; maps and queries that do
            not fit, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        levels: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        for name, size in (("levels", levels), ("num_points", num_points)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        samples = (num_heads, levels, num_points)
        zero = {"kernel_init": nnx.initializers.zeros}
        self.value = nnx.Linear(channels, channels, **types)
        self.offsets = nnx.Linear(channels, 2 * int(np.prod(samples)), **zero, **types)
        self.scores = nnx.Linear(channels, int(np.prod(samples)), **zero, **types)
        self.project = nnx.Linear(channels, channels, **types)
        self.offsets.bias.set_value(jnp.asarray(_first_offsets(*samples).ravel(), param_dtype))
        self.samples = samples

    def attention_map(
        self, z: Float[Array, "*b n c"], reference: Float[Array, "*b n 2"], maps: Sequence[Float[Array, "..."]]
    ) -> Float[Array, "*b n k l p"]:
        """α."""
        return self.sampling(z, reference, maps)[1]

    def sampling(
        self, z: Float[Array, "*b n c"], reference: Float[Array, "*b n 2"], maps: Sequence[Float[Array, "..."]]
    ) -> tuple[Float[Array, "*b n k l p 2"], Float[Array, "*b n k l p"]]:
        """Where the queries look, p_jlp, and what each sample counts, α."""
        self._check(z, reference, maps)
        z = promote(z, self.value)
        wide = ops.at_least_float32(z.dtype)
        offsets = self.offsets(z).reshape(*z.shape[:-1], *self.samples, 2).astype(wide)
        scores = self.scores(z).reshape(*z.shape[:-1], *self.samples)
        sizes = [x.shape[-3:-1] for x in maps]
        return deformable_locations(reference.astype(wide), offsets, sizes), deformable_weights(scores)

    def __call__(
        self, z: Float[Array, "*b n c"], reference: Float[Array, "*b n 2"], maps: Sequence[Float[Array, "..."]]
    ) -> Float[Array, "*b n c"]:
        """y.

        Args:
            z: the queries.
            reference: r of each.
            maps: x_l, (*b, h_l, w_l, c).
        """
        locations, weights = self.sampling(z, reference, maps)
        values = [self.value(x).reshape(*x.shape[:-1], self.samples[0], -1) for x in maps]
        return self.project(join_heads(deformable_attention(values, locations, weights)))

    def cost(self, n: int, positions: int) -> Cost:
        """For n queries to maps of so many positions in all."""
        c, samples = self.value.in_features, int(np.prod(self.samples))
        of_queries = c * c + 3 * samples * c + samples * c // self.samples[0]
        return Cost(2 * c * c + 2 * c + 3 * samples * (c + 1), n * of_queries + positions * c * c)

    def _check(self, z, reference, maps):
        channels, levels = self.value.in_features, self.samples[1]
        check_channels(z, channels)
        check(len(maps) == levels, f"maps must be {levels}, got {len(maps)}.")
        for x in maps:
            check_map(x, channels)
        check(
            z.ndim >= 2 and reference.shape == (*z.shape[:-1], 2),
            f"reference must be a point for each query, of shape {(*z.shape[:-1], 2)}, got {reference.shape}.",
        )


def _first_offsets(num_heads: int, levels: int, num_points: int) -> np.ndarray:
    """δ_jlp at first: p + 1 cells along the farther axis in the direction 2πj/k; (k, l, p, 2).

    >>> _first_offsets(4, 1, 2).squeeze().round(6).tolist()[:2]
    [[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]]]
    """
    angles = 2 * np.pi * np.arange(num_heads) / num_heads
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions /= np.abs(directions).max(-1, keepdims=True)
    steps = directions[:, None, None] * np.arange(1, num_points + 1)[:, None]
    return np.broadcast_to(steps, (num_heads, levels, num_points, 2))


class DeformableAttention(nnx.Module):
    """Deformable self-attention of one map: every position looks around itself.

    Parameters: 2c² + 2c, and 3kp(c + 1). Multiply-adds: for each position 2c² + 3kp·c + p·c.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        num_points: p, the samples of each head.
        dtype: the type to compute in; by default that of input and parameters together. Positions are float32 or wider.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or heads that do not divide the channels, at construction; an input that is no map
            of these channels, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        num_points: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attend = MultiScaleDeformableAttention(
            channels, levels=1, num_heads=num_heads, num_points=num_points, **types
        )

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w k p"]:
        """α."""
        weights = self.attend.attention_map(*self._inputs(x))
        return weights.reshape(*x.shape[:-1], weights.shape[-3], weights.shape[-1])

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return self.attend(*self._inputs(x)).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, _ = shape
        return self.attend.cost(h * w, h * w)

    def _inputs(self, x):
        check_map(x, self.attend.value.in_features)
        *batch, h, w, c = x.shape
        reference = ops.cell_centres(h, w).reshape(h * w, 2)
        return x.reshape(*batch, h * w, c), jnp.broadcast_to(reference, (*batch, h * w, 2)), [x]
