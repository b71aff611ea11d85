"""What networks that classify images share: the way from features to logits, and the parts between mechanisms."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

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
    classifier takes it; `pool`, by default the mean over the positions of a map; and its layer `head`. Where there are
    several such layers, `heads` names them all. Its blocks are in lists whose names `block_lists` matches: a list of
    blocks, of lists of them, or of Modules that have them in a list `blocks`.
    """

    heads: ClassVar[tuple[str, ...]] = ("head",)
    block_lists: ClassVar[str] = r"(\w+_)?blocks(_\w+)?|layers|layer\d|levels|(post_)?network|stages"

    def pool(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """What of the features is classified."""
        return ops.average(x)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b classes"]:
        """The logits of images."""
        return self.head(self.pool(self.forward_features(x)))

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Puts a new head, for so many classes, in the place of each old one.

        Raises:
            InputError: num_classes below 1.
        """
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        for name in self.heads:
            old = getattr(self, name)
            types = {"dtype": old.dtype, "param_dtype": old.param_dtype}
            setattr(self, name, nnx.Linear(old.in_features, num_classes, **types, rngs=rngs))

    def block_paths(self) -> list[list[str]]:
        """The paths of the blocks, by stages, from the input to the output.

        A list with a number in its name, such as layer1, is a stage; of another list each item is one.
        """
        names = sorted(name for name, part in vars(self).items() if isinstance(part, nnx.List))
        stages = []
        for name in filter(re.compile(self.block_lists).fullmatch, names):
            each = _blocks_of_items(name, getattr(self, name))
            stages += [list(itertools.chain(*each))] if name[-1].isdigit() else each
        return stages


def _blocks_of_items(path, items):
    """For each item that has blocks their paths; where none has any, each is a block itself."""
    lists = {}
    for i, item in enumerate(items):
        if isinstance(item, nnx.List):
            lists[f"{path}.{i}"] = item
        elif isinstance(getattr(item, "blocks", None), nnx.List):
            lists[f"{path}.{i}.blocks"] = item.blocks
    if not lists:
        return [[f"{path}.{i}"] for i in range(len(items))]
    return [list(itertools.chain(*_blocks_of_items(name, blocks))) for name, blocks in lists.items()]


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Those of images for which a number stands for both.

    >>> height_and_width(224), height_and_width((224, 160))
    ((224, 224), (224, 160))
    """
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def count_patches(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """How many patches there are along both axes of images.

    Raises:
        InputError: images that the patches do not divide.

    >>> count_patches((224, 160), 16)
    (14, 10)
    """
    height, width = image_size
    check(
        min(height, width) >= patch_size and height % patch_size == width % patch_size == 0,
        f"images must be of patches of {patch_size}×{patch_size}, got {height}×{width}.",
    )
    return height // patch_size, width // patch_size


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
    _check_rate(rate)
    return nnx.Dropout(rate, broadcast_dims=tuple(range(-axes, 0)), rngs=rngs)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """The rates of all blocks, by stage: from zero in the first evenly to `rate` in the last.

    Raises:
        InputError: a rate out of range.

    >>> drop_path_rates(0.3, (1, 3))
    [[0.0], [0.1, 0.2, 0.3]]
    """
    _check_rate(rate)
    rates = np.linspace(0, rate, sum(depths)).round(12)
    return [part.tolist() for part in np.split(rates, np.cumsum(depths)[:-1])]


def _check_rate(rate):
    check(0 <= rate < 1, f"drop_path_rate must be in [0, 1), got {rate}.")


class Stage(nnx.Module):
    """Blocks one after another, behind what makes the map of the stage before them smaller.

    Args:
        downsample: the layer that does so, or None in the first stage.
        blocks: of the stage.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
    """

    def __init__(self, downsample: nnx.Module | None, blocks: Iterable[nnx.Module], *, remat: bool = False):
        self.downsample = nnx.data(downsample)
        self.blocks = nnx.List(blocks)
        self.remat = remat

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map after the last block."""
        if self.downsample is not None:
            x = self.downsample(x)
        return in_order(self.blocks, x, remat=self.remat)


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


def after_each(blocks: Iterable[nnx.Module], x: Array, *, remat: bool = False) -> list[Array]:
    """x after each of the blocks, with `remat` as in `in_order`."""
    results = []
    for block in blocks:
        x = in_order([block], x, remat=remat)
        results.append(x)
    return results


def _call(block, *inputs):
    return block(*inputs)
