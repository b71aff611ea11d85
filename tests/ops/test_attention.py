"""Softmax attention: each implementation against loops, its gradients against the textbook's, and its laws."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attn_flax import ops
from attn_flax.ops.attention import blockwise
from attn_flax.ops.attention.cuts import Cut
from tests.ops.attention_cases import cases, naive_attention, naive_weights, textbook

OURS = ("xla", "blockwise")
ONE_QUICK = [pytest.param("xla", marks=pytest.mark.full), "blockwise"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 3 or more, so that small arrays have several."""
    monkeypatch.setattr(blockwise, "CPU_ELEMENTS", 12)
    monkeypatch.setattr(blockwise, "LEAST", 3)


def operands(*shape, keys=None, groups=None, values=None, dtype="float32", seed=0):
    *batch, n, heads, d = shape
    rng = np.random.default_rng(seed)
    m, g, e = keys or n, groups or heads, values or d
    shapes = ((*batch, n, heads, d), (*batch, m, g, d), (*batch, m, g, e))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(attend, *arrays):
    """Its output, and its gradients to a random cotangent that bfloat16 holds exactly."""
    output, pull_back = jax.vjp(attend, *arrays)
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=output.shape), "bfloat16")
    return output, *pull_back(cotangent.astype(output.dtype))


def check_case(case, implementation):
    arrays, bias, options = case
    with jax.enable_x64():
        arrays = [jnp.asarray(x) for x in arrays]
        given = arrays if bias is None else [*arrays, jnp.asarray(bias)]
        jax_options = {name: jnp.asarray(x) if name == "mask" else x for name, x in options.items()}

        def attend(q, k, v, bias=None):
            return ops.dot_product_attention(q, k, v, bias=bias, implementation=implementation, **jax_options)

        ours = with_gradients(attend, *given)
        expected = with_gradients(functools.partial(textbook, **jax_options), *given)
    np.testing.assert_allclose(ours[0], naive_attention(*map(np.asarray, arrays), bias=bias, **options), atol=1e-12)
    chex.assert_trees_all_close(ours, expected, atol=1e-11)


@pytest.mark.parametrize("implementation", ONE_QUICK)
@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_values_and_gradients(implementation, case):
    check_case(case, implementation)


@pytest.mark.full
@pytest.mark.parametrize("implementation", OURS)
@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), elements=st.sampled_from([4, 30, 200, 2**19]))
def test_many_values_and_gradients(implementation, case, elements):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "CPU_ELEMENTS", elements)
        check_case(case, implementation)


@pytest.mark.full
@settings(max_examples=8, deadline=None, derandomize=True)
@given(case=cases())
def test_weights(case):
    (q, k, _), bias, options = case
    with jax.enable_x64():
        tables = {
            name: x if x is None else jnp.asarray(x) for name, x in (("bias", bias), ("mask", options.get("mask")))
        }
        static = {name: option for name, option in options.items() if name not in tables}
        weights = jax.jit(functools.partial(ops.dot_product_attention_weights, **static))(q, k, **tables)
    np.testing.assert_allclose(weights, naive_weights(q, k, bias=bias, **options), atol=1e-13)


