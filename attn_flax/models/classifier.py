"""What networks that classify images share: the way from features to logits, and the parts between mechanisms."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layout import promote


class Classifier(nnx.Module):
    """logits = head(pool(forward_features(x))).

    A network that is one defines `features`, the maps after each stage, and `forward_features`, the last of them as the
    classifier takes it; `pool`, by default the mean over the positions of a map; and its layer `head`.
    """

    head: nnx.Module

    def pool(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """What of the features is classified."""
        return ops.average(x)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b classes"]:
        """The logits of images."""
        return self.head(self.pool(self.forward_features(x)))

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Puts a new head, for so many classes, in the place of the old one.

        Raises:
            InputError: num_classes below 1.
        """
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        old = self.head
        self.head = nnx.Linear(old.in_features, num_classes, dtype=old.dtype, param_dtype=old.param_dtype, rngs=rngs)


class LayerScale(nnx.Module):
    """y = γ ⊙ x, with a small γ at first, so that a deep network begins near the identity.

    Parameters: c.

    Source: Touvron, Cord, Sablayrolles, Synnaeve and Jégou, "Going deeper with Image Transformers" (2021),
    arXiv:2103.17239.

    Args:
        channels: c.
        init: of γ.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: taken as by all layers; nothing is random here.
    """

    def __init__(
        self,
        channels: int,
        init: float,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.gamma = nnx.Param(jnp.full(channels, init, param_dtype))
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y."""
        x = promote(x, self)
        return x * self.gamma[...].astype(x.dtype)


def drop_path(rate: float, *, axes: int, rngs: nnx.Rngs) -> nnx.Dropout:
    """Stochastic depth: in training each example's branch is left out at this rate, and the others enlarged for it.

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382.

    Args:
        rate: from 0 to below 1.
        axes: how many an example has: 2 for tokens (n, c), 3 for maps (h, w, c).
        rngs: with a stream "dropout", or a default one.

    Raises:
        InputError: a rate out of range.
    """
    check(0 <= rate < 1, f"drop_path_rate must be in [0, 1), got {rate}.")
    return nnx.Dropout(rate, broadcast_dims=tuple(range(-axes, 0)), rngs=rngs)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """The rates of all blocks, by stage: from zero in the first evenly to `rate` in the last.

    >>> drop_path_rates(0.3, (1, 3))
    [[0.0], [0.1, 0.2, 0.3]]
    """
    rates = np.linspace(0, rate, sum(depths)).round(12)
    return [part.tolist() for part in np.split(rates, np.cumsum(depths)[:-1])]


def in_order(blocks: Iterable[nnx.Module], x: Array, *others: Array, remat: bool = False) -> Array:
    """x after all blocks, each called with `others` as well.

    Args:
        blocks: applied one after another.
        x: the features.
        others: further arguments of every block.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
    """
    for block in blocks:
        x = nnx.remat(_call)(block, x, *others) if remat else block(x, *others)
    return x


def _call(block, *inputs):
    return block(*inputs)
