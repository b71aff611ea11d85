"""The numbers of timm's modules into ours, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_flax.checks import InputError, check, listed
from attn_flax.interop.layouts import Leaf
from attn_flax.interop.timm_layers import timm_layers

SHOWN = 20
COUNTER = "num_batches_tracked"
"""PyTorch's count of the steps of a batch norm, which nothing here needs."""


def load_timm(module: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Sets the parameters and running statistics of a Module to those of timm's module of the same kind.

    Args:
        module: ours, configured like timm's, as `timm_attention` makes it.
        state_dict: timm's arrays by name, in PyTorch's layouts: NumPy arrays, or tensors that NumPy can read. Its step
            counters are passed over.

    Raises:
        InputError: a Module that timm has no counterpart of; entries missing, unexpected or of another shape, all of
            which are listed. The Module is as it was then.
    """
    theirs = {name: np.asarray(array) for name, array in state_dict.items() if not name.endswith(COUNTER)}
    ours = _leaves(module)
    places = {path: _place(module, path) for path in ours}
    expected = {name: leaf.to_torch(ours[path]).shape for path, (name, leaf) in places.items()}
    faults = [f"missing {name}" for name in expected.keys() - theirs.keys()]
    faults += [f"unexpected {name}" for name in theirs.keys() - expected.keys()]
    faults += [
        f"{name} must be {expected[name]}, got {theirs[name].shape}"
        for name in expected.keys() & theirs.keys()
        if theirs[name].shape != expected[name]
    ]
    check(not faults, f"the weights do not fit {type(module).__name__}: {listed(sorted(faults), SHOWN)}.")
    _set_leaves(module, [leaf.from_torch(theirs[name], ours[path].shape) for path, (name, leaf) in places.items()])


def to_timm(module: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters and running statistics of a Module by timm's names, in PyTorch's layouts; no step counters.

    Raises:
        InputError: a Module that timm has no counterpart of.
    """
    state = {}
    for path, array in _leaves(module).items():
        name, leaf = _place(module, path)
        state[name] = leaf.to_torch(array)
    return state


def _leaves(module):
    """The parameters and statistics, by path."""
    state = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(array)
        for path, array in jax.tree.leaves_with_path(state)
    }


def _place(module, path) -> tuple[str, Leaf]:
    """timm's name for one of our parameters, and its layout there."""
    for ours, (theirs, layer) in timm_layers(module).items():
        is_inside = path.startswith(f"{ours}.") if ours else "." not in path
        name = path.removeprefix(f"{ours}.")
        if is_inside and name in layer:
            return f"{theirs}.{layer[name].name}", layer[name]
    raise InputError(f"timm's {type(module).__name__} has no {path}: it was built with arguments unknown to timm.")


def _set_leaves(module, arrays):
    """Takes arrays in the order of `_leaves`."""
    state = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    old, structure = jax.tree.flatten(state)
    new = [jnp.asarray(array, leaf.dtype) for array, leaf in zip(arrays, old, strict=True)]
    nnx.update(module, jax.tree.unflatten(structure, new))