@pytest.mark.parametrize("implementation", [None, *OURS])
def test_blocks_of_the_size_in_use(implementation):
    """Longer than a block of queries and than one of keys, in lengths that do not divide."""
    q, k, v = operands(1, 389, 3, 7, keys=4500, values=5)
    bias = jnp.asarray(np.random.default_rng(5).normal(size=(3, 389, 1)), "float32")

    def attend(q, k, v, bias):
        return ops.dot_product_attention(q, k, v, bias=bias, implementation=implementation)

    ours = with_gradients(attend, q, k, v, bias)
    with jax.enable_x64():
        wide = [jnp.asarray(x, "float64") for x in (q, k, v, bias)]
        expected = with_gradients(textbook, *wide)
    for one, other in zip(ours[:-1], expected[:-1], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    np.testing.assert_allclose(ours[-1], expected[-1], atol=2e-5)  # a bias that is equal for all keys does nothing


@pytest.mark.parametrize("implementation", OURS)
@pytest.mark.usefixtures("small_blocks")
def test_a_query_that_sees_nothing_gets_zeros(implementation):
    q, k, v = operands(2, 7, 2, 3, keys=5)
    mask = np.random.default_rng(3).random((2, 1, 7, 5)) < 0.5
    mask[0, 0, 4] = mask[1, 0, 0] = False
    attend = functools.partial(ops.dot_product_attention, mask=jnp.asarray(mask), implementation=implementation)
    output, *gradients = with_gradients(attend, q, k, v)
    assert not output[0, 4].any()
    assert not output[1, 0].any()
    np.testing.assert_allclose(output, naive_attention(*map(np.asarray, (q, k, v)), mask=mask), atol=1e-6)
    assert not gradients[0][0, 4].any()
    assert all(np.isfinite(gradient).all() and gradient.any() for gradient in gradients)


@pytest.mark.full
def test_bf16_is_no_worse_than_that_of_jax():
    """Of output and gradients together; each by itself, rounded at other places, by 5 % at most."""
    narrow = operands(2, 67, 3, 16, keys=53, dtype="bfloat16")
    with jax.enable_x64():
        exact = with_gradients(textbook, *(x.astype("float64") for x in narrow))

    def errors(attend):
        outputs = with_gradients(attend, *narrow)
        assert all(x.dtype == jnp.bfloat16 for x in outputs)
        differences = (np.asarray(x).astype("float64") - np.asarray(y) for x, y in zip(outputs, exact, strict=True))
        return np.array([np.abs(difference).mean() for difference in differences])

    theirs = errors(jax.nn.dot_product_attention)
    for name in OURS:
        ours = errors(functools.partial(ops.dot_product_attention, implementation=name))
        assert ours.sum() <= theirs.sum()
        assert (ours <= 1.05 * theirs).all()


@pytest.mark.full
@pytest.mark.usefixtures("small_blocks")
def test_dropout_drops_the_same_weights_everywhere():
    rate, m = 0.3, 41
    q, k, _ = operands(2, 37, 4, 5, keys=m, groups=2)
    v = jnp.broadcast_to(jnp.eye(m)[:, None], (2, m, 2, m))  # so that the output is the weights
    attend = functools.partial(ops.dot_product_attention, dropout_rate=rate, dropout_key=jax.random.key(4))
    outputs = [with_gradients(functools.partial(attend, implementation=name), q, k, v) for name in OURS]
    chex.assert_trees_all_close(*outputs, atol=1e-5)
    dropped = np.swapaxes(outputs[0][0], -2, -3)
    weights = ops.dot_product_attention_weights(q, k)
    survived = dropped > 0
    np.testing.assert_allclose(dropped, np.where(survived, weights / (1 - rate), 0), atol=1e-6)
    share, deviation = survived.mean(), (rate * (1 - rate) / survived.size) ** 0.5
    assert abs(share - (1 - rate)) < 4 * deviation
    assert abs(np.corrcoef(survived[0, 0].ravel(), survived[0, 1].ravel())[0, 1]) < 0.1
    again = with_gradients(functools.partial(attend, implementation="xla"), q, k, v)[0]
    np.testing.assert_array_equal(again, outputs[0][0])


@pytest.mark.parametrize("implementation", ONE_QUICK)
@pytest.mark.usefixtures("small_blocks")
def test_transformations(implementation):
    q, k, v = operands(4, 7, 2, 3, keys=5)
    attend = functools.partial(ops.dot_product_attention, implementation=implementation)
    expected = with_gradients(attend, q, k, v)

    def one(q, k, v, cotangent):
        output, pull_back = jax.vjp(attend, q, k, v)
        return output, *pull_back(cotangent)

    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=expected[0].shape), "bfloat16").astype("float32")
    chex.assert_trees_all_close(jax.vmap(one)(q, k, v, cotangent), expected, atol=1e-6)
    chex.assert_trees_all_close(jax.pmap(one, devices=jax.devices()[:4])(q, k, v, cotangent), expected, atol=1e-6)
    chex.assert_trees_all_close(with_gradients(jax.checkpoint(attend), q, k, v), expected, atol=1e-6)
    chex.assert_trees_all_close(with_gradients.__wrapped__(attend, q, k, v), expected, atol=1e-6)
    shared = jax.vmap(attend, in_axes=(0, None, None))(q, k[0], v[0])
    np.testing.assert_allclose(shared[3], attend(q[3], k[0], v[0]), atol=1e-6)


