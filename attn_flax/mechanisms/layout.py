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


def check_map(x: Array, channels: int) -> None:
    """Raises InputError unless x is a map (*b, h, w, channels)."""
    check_channels(x, channels)
    check(x.ndim >= 3, f"x must be a map (*b, h, w, {channels}), got shape {x.shape}.")


def check_video(x: Array, channels: int) -> None:
    """Raises InputError unless x is a video (*b, t, h, w, channels)."""
    check_channels(x, channels)
    check(x.ndim >= 4, f"x must be a video (*b, t, h, w, {channels}), got shape {x.shape}.")


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


def check_heads(channels: int, num_heads: int) -> None:
    """Raises InputError unless so many channels can be divided into so many heads."""
    check(channels >= 1, f"channels must be at least 1, got {channels}.")
    check(
        num_heads >= 1 and channels % num_heads == 0,
        f"num_heads must be at least 1 and divide channels, got num_heads={num_heads}, channels={channels}.",
    )


def count_heads(channels: int, head_dim: int) -> int:
    """How many heads of so many features the channels make.

    Raises:
        InputError: channels or features below 1, or features that do not divide the channels.

    >>> count_heads(96, 32)
    3
    """
    check(channels >= 1, f"channels must be at least 1, got {channels}.")
    check(
        head_dim >= 1 and channels % head_dim == 0,
        f"head_dim must be at least 1 and divide channels, got head_dim={head_dim}, channels={channels}.",
    )
    return channels // head_dim


def split_heads(x: Float[Array, "*s c"], parts: int, num_heads: int) -> tuple[Float[Array, "*s k d"], ...]:
    """The parts of the features, such as queries, keys and values, each cut into heads.

    >>> [part.shape for part in split_heads(jnp.ones((7, 24)), 3, 2)]
    [(7, 2, 4), (7, 2, 4), (7, 2, 4)]
    """
    return tuple(jnp.unstack(x.reshape(*x.shape[:-1], parts, num_heads, -1), axis=-3))


def join_heads(x: Float[Array, "*s k d"]) -> Float[Array, "*s c"]:
    """The features of all heads side by side."""
    return x.reshape(*x.shape[:-2], -1)


def promote(x: Float[Array, "*s"], layer: nnx.Module) -> Float[Array, "*s"]:
    """x in the type that a layer computes in: its `dtype`, or where that is None the wider of x and `param_dtype`."""
    return x.astype(layer.dtype or jnp.result_type(x, layer.param_dtype))


def reduced(channels: int, reduction: int, *, at_least: int = 1) -> int:
    """⌊channels / reduction⌋, the width of a bottleneck, but not below a floor.

    Raises:
        InputError: channels or a reduction below 1.

    >>> reduced(64, 16), reduced(8, 16), reduced(64, 16, at_least=8)
    (4, 1, 8)
    """
    check(channels >= 1, f"channels must be at least 1, got {channels}.")
    check(reduction >= 1, f"reduction must be at least 1, got {reduction}.")
    return max(channels // reduction, at_least)


def hidden_width(channels: int, reduction: int, hidden: int | None, *, at_least: int = 1) -> int:
    """The width of a bottleneck that was asked for, or if none was the `reduced` one.

    Raises:
        InputError: channels, a reduction or a width below 1.
    """
    default = reduced(channels, reduction, at_least=at_least)
    width = default if hidden is None else hidden
    check(width >= 1, f"hidden must be at least 1, got {width}.")
    return width
