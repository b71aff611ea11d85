"""Attention rollout: what reaches a layer's tokens from those of the input, through all maps before it.

    Ã_l = (A_l + I) / 2, its rows divided by their sums
    R = Ã_L ⋯ Ã_2 Ã_1

The identity stands for the residual around each attention, A_l for its heads fused into one.

Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020), arXiv:2005.00928, which takes the heads'
mean.
"""

from collections.abc import Iterable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops import at_least_float32

Fusion = Literal["mean", "max", "min"]


def attention_rollout(
    maps: Iterable[Float[Array, "..."]], *, fuse: Fusion = "mean", num_batch_dims: int = 1
) -> Float[Array, "*b n n"]:
    """R, whose row i is how much of every input token there is in token i after the last map; rows sum to one.

    `draw_attention_maps(images, {"rollout": R})` draws it.

    Args:
        maps: of the layers in order, (*b, n, n) or with heads (*b, k, n, n), queries before keys: for a network whose
            attending Modules have such maps, `attention_maps(model, x).values()`.
        fuse: what of the heads is taken: the mean, or the largest or smallest weight.
        num_batch_dims: how many axes *b are.

    Raises:
        InputError: no map; maps of other layouts or of different sizes; an unknown way to fuse.

    >>> first, second = jnp.array([[[0.0, 1.0], [0.0, 1.0]]]), jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    >>> attention_rollout([first, second])
    Array([[[0.5 , 0.5 ],
            [0.25, 0.75]]], dtype=float32)
    """
    check(fuse in get_args(Fusion), f"fuse must be 'mean', 'max' or 'min', got {fuse!r}.")
    fused = [_fused(weights, fuse, num_batch_dims) for weights in maps]
    check(len(fused) > 0, "maps must hold at least one map.")
    shapes = [weights.shape for weights in fused]
    check(len(set(shapes)) == 1, f"maps must be of the same batch and tokens, got {shapes}.")
    rollout, *rest = map(_with_residual, fused)
    for weights in rest:
        rollout = jnp.matmul(weights, rollout, precision=jax.lax.Precision.HIGHEST)
    return rollout


def _fused(weights, fuse, num_batch_dims):
    check(
        weights.ndim - num_batch_dims in (2, 3) and weights.shape[-1] == weights.shape[-2],
        f"maps must be (*b, n, n) or (*b, k, n, n) with {num_batch_dims} batch axes, got shape {weights.shape}.",
    )
    weights = weights.astype(at_least_float32(weights.dtype))
    return weights if weights.ndim == num_batch_dims + 2 else getattr(jnp, fuse)(weights, -3)


def _with_residual(weights):
    weights = (weights + jnp.eye(weights.shape[-1], dtype=weights.dtype)) / 2
    return weights / weights.sum(-1, keepdims=True)