def test_the_direct_form_has_all_derivatives():
    q, k, v = (x[0, :, :1] for x in operands(1, 3, 1, 2))
    with jax.enable_x64():
        arrays = [jnp.asarray(x, "float64") for x in (q, k, v)]
        attend = functools.partial(ops.dot_product_attention, implementation="xla")
        hessians = [jax.jit(jax.hessian(lambda *qkv, f=f: f(*qkv).sum()))(*arrays) for f in (attend, textbook)]
    np.testing.assert_allclose(*hessians, atol=1e-12)
    assert np.abs(hessians[0]).max() > 1e-3


def test_it_takes_the_memory_of_its_operands_only():
    """At 8,192 tokens the map alone would have 1.5 GiB."""
    q = jax.ShapeDtypeStruct((1, 8192, 6, 64), jnp.float32)
    attend = functools.partial(ops.dot_product_attention, implementation="blockwise")

    def both(q, k, v, cotangent):
        output, pull_back = jax.vjp(attend, q, k, v)
        return output, *pull_back(cotangent)

    compiled = jax.jit(both).lower(q, q, q, q).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 160 * 2**20


@pytest.mark.parametrize("length", [1, 6, 12, 30])
def test_a_cut_takes_every_element_once(length):
    cut = Cut.within(length, 3)
    places = np.concatenate([cut.places(step) for step in range(cut.steps)])
    assert sorted(places) == list(range(length))
    assert cut.size <= 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_chosen_on_a_cpu_is_both_forms(dtype):
    """With a derivative that of the blocks, without one the same numbers, and never a map in memory."""
    q, k, v = operands(2, 509, 6, 16, keys=307, groups=3, values=8, dtype=dtype)
    attend = jax.jit(ops.dot_product_attention)
    ours = with_gradients(attend, q, k, v)
    blocks = with_gradients(functools.partial(ops.dot_product_attention, implementation="blockwise"), q, k, v)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    chex.assert_trees_all_close(
        *(jax.tree.map(lambda x: x.astype("float32"), x) for x in (ours, blocks)), atol=tolerance
    )
    np.testing.assert_allclose(*(np.asarray(x, "float32") for x in (attend(q, k, v), ours[0])), atol=tolerance)
    map_size = 4 * 2 * 6 * 509 * 307
    assert attend.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes < map_size


@pytest.mark.parametrize("implementation", [None, "blockwise", "xla"])
@pytest.mark.parametrize("broadcast", ["q", "k", "v", "cotangent"])
def test_operands_that_are_broadcasts(implementation, broadcast):
    """XLA 0.12 gets products with a broadcast operand wrong; a mean over tokens has a broadcast cotangent."""
    arrays = dict(zip("qkv", operands(16, 42, 1, 8), strict=True))
    if broadcast != "cotangent":
        arrays[broadcast] = arrays[broadcast][:, :1]

    def loss(attend, q, k, v):
        output = attend(*(jnp.broadcast_to(x, (16, 42, 1, 8)) for x in (q, k, v)))
        return (output.mean(1) ** 2).sum()

    ours = functools.partial(loss, functools.partial(ops.dot_product_attention, implementation=implementation))
    expected = jax.value_and_grad(functools.partial(loss, textbook), (0, 1, 2))(*arrays.values())  # not under jit
    chex.assert_trees_all_close(jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*arrays.values()), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(ours)(*arrays.values()), expected[0], rtol=1e-5)
