"""The contract that every mechanism of the catalogue keeps."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import explain
from attn_flax.catalog import CATALOG, create_attention, describe_attention
from attn_flax.checks import InputError
from tests import costs
from tests.contract import CASES
from tests.contract.case import is_shape

OWN_ARGUMENTS_AT_MOST = 8
QUICK = {
    "article", "article_gate", "attention_gate", "cbam", "coord", "dia", "divided_st", "dynamic_conv", "gcnet",
    "mhsa", "non_local", "se", "simam", "sk", "temporal_mhsa", "tokenlearner",
}  # fmt: skip
"""Of each family and kind some; the others in the full tier."""
in_full = pytest.mark.full


def test_every_mechanism_has_a_case():
    assert CASES.keys() == CATALOG.keys()


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK else in_full) for name in sorted(CATALOG)])
def name(request):
    return request.param


def create(name, seed=0, **arguments):
    return create_attention(name, CASES[name].shape[-1], rngs=nnx.Rngs(seed), **CASES[name].arguments, **arguments)


@functools.cache
def build(name, **arguments):
    """The mechanism in evaluation mode, all its parameters and running statistics perturbed at random."""
    module = create(name, **arguments)
    rng = np.random.default_rng(1)
    for kind, move in (
        (nnx.Param, lambda p: p + 0.3 * rng.normal(size=p.shape)),
        (nnx.BatchStat, lambda p: p + 0.3 * rng.uniform(size=p.shape)),
    ):
        state = nnx.state(module, kind)
        nnx.update(module, jax.tree.map(lambda p, move=move: jnp.asarray(move(p), p.dtype), state))
    module.eval()
    return module


@functools.cache
def run(name, method="__call__"):
    """The compiled call, or map, of the perturbed mechanism."""
    module = build(name)
    return jax.jit(lambda *inputs: getattr(module, method)(*inputs))


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def assert_close(actual, desired):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), actual, desired)


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


class Around(nnx.Module):
    """A network that holds a mechanism."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, *inputs):
        return self.inner(*inputs)


def test_output_and_map_have_their_layout_and_law(name):
    case, inputs = CASES[name], CASES[name].inputs(2)
    out = run(name)(*inputs)
    y = jax.tree.leaves(out)[0]
    assert (y.shape, y.dtype) == ((2, *(case.out_shape or case.shape)), inputs[0].dtype)
    assert case.out_shape is None or CATALOG[name].kind == "pool"
    assert y.shape != inputs[0].shape or not np.allclose(y, inputs[0], atol=1e-3)
    weights = run(name, "attention_map")(*inputs)
    assert shapes(weights) == jax.tree.map(lambda shape: (2, *shape), case.map_shape, is_leaf=is_shape)
    jax.tree.map(lambda part: case.law(np.asarray(part)), weights)


@in_full
def test_examples_do_not_depend_on_their_batch(name):
    inputs, others = CASES[name].inputs(2), CASES[name].inputs(2, seed=1)
    mixed = jax.tree.map(lambda x, other: x.at[1:].set(other[1:]), inputs, others)
    one, same = run(name)(*inputs), run(name)(*mixed)
    assert_close(*(jax.tree.map(lambda y: y[0], out) for out in (same, one)))
    assert np.abs(jax.tree.leaves(same)[0][1] - jax.tree.leaves(one)[0][1]).max() > 1e-3


@in_full
def test_its_cost_is_as_it_says(name):
    case = CASES[name]
    cost = describe_attention(name, case.shape, **case.arguments).cost
    assert cost.parameters == sum(p.size for p in jax.tree.leaves(nnx.state(build(name), nnx.Param)))
    computed = costs.multiply_adds(build(name), *case.inputs())
    assert cost.multiply_adds < computed if case.computes_more else cost.multiply_adds == computed


@in_full
@pytest.mark.parametrize("batch", [(), (3, 2)])
def test_any_batch_axes_give_what_each_example_gives(name, batch):
    inputs = CASES[name].inputs(*batch)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), inputs)
    for method in ("__call__", "attention_map"):
        each = [run(name, method)(*jax.tree.map(lambda x, i=i: x[i], flat)) for i in range(len(flat[0]))]
        expected = jax.tree.map(lambda *ys: jnp.stack(ys).reshape(*batch, *ys[0].shape), *each)
        assert_close(run(name, method)(*inputs), expected)


