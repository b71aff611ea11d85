"""Modules against their derivations in NumPy, in float64: values, maps and gradients.

An oracle is a function of one example's inputs and a dict p of the Module's numbers, "reduce.kernel" and the like, in
NumPy, from the paper's symbols, sharing no code with attn_flax. Its derivative is taken by central differences.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.models.networks import run

EXAMPLES = 2
STEP = 1e-6


def build(create, seed=0):
    """The Module that `create(param_dtype=…, rngs=…)` makes, in float64 and evaluation mode, its numbers at random."""
    with jax.enable_x64():
        module = create(param_dtype=jnp.float64, rngs=nnx.Rngs(seed))
        rng = np.random.default_rng(seed)
        for kind, move in (
            (nnx.Param, lambda p: p + 0.5 * rng.normal(size=p.shape)),
            (nnx.BatchStat, lambda p: p + 0.5 * rng.uniform(size=p.shape)),
        ):
            state = nnx.state(module, kind)
            nnx.update(module, jax.tree.map(lambda p, move=move: jnp.asarray(move(np.asarray(p)), jnp.float64), state))
        module.eval()
        return module


def numbers(module):
    """The parameters and statistics of a Module, by path."""
    state = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(p)
        for path, p in jax.tree.leaves_with_path(state)
    }


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(EXAMPLES, *shape)) for shape in shapes]


def assert_equal(create, oracle, *shapes, method="__call__", seed=0, rtol=1e-9, gradient=True):
    """That the Module, or another method of it, is the oracle, and its gradient the oracle's, on random inputs.

    The first array of what they give is compared if they give several; all of them if they give a dict.
    """
    module, inputs = build(create, seed), draw(shapes, seed + 1)
    p = numbers(module)
    expected = _each(oracle, inputs, p)
    out = run(module, *inputs, method=method)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-11), out, expected)
    if gradient:
        with jax.enable_x64():
            _assert_equal_slopes(module, method, oracle, inputs, p, seed)


def assert_different(create, oracle, *shapes, method="__call__", seed=0, by=1e-3):
    """That a mistaken oracle, a mutant, is told apart by these inputs."""
    module, inputs = build(create, seed), draw(shapes, seed + 1)
    wrong = jax.tree.leaves(_each(oracle, inputs, numbers(module)))[0]
    out = np.asarray(jax.tree.leaves(run(module, *inputs, method=method))[0])
    assert wrong.shape != out.shape or not np.abs(wrong - out).max() < by


def _each(oracle, inputs, p):
    each = [oracle(*(x[i] for x in inputs), p) for i in range(EXAMPLES)]
    return jax.tree.map(lambda *ys: np.stack(ys), *each)


def _assert_equal_slopes(module, method, oracle, inputs, p, seed):
    """The derivative of Σ dy·y along a random direction of the inputs and all parameters, by both."""
    rng = np.random.default_rng(seed + 2)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    cotangents = jax.tree.map(lambda y: rng.normal(size=y.shape), _each(oracle, inputs, p))

    def ours(params, *inputs):
        out = getattr(nnx.merge(graphdef, params, rest), method)(*inputs)
        return sum(jax.tree.leaves(jax.tree.map(lambda y, dy: (y * dy).sum(), out, cotangents)))

    def theirs(step):
        moved = {name: value + step * directions.get(name, 0) for name, value in p.items()}
        out = _each(oracle, [x + step * dx for x, dx in zip(inputs, towards, strict=True)], moved)
        return sum(jax.tree.leaves(jax.tree.map(lambda y, dy: (y * dy).sum(), out, cotangents)))

    gradients = jax.jit(jax.grad(ours, argnums=tuple(range(1 + len(inputs)))))(params, *map(jnp.asarray, inputs))
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(params)]
    of_params = dict(zip(paths, jax.tree.leaves(gradients[0]), strict=True))
    for _ in range(2):
        directions = {name: rng.normal(size=g.shape) for name, g in of_params.items()}
        towards = [rng.normal(size=x.shape) for x in inputs]
        slope = sum((g * directions[name]).sum() for name, g in of_params.items())
        slope += sum((g * dx).sum() for g, dx in zip(gradients[1:], towards, strict=True))
        numeric = (theirs(STEP) - theirs(-STEP)) / (2 * STEP)
        np.testing.assert_allclose(slope, numeric, rtol=1e-5, atol=1e-6 * max(1.0, abs(theirs(0.0))))
