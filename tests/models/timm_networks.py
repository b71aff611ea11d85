"""timm's networks with random numbers in them, and those numbers in ours, by a plain renaming of the layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests import timm_oracle

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
RENAMED = (
    (r"\battention\.excite\.", "se."),
    (r"\breduce\b", "fc1"),
    (r"\bexpand\b", "fc2"),
    (r"^patch_embed\b", "patch_embed.proj"),
)


def random_network(name, **arguments):
    """timm's network in evaluation mode, its parameters and running statistics random and of moderate size."""
    network = timm_oracle.load("models").create_model(name, **arguments).eval()
    import torch

    rng = np.random.default_rng(0)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            if "running_var" in key:
                numbers = rng.uniform(0.5, 2, value.shape)
            elif value.ndim > 1:
                numbers = rng.normal(size=value.shape) / np.sqrt(value[0].numel())
            else:
                numbers = 0.1 * rng.normal(size=value.shape) + key.endswith("weight")
            value.copy_(torch.from_numpy(np.asarray(numbers, np.float32)))
    return network


def copy_numbers(theirs, ours, **further):
    """Sets all of our numbers to theirs; `further` renames layers, ours to theirs. Every one of theirs is used.

    So do the pairs of patterns and names that the network's class holds as `timm_names`.
    """
    numbers = {k: v.numpy() for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = nnx.to_pure_dict(nnx.state(ours, (nnx.Param, nnx.BatchStat)))
    paths, structure = jax.tree.flatten_with_path(state)
    given = [(rf"^{our_name}\b", name) for our_name, name in further.items()]
    renamed = (*RENAMED, *getattr(type(ours), "timm_names", ()), *given)
    leaves = []
    for path, leaf in paths:
        name = _their_name(jax.tree_util.keystr(path, simple=True, separator="."), renamed)
        array = numbers.pop(name)
        order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(array.ndim) if name.endswith("weight") else None
        leaves.append(jnp.asarray((array if order is None else array.transpose(order)).reshape(leaf.shape)))
        assert array.size == leaf.size, name
    assert not numbers, numbers.keys()
    nnx.update(ours, jax.tree.unflatten(structure, leaves))
    ours.eval()


def _their_name(path, renamed):
    for pattern, theirs in renamed:
        path = re.sub(pattern, theirs, path)
    layer, _, leaf = path.rpartition(".")
    return f"{layer}.{LEAVES.get(leaf, leaf)}".lstrip(".")


def images(*shape):
    """Random images of different contrast for us, and for timm."""
    import torch

    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x *= 4 ** np.arange(len(x), dtype=np.float32)[:, None, None, None]
    return jnp.asarray(x), torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def channels_last(maps):
    """What timm gives, in our layout."""
    return np.moveaxis(maps.detach().numpy(), 1, -1)
