"""Windows, grids and blocks with a halo against loops over positions, and against timm's."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.checks import InputError
from tests import timm_oracle

# Size, parts that divide it.
CASES = [((12,), (4,)), ((6, 15), (2, 5)), ((9, 4), (9, 1)), ((4, 6, 10), (2, 3, 5))]


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def positions(size):
    return itertools.product(*map(range, size))


def loop_windows(x, window):
    """x (*s, c) -> (windows, tokens, c): the windows one by one."""
    counts = [n // p for n, p in zip(x.shape, window, strict=False)]
    return np.array(
        [
            [x[tuple(i * p + y for i, p, y in zip(corner, window, token, strict=True))] for token in positions(window)]
            for corner in positions(counts)
        ]
    )


def loop_groups(x, grid):
    """x (*s, c) -> (groups, tokens, c): every h/p-th row and w/q-th column."""
    strides = [n // p for n, p in zip(x.shape, grid, strict=False)]
    return np.array(
        [
            [x[tuple(i + s * y for i, s, y in zip(start, strides, token, strict=True))] for token in positions(grid)]
            for start in positions(strides)
        ]
    )


def loop_halo(x, block, halo):
    """x (*s, c) -> the blocks (blocks, tokens, c), and whether their tokens are inside the map (blocks, tokens)."""
    size = x.shape[:-1]
    blocks, inside = [], []
    for corner in positions([n // p for n, p in zip(size, block, strict=True)]):
        for token in positions([p + 2 * r for p, r in zip(block, halo, strict=True)]):
            at = tuple(i * p + y - r for i, p, y, r in zip(corner, block, token, halo, strict=True))
            inside.append(all(0 <= a < n for a, n in zip(at, size, strict=True)))
            blocks.append(x[at] if inside[-1] else np.zeros(x.shape[-1]))
    tokens = math.prod(p + 2 * r for p, r in zip(block, halo, strict=True))
    return np.array(blocks).reshape(-1, tokens, x.shape[-1]), np.array(inside).reshape(-1, tokens)


def loop_shifted_mask(size, window, shift):
    """Whether two tokens of a window of the shifted map were as far apart on the map itself as in the window."""
    origin = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    for axis, s in enumerate(shift):
        origin = np.roll(origin, -s, axis)
    token = np.array(list(positions(window)))
    return np.array(
        [
            [
                [all(a[i] - b[i] == token[n, i] - token[m, i] for i in range(len(size))) for m, b in enumerate(tokens)]
                for n, a in enumerate(tokens)
            ]
            for tokens in loop_windows(origin, window)
        ]
    )


@pytest.mark.parametrize(("size", "window"), CASES)
def test_windows_are_the_loops_and_merge_back(size, window):
    x = random(2, 3, *size, 5)
    parts = ops.window_partition(jnp.array(x), window)
    np.testing.assert_array_equal(parts, [[loop_windows(x_c, window) for x_c in x_b] for x_b in x])
    np.testing.assert_array_equal(ops.window_merge(parts, window, size), x)


@pytest.mark.parametrize(("size", "grid"), CASES)
def test_groups_of_a_grid_are_the_loops_and_merge_back(size, grid):
    x = random(2, *size, 5)
    parts = ops.grid_partition(jnp.array(x), grid)
    np.testing.assert_array_equal(parts, [loop_groups(x_b, grid) for x_b in x])
    np.testing.assert_array_equal(ops.grid_merge(parts, grid, size), x)


@pytest.mark.parametrize(("size", "shift"), [((7,), (2,)), ((7, 5), (3, 0)), ((7, 5), (-9, 2)), ((4, 7, 5), (1, 3, 2))])
def test_a_shift_is_the_loops_and_its_negation_undoes_it(size, shift):
    x = random(2, *size, 3)
    shifted = ops.cyclic_shift(jnp.array(x), shift)
    for at in positions(size):
        origin = tuple((i + s) % n for i, s, n in zip(at, shift, size, strict=True))
        np.testing.assert_array_equal(shifted[:, *at], x[:, *origin])
    np.testing.assert_array_equal(ops.cyclic_shift(shifted, tuple(-s for s in shift)), x)


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((12,), (4,), (1,)),
        ((6, 15), (3, 5), (1, 2)),
        ((6, 15), (3, 5), (0, 2)),
        ((4, 9), (4, 3), (2, 1)),
        ((6, 10), (3, 5), (0, 0)),
        ((4, 6, 9), (2, 3, 3), (1, 2, 0)),
    ],
)
def test_pairs_that_may_attend_are_neighbours_of_the_map(size, window, shift):
    mask = ops.shifted_window_mask(size, window, shift)
    assert isinstance(mask, np.ndarray)
    np.testing.assert_array_equal(mask, loop_shifted_mask(size, window, shift))


@pytest.mark.parametrize(
    ("size", "block", "halo"),
    [
        ((12,), (4,), (1,)),
        ((6, 15), (2, 5), (3, 1)),  # a halo wider than its block
        ((6, 15), (3, 5), (0, 2)),
        ((6, 10), (6, 10), (2, 3)),  # one block
        ((4, 6, 10), (2, 3, 5), (1, 2, 1)),
    ],
)
def test_blocks_with_a_halo_are_the_loops(size, block, halo):
    x = random(2, *size, 3)
    blocks = ops.halo_blocks(jnp.array(x), block, halo)
    loops, masks = zip(*(loop_halo(x_b, block, halo) for x_b in x), strict=True)
    np.testing.assert_array_equal(blocks, loops)
    mask = ops.halo_mask(size, block, halo)
    assert isinstance(mask, np.ndarray)
    np.testing.assert_array_equal(mask, masks[0])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: ops.window_partition(x, (2, 5)),
        lambda x: ops.grid_partition(x, (2, 5)),
        lambda x: ops.cyclic_shift(x, (3, 1)),
        lambda x: ops.halo_blocks(x, (2, 5), (3, 1)),
    ],
)
def test_rearrangements_are_slices_and_keep_the_type(f):
    x = jnp.array(random(6, 15, 3), jnp.bfloat16)
    assert f(x).dtype == jnp.bfloat16
    assert "gather" not in str(jax.make_jaxpr(f)(x))
    # A rearrangement is linear, and its gradient its transpose: <f(x), y> = <x, f'(y)>.
    x = jnp.array(random(6, 15, 3))
    y = jnp.array(np.random.default_rng(1).normal(size=f(x).shape).astype(np.float32))
    _, pull_back = jax.vjp(f, jnp.zeros_like(x))
    assert "scatter" not in str(jax.make_jaxpr(pull_back)(y))
    np.testing.assert_allclose(jnp.vdot(f(x), y), jnp.vdot(x, pull_back(y)[0]), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "theirs", "ours"),
    [
        ("models.swin_transformer", "window_partition", ops.window_partition),
        ("models.maxxvit", "window_partition", ops.window_partition),
        ("models.maxxvit", "grid_partition", ops.grid_partition),
    ],
)
def test_windows_and_grids_are_timms(module, theirs, ours):
    partition = getattr(timm_oracle.load(module), theirs)
    torch = pytest.importorskip("torch")
    x = random(2, 6, 15, 3)
    expected = partition(torch.from_numpy(x), (2, 5)).numpy()
    np.testing.assert_array_equal(ours(jnp.array(x), (2, 5)).reshape(expected.shape), expected)


@pytest.mark.full
@pytest.mark.parametrize("shift", [(1, 2), (0, 2), (2, 0)])
def test_the_mask_of_shifted_windows_is_timms(shift):
    swin = timm_oracle.load("models.swin_transformer")
    block = swin.SwinTransformerBlock(8, (6, 15), num_heads=2, head_dim=4, window_size=(3, 5), dynamic_mask=True)
    block.shift_size = shift
    expected = block.get_attn_mask(pytest.importorskip("torch").zeros(1, 6, 15, 8))
    np.testing.assert_array_equal(ops.shifted_window_mask((6, 15), (3, 5), shift), expected.numpy() == 0)


@pytest.mark.full
def test_blocks_with_a_halo_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    x = random(2, 6, 15, 3)
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = torch.nn.functional.unfold(channels_first, (5, 5), padding=1, stride=3).reshape(2, 3, 25, 10)
    np.testing.assert_array_equal(ops.halo_blocks(jnp.array(x), (3, 3), (1, 1)), expected.permute(0, 3, 2, 1))


REFUSALS = {
    "axes": (
        lambda: ops.window_partition(jnp.ones((6, 3)), (2, 2)),
        r"an axis for each entry of window, and one of features, got window=\(2, 2\) and shape \(6, 3\)",
    ),
    "no window": (lambda: ops.window_partition(jnp.ones((6, 3)), ()), r"got window=\(\)"),
    "window": (
        lambda: ops.window_partition(jnp.ones((6, 15, 3)), (2, 4)),
        r"window must be at least 1 and divide the map on each axis, got window=\(2, 4\) for a map of \(6, 15\)",
    ),
    "window of zero": (lambda: ops.window_partition(jnp.ones((6, 3)), (0,)), r"got window=\(0,\) for a map of \(6,\)"),
    "merged axes": (
        lambda: ops.window_merge(jnp.ones((3, 2, 3)), (2, 2), (6,)),
        r"got window=\(2, 2\) for a map of \(6,\)",
    ),
    "merged windows": (
        lambda: ops.window_merge(jnp.ones((4, 2, 3)), (2,), (6,)),
        r"x must be the 3 windows of 2 tokens of a map of \(6,\), \(\*b, 3, 2, c\), got shape \(4, 2, 3\)",
    ),
    "shift": (lambda: ops.cyclic_shift(jnp.ones((6, 3)), (1, 1)), r"got shift=\(1, 1\) and shape \(6, 3\)"),
    "mask": (lambda: ops.shifted_window_mask((7,), (2,), (1,)), r"got window=\(2,\) for a map of \(7,\)"),
    "mask's shift": (
        lambda: ops.shifted_window_mask((6,), (2,), (2,)),
        r"shift must be at least 0 and below the window on each axis, got shift=\(2,\), window=\(2,\)",
    ),
    "mask's negative shift": (lambda: ops.shifted_window_mask((6,), (2,), (-1,)), r"got shift=\(-1,\)"),
    "mask's axes": (lambda: ops.shifted_window_mask((6,), (2,), (1, 0)), r"got shift=\(1, 0\)"),
    "grid": (
        lambda: ops.grid_partition(jnp.ones((6, 3)), (4,)),
        r"grid must be at least 1 and divide the map on each axis, got grid=\(4,\) for a map of \(6,\)",
    ),
    "merged groups": (
        lambda: ops.grid_merge(jnp.ones((2, 3, 3)), (2,), (6,)),
        r"x must be the 3 groups of 2 tokens of a map of \(6,\), \(\*b, 3, 2, c\), got shape \(2, 3, 3\)",
    ),
    "merged grid": (lambda: ops.grid_merge(jnp.ones((3, 2, 3)), (4,), (6,)), r"got grid=\(4,\) for a map of \(6,\)"),
    "block": (
        lambda: ops.halo_blocks(jnp.ones((6, 3)), (4,), (1,)),
        r"block must be at least 1 and divide the map on each axis, got block=\(4,\) for a map of \(6,\)",
    ),
    "halo": (
        lambda: ops.halo_blocks(jnp.ones((6, 3)), (2,), (-1,)),
        r"halo must be at least 0 on each axis of the block, got halo=\(-1,\), block=\(2,\)",
    ),
    "halo's axes": (lambda: ops.halo_mask((6,), (2,), (1, 1)), r"got halo=\(1, 1\), block=\(2,\)"),
    "halo's block": (lambda: ops.halo_mask((6,), (4,), (1,)), r"got block=\(4,\) for a map of \(6,\)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()


def test_cells_become_channels_and_channels_cells():
    x = random(2, 3, 6, 9, 4)
    y = np.asarray(ops.space_to_depth(jnp.asarray(x), 3))
    assert y.shape == (2, 3, 2, 3, 36)
    for i, j in positions((2, 3)):
        np.testing.assert_array_equal(
            y[..., i, j, :], x[..., 3 * i : 3 * i + 3, 3 * j : 3 * j + 3, :].reshape(2, 3, 36)
        )
    np.testing.assert_array_equal(ops.depth_to_space(jnp.asarray(y), 3), x)


def test_maps_are_padded_below_and_on_the_right():
    x = random(2, 3, 7, 4)
    y = ops.pad_to_multiple(jnp.asarray(x), 4)
    np.testing.assert_array_equal(y, np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]))
    np.testing.assert_array_equal(ops.pad_to_multiple(jnp.asarray(x[:, :, :4]), 1), x[:, :, :4])


def test_cells_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="window"):
        ops.space_to_depth(jnp.ones((4, 5, 1)), 2)
    with pytest.raises(InputError, match=r"channels must be a multiple of 2², got shape \(4, 5, 6\)"):
        ops.depth_to_space(jnp.ones((4, 5, 6)), 2)
