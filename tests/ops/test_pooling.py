import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from tests import oracles

# Bins that divide the map, that do not, that are more than the rows, and the map itself.
SIZES = [((8, 6), (4, 2)), ((7, 5), (3, 2)), ((2, 3), (8, 8)), ((7, 5), (8, 3)), ((1, 1), (2, 3)), ((7, 5), (7, 5))]


def random(shape):
    return np.random.default_rng(0).normal(size=(2, *shape, 3))


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_is_the_oracles(shape, size):
    x = random(shape)
    with jax.enable_x64():
        out = ops.adaptive_average_pool(jnp.array(x), size)
    np.testing.assert_allclose(out, [oracles.adaptive_average_pool(x_b, size) for x_b in x], rtol=1e-12, atol=1e-14)


@pytest.mark.full
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_is_torchs(shape, size):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = random(shape)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), size)
    with jax.enable_x64():
        out = ops.adaptive_average_pool(jnp.array(x), size)
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1), rtol=1e-12, atol=1e-14)


def test_bfloat16_is_accumulated_in_float32():
    x = jnp.array(random((63, 41)) + 1, jnp.bfloat16)  # bfloat16 sums of so many ones would stall
    out = ops.adaptive_average_pool(x, (1, 2))
    assert out.dtype == jnp.bfloat16
    exact = [oracles.adaptive_average_pool(x_b, (1, 2)) for x_b in np.float64(x)]
    np.testing.assert_allclose(np.float64(out), exact, rtol=2**-8)


def test_takes_any_batch_axes():
    x = jnp.array(random((7, 5)))
    out = ops.adaptive_average_pool(x, (3, 2))
    np.testing.assert_allclose(ops.adaptive_average_pool(x[:, None], (3, 2)), out[:, None], atol=1e-6)
    np.testing.assert_allclose(ops.adaptive_average_pool(x[0], (3, 2)), out[0], atol=1e-6)
