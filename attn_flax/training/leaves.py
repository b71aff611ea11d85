"""The arrays of a state by their names, as checkpoints and messages know them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from attn_flax.checks import InputError

LINES_SHOWN = 12


class ArchitectureError(InputError):
    """A checkpoint whose leaves are not those of the state to be restored."""


def leaf_names(tree: PyTree) -> list[str]:
    """The names of a tree's leaves, in its order.

    >>> leaf_names({"conv": {"bias": 0, "kernel": 1}, "scales": (2, 3)})
    ['conv.bias', 'conv.kernel', 'scales.0', 'scales.1']
    """
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tree)]


def is_key(leaf: Any) -> bool:
    """Whether an array, or what stands for one, holds random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def named_leaves(tree: PyTree) -> dict[str, Array]:
    """{"params.conv.kernel": array, …}; a random key as the numbers that it is made of."""
    numbers = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)
    return dict(zip(leaf_names(numbers), jax.tree.leaves(numbers), strict=True))


def from_named_leaves(arrays: Mapping[str, Array], like: PyTree) -> PyTree:
    """The tree of which these are the named leaves, with the structure and the random keys of the other."""
    leaves = [
        jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf)) if is_key(leaf) else arrays[name]
        for name, leaf in zip(leaf_names(like), jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_architecture(step: int, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ArchitectureError unless the leaves of a checkpoint have the names, shapes and types expected."""

    def shown(leaf):
        return "nothing" if leaf is None else f"{jnp.dtype(leaf.dtype).name}{tuple(leaf.shape)}"

    names = [*expected, *(name for name in saved if name not in expected)]
    pairs = {name: (shown(expected.get(name)), shown(saved.get(name))) for name in names}
    lines = [f"{name}: expected {one}, got {other}" for name, (one, other) in pairs.items() if one != other]
    if len(lines) > LINES_SHOWN:
        lines[LINES_SHOWN:] = [f"and {len(lines) - LINES_SHOWN} more"]
    if lines:
        raise ArchitectureError("\n  ".join([f"checkpoint {step} is that of another network or optimiser:", *lines]))
