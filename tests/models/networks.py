"""Networks made without drawing their initial values, which takes long: to be counted, or to get other numbers."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models import create_model

assert_equal = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


def first_quick(names):
    """All but the first run only with --full."""
    return [pytest.param(name, marks=pytest.mark.full if i else []) for i, name in enumerate(names)]


def parameters(name, **arguments):
    """How many the network of that name has."""
    return _count(lambda: create_model(name, **arguments, rngs=nnx.Rngs(0)))


def parameters_of(models, name):
    """How many the network of that name in a family's MODELS has."""
    network, own = models[name]
    return _count(lambda: network(1000, **own, rngs=nnx.Rngs(0)))


def _count(create):
    return sum(p.size for p in jax.tree.leaves(nnx.state(nnx.eval_shape(create), nnx.Param)))


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


def float32(*shape):
    return jnp.asarray(random(*shape), jnp.float32)


forward = jax.jit(lambda module, x: module(x))


def in_training(create, param_dtype=np.float32, **arguments):
    """As `build` makes it, but in training, and with keys for what is left out."""
    network, _ = build(create, param_dtype, **arguments)
    network.train()
    nnx.reseed(network, default=0)
    return network


def assert_leaves_out_whole_examples(block, x, form):
    """`form` gives y with the first branch so many times, and the second; of the block 0.6 are left out."""
    kept = 1 / 0.4
    y = nnx.jit(lambda block, x: block(x))(block, x)
    outcomes = [form(block, x, *times) for times in itertools.product((0, kept), repeat=2)]
    examples = [np.isclose(y, z, rtol=1e-4, atol=1e-4).all((1, 2, 3)).sum() for z in outcomes]
    assert sum(examples) == len(x)
    assert min(examples) > 0
    block.eval()
    np.testing.assert_allclose(forward(block, x), form(block, x, 1, 1), rtol=1e-4, atol=1e-4)


@jax.enable_x64()
def assert_the_same_computed_anew(create, images):
    """Value, gradient and statistics in training, with and without `remat`, some branches left out."""
    results = []
    for remat in (False, True):
        network = in_training(create, np.float64, remat=remat, drop_path_rate=0.5)
        loss = nnx.jit(nnx.value_and_grad(lambda network, x: jnp.square(network(x)).sum()))
        value, gradient = loss(network, jnp.asarray(images, jnp.float64))
        results.append((value, gradient, nnx.state(network, nnx.BatchStat)))
    kept, anew = map(jax.tree.leaves, results)
    assert kept[0] > 0.01
    for ours, theirs in zip(anew, kept, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def assert_computes_in_its_type(create, images):
    """In bfloat16 over parameters of float32, near what it is in float32."""
    wide, narrow = (build(create, np.float32, dtype=dtype)[0] for dtype in (None, jnp.bfloat16))
    logits, expected = forward(narrow, images), forward(wide, images)
    assert logits.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(logits) - expected) < 0.05 * np.linalg.norm(expected)
