"""Standardised images against the data room's, and random numbers that belong to images."""

import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.checks import InputError
from attn_flax.data.collate import Collate
from attn_flax.tasks.pixels import Standardization, normal_for_images, to_bytes

MEAN, STD = (0.4, 0.5, 0.1), (0.3, 0.01, 0.25)


def test_the_bytes_of_standardised_images_are_exact():
    images = np.arange(256 * 3, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8)
    standardised = Collate((16, 16, 3), MEAN, STD, 1)([{"image": images, "label": 0}])["image"]
    standardization = Standardization(MEAN, STD)
    pixels = standardization.pixels(jnp.asarray(standardised))
    np.testing.assert_array_equal(np.rint(255 * np.array(pixels)), images[None])
    np.testing.assert_allclose(standardization.standardize(pixels), standardised, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,))])
def test_statistics_that_do_not_fit_are_refused(mean, std):
    with pytest.raises(InputError, match="mean and std must have a value for each channel"):
        Standardization(mean, std)


def test_bytes_are_the_next_ones():
    x = np.random.default_rng(0).uniform(-1.2, 1.2, 500)
    expected = [min((abs(2 * b / 255 - 1 - value), b) for b in range(256))[1] for value in x]
    np.testing.assert_array_equal(np.rint(255 * np.array(to_bytes(jnp.asarray(x)))), expected)


def test_each_image_has_normal_numbers_of_its_own():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 3, size=(300, 4, 3, 2)), jnp.float32)
    draws = np.array(normal_for_images(images, (10,)))
    assert len(np.unique(draws, axis=0)) == len(draws)
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert abs(draws.var() - 1) < 5 * np.sqrt(2 / draws.size)


def test_where_an_image_stands_does_not_matter():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 3, 2)), jnp.float32)
    order = np.array([3, 0, 5])
    draws = normal_for_images(images, (2, 3))
    np.testing.assert_array_equal(normal_for_images(images[order], (2, 3)), draws[order])
    swapped = images.at[0, 0, 0].set(images[0, 1, 2]).at[0, 1, 2].set(images[0, 0, 0])
    assert (normal_for_images(swapped, (2, 3))[0] != draws[0]).all()
