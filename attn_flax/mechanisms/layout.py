"""How the Modules read their input: its channels, positions and type."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attn_flax.checks import check


def check_channels(x: Array, channels: int) -> None:
    """Raises InputError unless the last axis of x has the given size."""
    check(
        x.ndim >= 1 and x.shape[-1] == channels,
        f"x must have {channels} channels on its last axis, got shape {x.shape}.",
    )


def flatten_positions(x: Float[Array, "*s c"], num_spatial_dims: int) -> Float[Array, "*b n c"]:
    """Lays the axes of positions before the channels out as one, in row-major order.

    >>> flatten_positions(jnp.ones((2, 7, 5, 3)), 2).shape
    (2, 35, 3)
    """
    check(
        x.ndim > num_spatial_dims,
        f"x must have {num_spatial_dims} axes of positions and one of channels, got shape {x.shape}.",
    )
    *batch_and_positions, c = x.shape
    return x.reshape(*batch_and_positions[: x.ndim - 1 - num_spatial_dims], -1, c)


def promote(x: Float[Array, "*s"], linear: nnx.Linear) -> Float[Array, "*s"]:
    """x in the type that `linear` computes in: its `dtype`, or where that is None the wider of input and parameters."""
    return x.astype(linear.dtype or jnp.result_type(x, linear.param_dtype))
