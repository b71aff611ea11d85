"""mixup and CutMix against NumPy, with the share λ read off the outputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.tasks import Classification
from attn_flax.tasks.mixing import cutmix, mixup
from attn_flax.training import Learning

RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.normal(size=(5, 7, 9, 2)), jnp.float32)
TARGETS = jnp.eye(5)
DRAWS = 4000


def shares(mix, alpha, *, shape=(1, 1, 1), draws=DRAWS):
    """The share that the first of two images keeps in its target, over many keys."""
    images, targets = jnp.zeros((2, *shape)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(1), draws)
    return np.array(jax.jit(jax.vmap(lambda key: mix(key, images, targets, alpha=alpha)[1][0, 0]))(keys))


def boxes(shape, alpha, *, draws=DRAWS):
    """The pixels that CutMix takes from the partner, and the share of the target that is left, over many keys."""
    images = jnp.stack([jnp.zeros((*shape, 1)), jnp.ones((*shape, 1))])
    keys = jax.random.split(jax.random.key(2), draws)
    mixed, targets = jax.jit(jax.vmap(lambda key: cutmix(key, images, jnp.eye(2), alpha=alpha)))(keys)
    return np.array(mixed[:, 0, :, :, 0]) == 1, np.array(targets[:, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_images_and_targets_by_one_share(seed):
    images, targets = mixup(jax.random.key(seed), IMAGES, TARGETS, alpha=0.7)
    share = float(targets[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(images, share * IMAGES + (1 - share) * IMAGES[::-1], atol=1e-6)
    np.testing.assert_allclose(targets, share * TARGETS + (1 - share) * TARGETS[::-1], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_takes_a_box_of_the_partner_and_its_share_of_the_target(seed):
    images, targets = cutmix(jax.random.key(seed), IMAGES, TARGETS, alpha=1.0)
    taken = np.array((images[0] != IMAGES[0]).all(-1))
    np.testing.assert_array_equal(taken, np.outer(taken.any(1), taken.any(0)))
    np.testing.assert_array_equal(images, np.where(taken[..., None], IMAGES[::-1], IMAGES))
    share = 1 - taken.mean()
    np.testing.assert_allclose(targets, share * TARGETS + (1 - share) * TARGETS[::-1], atol=1e-6)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_keys_decide(mix):
    first, again, other = (mix(jax.random.key(k), IMAGES, TARGETS, alpha=1.0) for k in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    """Of Beta(α, α) the mean is 1/2 and the variance 1 / (4 (2α + 1)); bounds are five standard errors."""
    drawn = shares(mixup, alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(drawn.mean() - 0.5) < 5 * math.sqrt(variance / DRAWS)
    assert abs(drawn.var() / variance - 1) < 0.1


def test_cutmix_boxes_have_one_relative_side():
    """A box that no border cuts has 2⌊h s / 2⌋ rows and 2⌊w s / 2⌋ columns."""
    height, width = 20, 33
    taken, kept = boxes((height, width), 1.0)
    np.testing.assert_allclose(kept, 1 - taken.mean((1, 2)), atol=1e-6)
    inside = [box for box in taken if box.any() and not (box[[0, -1]].any() or box[:, [0, -1]].any())]
    assert len(inside) > 0.05 * DRAWS
    for box in inside:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, np.outer(rows, columns))
        r, c = rows.sum(), columns.sum()
        assert r % 2 == c % 2 == 0
        assert max(r / height, c / width) < min((r + 2) / height, (c + 2) / width)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_takes_each_pixel_as_often_as_the_paper_does(alpha):
    """Against the paper's own drawing of boxes; bounds are five standard errors."""
    height, width, draws = 6, 11, 20_000
    rng, expected = np.random.default_rng(4), np.zeros((height, width))
    for _ in range(draws):
        side = math.sqrt(1 - rng.beta(alpha, alpha))
        y, x = rng.integers(height), rng.integers(width)
        half_rows, half_columns = int(height * side) // 2, int(width * side) // 2
        expected[max(y - half_rows, 0) : y + half_rows, max(x - half_columns, 0) : x + half_columns] += 1 / draws
    taken, _ = boxes((height, width), alpha)
    bound = 5 * np.sqrt(expected * (1 - expected) * (1 / DRAWS + 1 / draws))
    assert (np.abs(taken.mean(0) - expected) < bound).all()
    assert expected.min() > 0.02


@pytest.mark.parametrize(("dtype", "mix"), [(jnp.bfloat16, mixup), (jnp.bfloat16, cutmix), (jnp.float32, mixup)])
def test_types_are_kept(dtype, mix):
    images, targets = mix(jax.random.key(0), IMAGES.astype(dtype), TARGETS, alpha=1.0)
    assert (images.dtype, targets.dtype) == (dtype, jnp.float32)
    np.testing.assert_allclose(targets.sum(1), np.ones(5), rtol=1e-6)


@pytest.mark.full
def test_with_both_each_batch_takes_one_of_them():
    """With mixup all pixels of an image move, with CutMix those of a box."""
    task = Classification(nnx.Linear(1, 5, rngs=nnx.Rngs(0)), Learning(optax.sgd(0.1)), 5, 0.0, 1.0, 1.0)
    keys = jax.random.split(jax.random.key(3), 400)
    batch = {"image": IMAGES, "label": jnp.arange(len(IMAGES)) % 5}
    images, _ = jax.vmap(lambda key: task.examples(key, batch))(keys)
    whole = ((images != IMAGES) & (images != IMAGES[::-1]))[:, 0].all((1, 2, 3))
    assert abs(whole.mean() - 0.5) < 5 * 0.5 / math.sqrt(400)
