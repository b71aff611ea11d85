"""Relative positions against loops over pairs of tokens, and against timm's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.checks import InputError
from tests import oracles, timm_oracle

WINDOWS = [(4,), (7, 5), (1, 3), (2, 3, 4)]


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def rows(window):
    return int(np.prod([2 * w - 1 for w in window]))


def bias(table, window):
    """The table as an array by offsets, read pair by pair."""
    by_offset = table.reshape(*(2 * w - 1 for w in window), -1)
    tokens = list(itertools.product(*map(range, window)))
    out = np.zeros((table.shape[-1], len(tokens), len(tokens)))
    for (i, p), (j, q) in itertools.product(enumerate(tokens), repeat=2):
        out[:, i, j] = by_offset[tuple(a - b + w - 1 for a, b, w in zip(p, q, window, strict=True))]
    return out


def decomposed(q, table_h, table_w):
    batch, h, w, heads, _ = q.shape
    out = np.zeros((batch, heads, h * w, h * w))
    for b, head in itertools.product(range(batch), range(heads)):
        for (y, x), (y_j, x_j) in itertools.product(itertools.product(range(h), range(w)), repeat=2):
            r = table_h[y - y_j + h - 1] + table_w[x - x_j + w - 1]
            out[b, head, y * w + x, y_j * w + x_j] = q[b, y, x, head] @ r
    return out


@pytest.mark.parametrize("window", WINDOWS)
def test_the_bias_and_its_gradient_are_the_oracles(window):
    (table,) = random((rows(window), 3))
    expected = bias(table, window)
    (d_bias,) = random(expected.shape, seed=1)
    with jax.enable_x64():
        out, pull_back = jax.vjp(jax.jit(lambda t: ops.relative_position_bias(t, window)), jnp.array(table))
        (gradient,) = pull_back(jnp.array(d_bias))
    np.testing.assert_array_equal(out, expected)
    index, expected_gradient = ops.relative_position_index(window), np.zeros_like(table)
    for i, j in np.ndindex(*index.shape):
        np.testing.assert_array_equal(out[:, i, j], table[index[i, j]])
        expected_gradient[index[i, j]] += d_bias[:, i, j]
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-13)


def test_the_bias_of_bfloat16_sums_its_gradient_in_float32():
    out, pull_back = jax.vjp(lambda t: ops.relative_position_bias(t, (33,)), jnp.ones((65, 1), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    (gradient,) = pull_back(jnp.full(out.shape, 1 / 3, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    pairs = 33 - np.abs(np.arange(-32, 33))
    np.testing.assert_allclose(np.float64(gradient[:, 0]), pairs * float(jnp.bfloat16(1 / 3)), rtol=2**-8)


def test_decomposed_positions_and_their_gradients_are_the_oracles():
    arguments = random((2, 7, 5, 3, 6), (13, 6), (9, 6))
    expected = decomposed(*arguments)
    (de,) = random(expected.shape, seed=1)
    with jax.enable_x64():
        out, pull_back = jax.vjp(jax.jit(ops.decomposed_relative_position), *map(jnp.array, arguments))
        gradients = pull_back(jnp.array(de))
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    direction = random(*(a.shape for a in arguments), seed=2)
    for i, gradient in enumerate(gradients):
        alone = [d if i == j else np.zeros_like(d) for j, d in enumerate(direction)]
        slope = oracles.central_difference(lambda *a: (decomposed(*a) * de).sum(), arguments, alone, step=1e-4)
        np.testing.assert_allclose((np.array(gradient) * alone[i]).sum(), slope, rtol=1e-8)


def test_decomposed_positions_take_any_batch_axes_and_accumulate_bfloat16_in_float32():
    q, table_h, table_w = (jnp.array(a, jnp.bfloat16) for a in random((2, 7, 5, 3, 6), (13, 6), (9, 6)))
    out = ops.decomposed_relative_position(q, table_h, table_w)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, decomposed(*map(np.float64, (q, table_h, table_w))), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.decomposed_relative_position(q[0], table_h, table_w), out[0], rtol=1e-6)
    np.testing.assert_allclose(ops.decomposed_relative_position(q[None], table_h, table_w)[0], out, rtol=1e-6)


def test_a_resized_table_keeps_what_is_constant_and_its_own_size():
    (table,) = random((13 * 9, 3))
    constant = ops.resize_relative_position_table(jnp.full((13 * 9, 3), 2.5), (7, 5), (3, 8))
    np.testing.assert_allclose(constant, np.full((5 * 15, 3), 2.5), rtol=1e-6)
    with jax.enable_x64():
        same = ops.resize_relative_position_table(jnp.array(table), (7, 5), (7, 5))
    np.testing.assert_allclose(same, table, rtol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(("window", "new_window"), [((7, 5), (4, 6)), ((3, 7), (12, 2)), ((1, 2), (2, 1))])
def test_a_resized_table_is_torchs_bicubic(window, new_window):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    (table,) = random((rows(window), 3))
    image = torch.tensor(table.T.reshape(1, 3, *(2 * w - 1 for w in window)))
    size = tuple(2 * w - 1 for w in new_window)
    expected = torch.nn.functional.interpolate(image, size, mode="bicubic", align_corners=False)[0].flatten(1).T
    with jax.enable_x64():
        out = ops.resize_relative_position_table(jnp.array(table), window, new_window)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.full
def test_the_index_and_the_resized_table_are_timms():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    swin = timm_oracle.load("models.swin_transformer")
    np.testing.assert_array_equal(ops.relative_position_index((7, 5)), swin.get_relative_position_index(7, 5).numpy())
    resize = timm_oracle.load("layers.pos_embed_rel").resize_rel_pos_bias_table_simple
    (table,) = random((13 * 13, 3))
    with jax.enable_x64():
        out = ops.resize_relative_position_table(jnp.array(table), (7, 7), (12, 12))
    np.testing.assert_allclose(out, resize(torch.tensor(table), (12, 12), (23 * 23, 3)).numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.full
def test_decomposed_positions_are_timms():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    q, table_h, table_w = random((2, 7, 5, 3, 6), (13, 6), (9, 6))
    with jax.enable_x64():
        out = ops.decomposed_relative_position(*map(jnp.array, (q, table_h, table_w)))
        flipped = ops.decomposed_relative_position(*map(jnp.array, (q, table_h[::-1], table_w[::-1])))

    calculate = timm_oracle.load("models.mvitv2").cal_rel_pos_type
    tokens = torch.tensor(q).permute(0, 3, 1, 2, 4).flatten(2, 3)
    nothing = torch.zeros(2, 3, 35, 35, dtype=torch.float64)
    expected = calculate(nothing, tokens, False, (7, 5), (7, 5), torch.tensor(table_h), torch.tensor(table_w))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-10, atol=1e-12)

    botnet = timm_oracle.load("layers.bottleneck_attn").PosEmbedRel((7, 5), 6, scale=1.0).double()
    botnet.height_rel.data, botnet.width_rel.data = torch.tensor(table_h), torch.tensor(table_w)
    expected = botnet(tokens.flatten(0, 1)).detach().reshape(2, 3, 35, 35)
    np.testing.assert_allclose(flipped, expected.numpy(), rtol=1e-10, atol=1e-12)


REFUSALS = {
    "no window": (lambda: ops.relative_position_index(()), r"window must be sizes of at least 1, .* got \(\)"),
    "empty window": (lambda: ops.relative_position_index((7, 0)), r"window must be sizes of at least 1, .* \(7, 0\)"),
    "table": (
        lambda: ops.relative_position_bias(jnp.ones((5, 3)), (7, 5)),
        r"table must have 117 rows for a window \(7, 5\), got shape \(5, 3\)",
    ),
    "table to resize": (
        lambda: ops.resize_relative_position_table(jnp.ones((5, 3)), (7, 5), (3, 3)),
        r"table must have 117 rows for a window \(7, 5\), got shape \(5, 3\)",
    ),
    "new window": (
        lambda: ops.resize_relative_position_table(jnp.ones((5, 3)), (3,), (0,)),
        r"new_window must be sizes of at least 1, .* got \(0,\)",
    ),
    "axes of the new window": (
        lambda: ops.resize_relative_position_table(jnp.ones((5, 3)), (3,), (3, 3)),
        r"window and new_window must have as many axes, got \(3,\) and \(3, 3\)",
    ),
    "rows": (
        lambda: ops.decomposed_relative_position(jnp.ones((7, 5, 3, 6)), jnp.ones((9, 6)), jnp.ones((9, 6))),
        "rows must be 13 vectors for a map 7×5, got 9",
    ),
    "columns": (
        lambda: ops.decomposed_relative_position(jnp.ones((7, 5, 3, 6)), jnp.ones((13, 6)), jnp.ones((13, 6))),
        "columns must be 9 vectors for a map 7×5, got 13",
    ),
    "features": (
        lambda: ops.decomposed_relative_position(jnp.ones((7, 5, 3, 6)), jnp.ones((13, 6)), jnp.ones((9, 1))),
        "axis -1 of q and axis -1 of columns must be of one size",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()
