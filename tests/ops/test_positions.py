"""Waves of positions against loops over tokens and features, and against timm's."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.checks import InputError
from tests import timm_oracle

SIZES = [((5,), 6), ((7, 5), 12), ((2, 3, 4), 18)]


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def phases(size, d, base):
    """For each token a list, by axes, of p·base^(-f/F)."""
    count = d // (2 * len(size))
    for p in itertools.product(*map(range, size)):
        yield [[p_a / base ** (f / count) for f in range(count)] for p_a in p]


def turned(x, angles):
    """Each pair of features as a complex number, times e^{ia}."""
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape[:-1]):
        for f in range(x.shape[-1] // 2):
            z = complex(x[*index, 2 * f], x[*index, 2 * f + 1]) * np.exp(1j * angles[index[-2], f])
            out[*index, 2 * f], out[*index, 2 * f + 1] = z.real, z.imag
    return out


@pytest.mark.parametrize(("size", "d"), SIZES)
def test_the_angles_and_waves_are_the_oracles(size, d):
    with jax.enable_x64():
        angles = ops.rotary_angles(size, d, base=100.0)
        waves = ops.sincos_position(size, d, temperature=1000.0)
    expected = [list(itertools.chain(*token)) for token in phases(size, d, 100.0)]
    np.testing.assert_allclose(angles, expected, rtol=1e-12)
    expected = [
        [f(phase) for axis in token for f in (math.sin, math.cos) for phase in axis]
        for token in phases(size, d, 1000.0)
    ]
    np.testing.assert_allclose(waves, expected, rtol=1e-12, atol=1e-15)


def test_a_turn_and_its_gradients_are_the_oracles():
    x, angles, dy = random((2, 7, 3, 6), (7, 3), (2, 7, 3, 6))
    with jax.enable_x64():
        y, pull_back = jax.vjp(jax.jit(ops.rotate), *map(jnp.array, (x, angles)))
        dx, dangles = pull_back(jnp.array(dy))
    np.testing.assert_allclose(y, turned(x, angles), rtol=1e-12)
    np.testing.assert_allclose(dx, turned(dy, -angles), rtol=1e-12)  # the transpose of a turn is its inverse
    quarter_more = dy * turned(x, angles + np.pi / 2)
    np.testing.assert_allclose(dangles, quarter_more.reshape(2, 7, 3, 3, 2).sum((0, 2, 4)), rtol=1e-12)


def test_products_of_turned_tokens_depend_on_their_offset_alone():
    q, k = random((1, 1, 12), (1, 1, 12))
    with jax.enable_x64():
        angles = ops.rotary_angles((7, 5), 12)
        q, k = (ops.rotate(jnp.tile(x, (35, 1, 1)), angles)[:, 0].reshape(7, 5, 12) for x in (q, k))
        products = np.array(jnp.einsum("yxd,vud->yxvu", q, k))
    for y, x in itertools.product(range(4), range(3)):
        np.testing.assert_allclose(products[y, x, y : y + 4, x : x + 3], products[0, 0, :4, :3], rtol=1e-10)
    assert np.ptp(products[0, 0]) > 0.1


def test_bfloat16_is_turned_in_float32():
    x, angles = random((2, 7, 3, 6), (7, 3))
    x, angles = jnp.array(x, jnp.bfloat16), jnp.array(angles, jnp.float32)
    y = ops.rotate(x, angles)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), turned(np.float64(x), np.float64(angles)), rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(ops.rotate(x[0], angles), y[0])


@pytest.mark.full
def test_they_are_timms():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    timm = timm_oracle.load("layers.pos_embed_sincos")
    x = random((2, 35, 3, 12))[0]
    sin, cos = timm.build_rotary_pos_embed((7, 5), dim=12, in_pixels=False, dtype=torch.float32)
    expected = timm.apply_rot_embed(torch.tensor(x).transpose(1, 2), sin.double(), cos.double()).transpose(1, 2)
    out = ops.rotate(jnp.array(x, jnp.float32), ops.rotary_angles((7, 5), 12))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=1e-5)

    expected = timm.build_sincos2d_pos_embed((7, 5), 12).reshape(35, 2, 2, 3)  # sines of both axes before cosines there
    out = ops.sincos_position((7, 5), 12).reshape(35, 2, 2, 3)
    np.testing.assert_allclose(out, expected.transpose(1, 2).numpy(), rtol=1e-5, atol=1e-6)


REFUSALS = {
    "features": (lambda: ops.sincos_position((7, 5), 6), "d must be a positive multiple of 4, .* of 2 axes, got 6"),
    "angles' features": (lambda: ops.rotary_angles((7, 5), 10), "d must be a positive multiple of 4, .* got 10"),
    "no features": (lambda: ops.rotary_angles((5,), 0), "d must be a positive multiple of 2, .* of 1 axes, got 0"),
    "no axes": (lambda: ops.sincos_position((), 4), r"size must be sizes of at least 1, .* got \(\)"),
    "empty map": (lambda: ops.rotary_angles((7, 0), 4), r"size must be sizes of at least 1, .* got \(7, 0\)"),
    "temperature": (lambda: ops.sincos_position((7, 5), 4, temperature=0.0), "temperature must be positive, got 0.0"),
    "base": (lambda: ops.rotary_angles((7, 5), 4, base=-1.0), "base must be positive, got -1.0"),
    "tokens": (
        lambda: ops.rotate(jnp.ones((7, 3, 6)), jnp.ones((1, 3))),
        r"axis -3 of x and axis -2 of angles must be of one size, got shapes \(7, 3, 6\) and \(1, 3\)",
    ),
    "pairs": (
        lambda: ops.rotate(jnp.ones((7, 3, 6)), jnp.ones((7, 6))),
        r"x must have two features for each angle, got shapes \(7, 3, 6\) and \(7, 6\)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()
