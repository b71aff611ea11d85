"""The contract that every mechanism of the catalogue keeps."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.catalog import CATALOG, create_attention
from tests.contract_cases import CASES

OWN_ARGUMENTS_AT_MOST = 8


def test_every_mechanism_has_a_case():
    assert CASES.keys() == CATALOG.keys()


@pytest.fixture(params=sorted(CATALOG))
def name(request):
    return request.param


def build(name, seed=0, **arguments):
    """The mechanism in evaluation mode, all its parameters perturbed at random."""
    module = create_attention(name, CASES[name].shape[-1], rngs=nnx.Rngs(seed), **arguments)
    keys = nnx.Rngs(seed + 1)
    params = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p: p + 0.3 * jax.random.normal(keys(), p.shape, p.dtype), params))
    module.eval()
    return module


def example(name, *batch, seed=0, dtype=jnp.float32):
    shape = (*batch, *CASES[name].shape)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def assert_close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


def test_output_has_the_layout_of_the_input(name):
    module, x = build(name), example(name, 2)
    assert CATALOG[name].kind == "map"
    assert (module(x).shape, module(x).dtype) == (x.shape, x.dtype)
    assert not np.allclose(module(x), x, atol=1e-3)


@pytest.mark.parametrize("batch", [(), (3,), (3, 2)])
def test_any_batch_axes_give_what_each_example_gives(name, batch):
    module, x = build(name), example(name, *batch)
    flat = x.reshape(-1, *CASES[name].shape)
    for f, shape in ((module, CASES[name].shape), (module.attention_map, CASES[name].map_shape)):
        assert_close(f(x), jnp.stack([f(one) for one in flat]).reshape(*batch, *shape))


def test_jit_and_vmap_change_nothing(name):
    module, x = build(name), example(name, 3)
    assert_close(nnx.jit(lambda module, x: module(x))(module, x), module(x))
    assert_close(jax.vmap(module)(x), module(x))


def test_examples_do_not_depend_on_their_batch(name):
    module, x = build(name), example(name, 3)
    other = x.at[1:].set(example(name, 2, seed=1))
    assert_close(module(other)[0], module(x)[0])
    assert np.abs(module(other)[1] - module(x)[1]).max() > 1e-3


def test_every_gradient_is_finite_and_none_is_zero(name):
    module, x = build(name), example(name, 2)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    cotangent = example(name, 2, seed=1)

    def loss(params, x):
        return (nnx.merge(graphdef, params, rest)(x) * cotangent).sum()

    gradients = leaves(jax.grad(loss, argnums=(0, 1))(nnx.to_pure_dict(params), x))
    assert len(gradients) == 1 + len(jax.tree.leaves(params))
    assert CASES[name].zero_gradients.keys() <= gradients.keys()
    for path, gradient in gradients.items():
        assert jnp.isfinite(gradient).all(), path
        assert bool(jnp.abs(gradient).max() > 0) is (path not in CASES[name].zero_gradients), path


def test_the_seed_decides_the_parameters(name):
    def parameters(seed):
        module = create_attention(name, CASES[name].shape[-1], rngs=nnx.Rngs(seed))
        return jax.tree.leaves(nnx.state(module, nnx.Param))

    one, same, other = parameters(0), parameters(0), parameters(1)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_map_keeps_its_law(name):
    weights = np.asarray(build(name).attention_map(example(name, 3)))
    assert weights.shape == (3, *CASES[name].map_shape)
    CASES[name].law(weights)


def test_bfloat16_is_near_float32_over_float32_parameters(name):
    wide, narrow = build(name), build(name, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(narrow, nnx.Param))} == {jnp.dtype("float32")}
    x = example(name, 2)
    expected, out = wide(x), narrow(x)
    assert out.dtype == jnp.bfloat16
    error = jnp.linalg.norm(out.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
    assert error < 0.1


def test_the_constructor_reads_as_all_others(name):
    parameters = inspect.signature(CATALOG[name].module.__init__).parameters
    _, channels, *others = parameters.values()
    assert channels.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert channels.default is inspect.Parameter.empty
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others)
    assert parameters["rngs"].default is inspect.Parameter.empty
    assert len(parameters.keys() - {"self", channels.name, "rngs", "dtype", "param_dtype"}) <= OWN_ARGUMENTS_AT_MOST
    assert {"dtype", "param_dtype"} <= parameters.keys()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_lowered_for_gpu_and_tpu_with_its_gradient(name, dtype):
    module = build(name, dtype=dtype)
    step = jax.jit(jax.value_and_grad(lambda x: module(x).sum().astype(jnp.float32)))
    exported = jax.export.export(step, platforms=["cuda", "tpu"])(jax.ShapeDtypeStruct((2, *CASES[name].shape), dtype))
    assert exported.platforms == ("cuda", "tpu")
    assert "stablehlo.dot_general" in exported.mlir_module()