@in_full
def test_jit_and_vmap_change_nothing(name):
    module, inputs = build(name), CASES[name].inputs(3)
    assert_close(run(name)(*inputs), module(*inputs))
    assert_close(jax.vmap(module)(*inputs), run(name)(*inputs))


@in_full
def test_every_gradient_is_finite_and_none_is_zero(name):
    module, inputs = build(name), CASES[name].inputs(2)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params, *inputs):
        out = jax.tree.leaves(nnx.merge(graphdef, params, rest)(*inputs))[0]
        return (out * np.random.default_rng(2).normal(size=out.shape)).sum()

    gradients = leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(nnx.to_pure_dict(params), *inputs))
    assert len(gradients) == 1 + len(jax.tree.leaves(params))
    assert CASES[name].zero_gradients.keys() <= gradients.keys()
    for path, gradient in gradients.items():
        assert jnp.isfinite(gradient).all(), path
        assert bool(jnp.abs(gradient).max() > 0) is (path not in CASES[name].zero_gradients), path


@in_full
@pytest.mark.parametrize("size", [(1, 1), (4, 1)])
def test_small_maps_are_finite_or_refused(name, size):
    if CATALOG[name].kind != "map" or CASES[name].others:
        pytest.skip("takes no map alone")
    module = build(name)
    x = np.random.default_rng(0).normal(size=(2, *size, CASES[name].shape[-1])).astype("float32")
    try:
        value, gradient = jax.jit(jax.value_and_grad(lambda x: module(x).sum()))(x)
    except InputError:
        return
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@in_full
def test_its_map_comes_out_of_any_network(name):
    inputs = CASES[name].inputs(2)
    maps = explain.attention_maps(Around(build(name)), *inputs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5),
        maps["inner"],
        run(name, "attention_map")(*inputs),
    )


@in_full
def test_the_seed_decides_the_parameters(name):
    def parameters(seed):
        return jax.tree.leaves(nnx.state(create(name, seed), nnx.Param))

    one, same, other = parameters(0), parameters(0), parameters(1)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    is_random = any(np.ptp(p) > 0 for p in one)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True)) is is_random


@in_full
def test_bfloat16_is_near_float32_over_float32_parameters(name):
    wide, narrow = build(name), build(name, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(narrow, nnx.Param))} <= {jnp.dtype("float32")}
    inputs = CASES[name].inputs(2)
    expected, out = (jax.tree.leaves(module(*inputs))[0] for module in (wide, narrow))
    assert out.dtype == jnp.bfloat16
    error = jnp.linalg.norm(out.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
    assert error < 0.1


def test_the_constructor_reads_as_all_others(name):
    parameters = inspect.signature(CATALOG[name].module.__init__).parameters
    _, channels, *others = parameters.values()
    assert channels.name == "channels"
    assert channels.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert channels.default is inspect.Parameter.empty
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others)
    assert parameters["rngs"].default is inspect.Parameter.empty
    assert len(parameters.keys() - {"self", "channels", "rngs", "dtype", "param_dtype"}) <= OWN_ARGUMENTS_AT_MOST
    assert {"dtype", "param_dtype"} <= parameters.keys()


def test_its_file_tells_title_equation_and_source(name):
    document = CATALOG[name].document
    assert min(map(len, (document.title, document.equation, document.source))) > 0


@in_full
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_lowered_for_gpu_and_tpu_with_its_gradient(name, dtype):
    module = build(name, dtype=dtype)
    inputs = jax.eval_shape(functools.partial(CASES[name].inputs, 2, dtype=dtype))
    step = jax.jit(jax.value_and_grad(lambda *inputs: jax.tree.leaves(module(*inputs))[0].sum().astype(jnp.float32)))
    exported = jax.export.export(step, platforms=["cuda", "tpu"])(*inputs)
    assert exported.platforms == ("cuda", "tpu")
    assert "stablehlo." in exported.mlir_module()
