"""Neighbourhood attention against loops over queries and keys: values, weights and gradients."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.checks import InputError
from attn_flax.ops import neighborhood
from tests.compiled import with_gradients

# Size, window, dilation: tiles that divide the map and that do not, classes of unequal length, maps as large as the
# window, windows of one position.
CASES = [
    ((11,), (3,), (1,)),
    ((83,), (5,), (1,)),
    ((23,), (5,), (3,)),
    ((16,), (1,), (2,)),
    ((7, 5), (3, 3), (1, 1)),
    ((9, 19), (7, 3), (1, 1)),
    ((17, 11), (3, 5), (2, 1)),
    ((8, 17), (3, 5), (2, 3)),
    ((5, 7), (5, 7), (1, 1)),
    ((3, 7, 5), (3, 3, 5), (1, 1, 1)),
    ((4, 7, 9), (1, 3, 3), (2, 2, 3)),
]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def example(size, window, batch=(2,), heads=3, d=4, e=5):
    q, k = (random(*batch, *size, heads, d, seed=seed) for seed in (0, 1))
    v = random(*batch, *size, heads, e, seed=2)
    return q, k, v, random(math.prod(2 * w - 1 for w in window), heads, seed=3)


def neighbors(i, length, window, dilation):
    """The window of position i: as many of its class as the window is long, as nearly around i as the border allows."""
    members = [j for j in range(length) if (j - i) % dilation == 0]
    return min(
        (members[start : start + window] for start in range(len(members) - window + 1)),
        key=lambda run: abs(i - run[window // 2]),
    )


def table_row(query, key, window, dilation):
    row = 0
    for i, j, w, step in zip(query, key, window, dilation, strict=True):
        row = row * (2 * w - 1) + (j - i) // step + w - 1
    return row


def loop(q, k, v, table, window, dilation):
    """The outputs and weights of one head: q, k (*s, d), v (*s, e), table (offsets,)."""
    size = q.shape[:-1]
    o, alpha = np.zeros_like(v), np.zeros((*size, math.prod(window)))
    for query in itertools.product(*map(range, size)):
        keys = list(itertools.product(*map(neighbors, query, size, window, dilation)))
        s = [
            q[query] @ k[key] / math.sqrt(q.shape[-1]) + table[table_row(query, key, window, dilation)] for key in keys
        ]
        exponentials = [math.exp(s_j) for s_j in s]
        alpha[query] = np.array(exponentials) / sum(exponentials)
        o[query] = sum(a * v[key] for a, key in zip(alpha[query], keys, strict=True))
    return o, alpha


def loops(q, k, v, table, window, dilation):
    pairs = [
        [
            loop(q[b, ..., h, :], k[b, ..., h, :], v[b, ..., h, :], table[:, h], window, dilation)
            for h in range(q.shape[-2])
        ]
        for b in range(q.shape[0])
    ]
    return tuple(np.array([np.stack([pair[i] for pair in row], -2) for row in pairs]) for i in range(2))


def dense(q, k, v, table, window, dilation):
    """The same by full attention with a mask, for gradients: all pairs of positions, in jnp."""
    size = q.shape[1 : 1 + len(window)]
    seen = np.zeros((math.prod(size),) * 2, bool)
    rows = np.zeros_like(seen, int)
    at = list(itertools.product(*map(range, size)))
    for (n, query), (m, key) in itertools.product(enumerate(at), enumerate(at)):
        if all(j in neighbors(i, *rest) for i, j, *rest in zip(query, key, size, window, dilation, strict=True)):
            seen[n, m], rows[n, m] = True, table_row(query, key, window, dilation)
    q, k, v = (x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (q, k, v))
    s = jnp.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1]) + jnp.moveaxis(table[rows], -1, 0)
    alpha = jax.nn.softmax(jnp.where(seen, s, -jnp.inf), -1)
    return jnp.einsum("bhnm,bmhe->bnhe", alpha, v).reshape(v.shape[0], *size, *v.shape[-2:])


@pytest.mark.parametrize(("size", "window", "dilation"), CASES)
def test_values_and_weights_are_the_loops(size, window, dilation):
    q, k, v, table = example(size, window)
    options = {"window": window, "dilation": dilation}
    expected, alpha = loops(q, k, v, table, window, dilation)
    with jax.enable_x64(True):
        q, k, v, table = map(jnp.array, (q, k, v, table))
        out = jax.jit(functools.partial(ops.neighborhood_attention, **options))(q, k, v, table=table)
        weights = jax.jit(functools.partial(ops.neighborhood_attention_weights, **options))(q, k, table=table)
    assert out.dtype == weights.dtype == jnp.float64
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(weights, alpha, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "window", "dilation"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.full) for case in CASES[1:])]
)
def test_gradients_are_those_of_the_masked_form(size, window, dilation):
    arguments = example(size, window)
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.array, arguments))
        cotangent = random(*arguments[2].shape, seed=4)
        (out, *ours), (expected, *theirs) = (
            with_gradients(form, arguments, cotangent)
            for form in (
                lambda q, k, v, table: ops.neighborhood_attention(
                    q, k, v, window=window, dilation=dilation, table=table
                ),
                functools.partial(dense, window=window, dilation=dilation),
            )
        )
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)
    for got, wanted, name in zip(ours, theirs, ["q", "k", "v", "table"], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12, err_msg=name)


def test_gradients_of_the_weights_are_those_of_the_outputs():
    size, window = (9, 7), (3, 5)
    q, k, v, table = example(size, window)
    with jax.enable_x64(True):
        q, k, v, table = map(jnp.array, (q, k, v, table))

        def of_weights(q, k, table):
            alpha = ops.neighborhood_attention_weights(q, k, window=window, table=table)
            return (alpha * gathered).sum()

        def of_outputs(q, k, table):
            return (ops.neighborhood_attention(q, k, v, window=window, table=table) * cotangent).sum()

        cotangent = jnp.array(random(*v.shape, seed=5))
        gathered = np.zeros((2, *size, 3, 15))
        for query in itertools.product(*map(range, size)):
            keys = itertools.product(*map(neighbors, query, size, window, (1, 1)))
            for m, key in enumerate(keys):
                gathered[:, *query, :, m] = (v[:, *key] * cotangent[:, *query]).sum(-1)
        gradients = [jax.jit(jax.grad(f, argnums=(0, 1, 2)))(q, k, table) for f in (of_weights, of_outputs)]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [(5,), (3, 7), (3, 1, 5)])
def test_a_map_as_large_as_the_window_is_full_attention(size):
    q, k, v, _ = example(size, size, d=4)
    with jax.enable_x64(True):
        out = ops.neighborhood_attention(*map(jnp.array, (q, k, v)), window=size)
    q, k, v = (x.reshape(2, math.prod(size), *x.shape[-2:]) for x in (q, k, v))
    alpha = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
    full = np.einsum("bhnm,bmhe->bnhe", alpha / alpha.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(out, full.reshape(out.shape), rtol=1e-10, atol=1e-12)


def test_the_scale_is_as_given():
    q, k, v, _ = (jnp.array(x, jnp.float32) for x in example((7, 5), (3, 3)))
    out = ops.neighborhood_attention(q, k, v, window=(3, 3), scale=0.3)
    np.testing.assert_allclose(out, ops.neighborhood_attention(q * 0.6, k, v, window=(3, 3)), rtol=1e-5, atol=1e-6)


def test_takes_any_batch_axes():
    q, k, v, _ = (jnp.array(x, jnp.float32) for x in example((7, 5), (3, 3), batch=(2, 3)))
    out = ops.neighborhood_attention(q, k, v, window=(3, 3))
    alpha = ops.neighborhood_attention_weights(q, k, window=(3, 3))
    one = ops.neighborhood_attention(q[1, 2], k[1, 2], v[1, 2], window=(3, 3))
    np.testing.assert_allclose(out[1, 2], one, rtol=1e-5, atol=1e-6)
    one = ops.neighborhood_attention_weights(q[1, 2], k[1, 2], window=(3, 3))
    np.testing.assert_allclose(alpha[1, 2], one, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    q, k, v, table = (jnp.array(x, jnp.bfloat16) for x in example((19, 21), (13, 15)))
    options = {"window": (13, 15), "table": table}
    out = ops.neighborhood_attention(q, k, v + 1, **options)
    alpha = ops.neighborhood_attention_weights(q, k, **options)
    assert out.dtype == alpha.dtype == jnp.bfloat16
    exact = [np.float64(x) for x in (q, k, v + 1, table)]
    expected, weights = loops(*exact, (13, 15), (1, 1))
    np.testing.assert_allclose(np.float64(out), expected, rtol=2**-6, atol=2**-6)
    np.testing.assert_allclose(np.float64(alpha), weights, rtol=2**-7)


@pytest.mark.full
def test_a_row_of_many_tiles_is_taken_in_several_steps(monkeypatch):
    monkeypatch.setattr(neighborhood, "TILES_AT_ONCE", 2)
    for size, window, dilation in [((83,), (5,), (1,)), ((7, 33), (3, 5), (1, 1)), ((5, 71), (3, 5), (1, 2))]:
        test_values_and_weights_are_the_loops(size, window, dilation)
        test_gradients_are_those_of_the_masked_form(size, window, dilation)


def test_memory_stays_far_below_that_of_copied_windows():
    size, window = (56, 56), (7, 7)
    shapes = [jax.ShapeDtypeStruct((*size, 2, 16), jnp.float32)] * 3

    def both(*qkv):
        out, pull_back = jax.vjp(functools.partial(ops.neighborhood_attention, window=window), *qkv)
        return out, pull_back(out)

    needed = jax.jit(both).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert (
        needed < math.prod(size) * math.prod(window) * 2 * 4 * 4
    )  # a window of 16 features would take four times that


def test_arrays_sharded_over_batch_and_heads_stay_there():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.NamedSharding(mesh, jax.P("data", None, None, "model"))
    q, k, v, _ = example((17, 11), (3, 5), batch=(4,), heads=2)
    arrays = [jax.device_put(jnp.array(x, jnp.float32), sharding) for x in (q, k, v)]

    def both(*qkv):
        out, pull_back = jax.vjp(functools.partial(ops.neighborhood_attention, window=(3, 5)), *qkv)
        return out, pull_back(out)

    compiled = jax.jit(both, out_shardings=sharding).lower(*arrays).compile()
    assert not re.findall("all-gather|all-to-all|all-reduce|collective-permute", compiled.as_text())
    out, gradients = compiled(*arrays)
    expected, expected_gradients = jax.jit(both)(*(jnp.array(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_large_scores_stay_finite():
    q, k, v, _ = (jnp.array(x, jnp.float32) for x in example((7, 5), (3, 3)))
    f = functools.partial(ops.neighborhood_attention, window=(3, 3), scale=1e6)
    outputs = with_gradients(f, (q, k, v), jnp.ones_like(v))
    assert all(jnp.isfinite(x).all() for x in outputs)


def ones(*shape):
    return jnp.ones(shape)


def attend(q=(7, 5, 2, 3), k=None, v=None, *, window=(3, 3), dilation=None, table=None):
    q, k, v = (ones(*shape) for shape in (q, k or q, v or q))
    return ops.neighborhood_attention(q, k, v, window=window, dilation=dilation, table=table)


REFUSALS = {
    "even window": (lambda: attend(window=(3, 4)), r"window must be of odd sizes, got \(3, 4\)"),
    "negative window": (lambda: attend(window=(3, -1)), r"window must be of odd sizes, got \(3, -1\)"),
    "no window": (lambda: attend(window=()), r"window must be of odd sizes, got \(\)"),
    "dilation": (
        lambda: attend(dilation=(1, 0)),
        r"dilation must be at least 1 on each axis of the window, got dilation=\(1, 0\), window=\(3, 3\)",
    ),
    "dilation's axes": (lambda: attend(dilation=(1,)), r"got dilation=\(1,\), window=\(3, 3\)"),
    "axes": (
        lambda: attend((7, 2, 3)),
        r"2 axes of positions, one of heads and one of features, .* got shape \(7, 2, 3\)",
    ),
    "keys": (
        lambda: attend(k=(7, 5, 2, 1)),
        r"k must have the shape of q, got shapes \(7, 5, 2, 1\) and \(7, 5, 2, 3\)",
    ),
    "values": (
        lambda: attend(v=(7, 1, 2, 3)),
        r"v must have the shape of q but for its last axis, got shapes \(7, 1, 2, 3\) and \(7, 5, 2, 3\)",
    ),
    "map": (
        lambda: attend(dilation=(1, 2)),
        r"at least \(3, 6\) positions, window times dilation, for window=\(3, 3\) and dilation=\(1, 2\), got \(7, 5\)",
    ),
    "table": (
        lambda: attend(table=ones(9, 2)),
        r"table must be of 25 offsets and 2 heads, \(25, 2\), got shape \(9, 2\)",
    ),
    "weights' keys": (
        lambda: ops.neighborhood_attention_weights(ones(7, 2, 3), ones(5, 2, 3), window=(3,)),
        r"k must have the shape of q, got shapes \(5, 2, 3\) and \(7, 2, 3\)",
    ),
    "weights' map": (
        lambda: ops.neighborhood_attention_weights(ones(4, 2, 3), ones(4, 2, 3), window=(5,)),
        r"at least \(5,\) positions, .* got \(4,\)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()
