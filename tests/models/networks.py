"""Networks made without drawing their initial values, which takes long: to be counted, or to get other numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_flax.models import create_model


def parameters(name, **arguments):
    """How many the network of that name has."""
    model = nnx.eval_shape(lambda: create_model(name, **arguments, rngs=nnx.Rngs(0)))
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def build(create, param_dtype=np.float64, **arguments):
    """The Module in evaluation mode, its parameters and statistics random and of moderate size; and these, by path."""
    with jax.enable_x64():
        module = nnx.eval_shape(lambda: create(param_dtype=param_dtype, rngs=nnx.Rngs(0), **arguments))
    rng = np.random.default_rng(0)
    state = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    leaves, structure = jax.tree.flatten_with_path(state)
    numbers = {jax.tree_util.keystr(path, simple=True, separator="."): _draw(rng, leaf.shape) for path, leaf in leaves}
    numbers = {name: np.abs(x) if name.endswith(".var") else x for name, x in numbers.items()}
    with jax.enable_x64():
        nnx.update(module, jax.tree.unflatten(structure, [jnp.asarray(x, param_dtype) for x in numbers.values()]))
    module.eval()
    return module, numbers


def _draw(rng, shape):
    is_kernel = len(shape) > 1
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) if is_kernel else rng.uniform(0.5, 1.5, shape)


def run(module, *inputs, method="__call__"):
    """What it gives in float64, compiled."""
    with jax.enable_x64():
        return jax.jit(lambda module, *inputs: getattr(module, method)(*inputs))(
            module, *jax.tree.map(jnp.asarray, inputs)
        )


def random(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)
