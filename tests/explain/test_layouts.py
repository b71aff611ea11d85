"""What is read off each layout, against values worked out in loops."""

import numpy as np
import pytest

from attn_flax.explain.layouts import find_grid, read_map

B, H, W = 2, 14, 10


def random(*shape):
    return np.random.default_rng(0).random(shape)


@pytest.mark.parametrize("shape", [(B, 6), (B, 1, 1, 6)])
def test_a_channel_gate(shape):
    weights = random(*shape)
    (values,) = read_map(weights, B, H, W).values()
    np.testing.assert_array_equal(values, weights.reshape(B, 6))


@pytest.mark.parametrize("shape", [(B, 14, 10, 3), (B, 7, 5, 5), (B, 4, 3, 64), (B, 7, 5, 1)])
def test_a_gate_is_averaged_over_its_channels(shape):
    weights = random(*shape)
    (values,) = read_map(weights, B, H, W).values()
    assert values.shape == shape[:3]
    np.testing.assert_allclose(values[1, 2, 1], sum(weights[1, 2, 1]) / shape[-1])


@pytest.mark.parametrize("size", [(7, 5), (4, 3)])
def test_a_gate_without_channels(size):
    weights = random(B, *size)
    np.testing.assert_array_equal(read_map(weights, B, H, W)["weight"], weights)


@pytest.mark.parametrize("heads", [(), (3,)])
def test_tokens(heads):
    weights = random(B, *heads, 35, 35)
    readings = read_map(weights, B, H, W)
    of_head = weights.reshape(B, -1, 35, 35)
    for y, x in ((0, 0), (6, 4), (2, 3)):
        column = of_head[1, :, :, 5 * y + x]
        np.testing.assert_allclose(readings["mean received"][1, y, x], column.sum() / column.size)
        np.testing.assert_allclose(readings["from the centre"][1, y, x], column[:, 5 * 3 + 2].mean())


def test_tokens_after_a_class_token():
    weights = random(B, 3, 36, 36)
    readings = read_map(weights, B, H, W)
    np.testing.assert_allclose(readings["mean received"][0, 2, 3], weights[0, :, :, 1 + 5 * 2 + 3].mean())
    np.testing.assert_allclose(readings["from the class token"][0, 2, 3], weights[0, :, 0, 1 + 5 * 2 + 3].mean())


def test_tokens_with_axes_between_are_averaged_over_them():
    weights = random(B, 3, 2, 35, 35)
    expected = read_map(weights.reshape(B, 6, 35, 35), B, H, W)
    for name, values in read_map(weights, B, H, W).items():
        np.testing.assert_allclose(values, expected[name])


@pytest.mark.parametrize(("shape", "axis"), [((B, 7, 1, 3), 1), ((B, 1, 5, 3), 2)])
def test_a_gate_of_rows_or_columns_is_the_same_along_them(shape, axis):
    weights = random(*shape)
    (values,) = read_map(weights, B, H, W).values()
    assert values.shape == (B, 7, 5)
    for y, x in ((0, 0), (6, 4), (2, 3)):
        np.testing.assert_allclose(values[1, y, x], weights.mean(-1)[1].reshape(-1)[y if axis == 1 else x])


def test_of_several_weights_at_a_position_the_largest_is_shown():
    weights = random(B, 7, 5, 3, 4)
    (values,) = read_map(weights, B, H, W).values()
    np.testing.assert_array_equal(values[1, 6, 2], max(weights[1, 6, 2].reshape(-1)))


@pytest.mark.parametrize("transposed", [False, True])
def test_units_are_shown_one_by_one(transposed):
    weights = random(B, 35, 17)
    readings = read_map(np.moveaxis(weights, 1, 2) if transposed else weights, B, H, W)
    assert list(readings) == ["unit 1 of 17", "unit 2 of 17", "unit 3 of 17"]
    np.testing.assert_array_equal(readings["unit 2 of 17"][1, 6, 3], weights[1, 5 * 6 + 3, 1])


@pytest.mark.parametrize("further", [(), (6,)])
def test_units_before_positions(further):
    weights = random(B, 2, 7, 5, *further)
    readings = read_map(weights, B, H, W)
    assert list(readings) == ["unit 1 of 2", "unit 2 of 2"]
    np.testing.assert_array_equal(readings["unit 2 of 2"][1, 6, 3], weights[1, 1, 6, 3].max())


def test_of_many_units_that_attend_to_positions_each_receives_the_mean():
    weights = random(B, 4, 12, 35)
    ((name, values),) = read_map(weights, B, H, W).items()
    assert name == "mean received"
    np.testing.assert_allclose(values[1, 6, 3], weights[1, :, :, 5 * 6 + 3].mean())


def test_branches_are_channel_gates():
    weights = random(B, 2, 64)
    readings = read_map(weights, B, H, W)
    np.testing.assert_array_equal(readings["branch 2"], weights[:, 1])


@pytest.mark.parametrize("shape", [(B,), (B, 3, 7, 2, 7), (B + 1, 6), (B, 5, 7, 3), (B, 11, 11), (B, 34, 17), ()])
def test_nothing_is_read_off_other_layouts(shape):
    assert read_map(random(*shape), B, H, W) == {}


@pytest.mark.parametrize(
    ("n", "image", "grid"),
    [
        (64, (8, 8), (8, 8)),
        (16, (8, 32), (2, 8)),
        (12, (7, 5), (4, 3)),
        (1, (224, 96), (1, 1)),
        (7, (8, 8), None),
        (65, (8, 8), None),
    ],
)
def test_the_grid_of_tokens(n, image, grid):
    assert find_grid(n, *image) == grid
