"""Generator and discriminator against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.explain import attention_maps
from attn_flax.models import create_model
from attn_flax.models.maps import double, halve
from attn_flax.models.sagan import ConditionalBatchNorm

CLASSES = 4
SMALL = {"latent_features": 6, "generator_features": (16, 8), "discriminator_features": (8, 12)}


def gan(*, image_size=(12, 8), in_channels=2, **arguments):
    arguments = {**SMALL, **arguments}
    return create_model(
        "gan", num_classes=CLASSES, image_size=image_size, in_channels=in_channels, rngs=nnx.Rngs(0), **arguments
    )


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def labels(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(CLASSES, size=shape), jnp.int32)


def perturbed(module):
    """With other numbers wherever they begin as zeros or ones."""
    params = nnx.state(module, nnx.Param)
    leaves, structure = jax.tree.flatten(params)
    moved = [leaf + 0.3 * random(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    nnx.update(module, jax.tree.unflatten(structure, moved))
    return module


def test_maps_are_halved_by_means_and_doubled_by_copies():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3))
    halved = np.zeros((2, 3, 2, 3))
    for i, j in np.ndindex(3, 2):
        halved[:, i, j] = (
            x[:, 2 * i, 2 * j] + x[:, 2 * i + 1, 2 * j] + x[:, 2 * i, 2 * j + 1] + x[:, 2 * i + 1, 2 * j + 1]
        ) / 4
    np.testing.assert_allclose(halve(jnp.asarray(x)), halved, atol=1e-6)
    doubled = np.array(double(jnp.asarray(x)))
    assert doubled.shape == (2, 12, 8, 3)
    for i, j in np.ndindex(12, 8):
        np.testing.assert_array_equal(doubled[:, i, j], np.float32(x[:, i // 2, j // 2]))


def test_conditional_batch_norm_scales_and_shifts_by_class():
    norm = perturbed(ConditionalBatchNorm(CLASSES, 3, rngs=nnx.Rngs(0)))
    x, y = random(9, 5, 4, 3), labels(9)
    scale, shift = np.float64(norm.scale[...]), np.float64(norm.shift[...])
    flat = np.float64(x).reshape(-1, 3)
    normalised = (np.float64(x) - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    expected = [scale[label] * image + shift[label] for label, image in zip(y, normalised, strict=True)]
    np.testing.assert_allclose(norm(x, y), expected, atol=1e-5)
    norm.eval()
    kept = [
        scale[label] * (image - 0.1 * flat.mean(0)) / np.sqrt(0.9 + 0.1 * flat.var(0) + 1e-5) + shift[label]
        for label, image in zip(y, np.float64(x), strict=True)
    ]
    np.testing.assert_allclose(norm(x, y), kept, atol=1e-5)


@pytest.mark.full
def test_the_discriminator_projects_the_class_onto_its_features():
    """D(x, y) = ψ·φ(x) + b + V_yᵀ φ(x): over the labels its differences are linear in φ, which no label enters."""
    d = perturbed(gan().discriminator)
    d.eval()
    x = random(CLASSES, 12, 8, 2)
    features = []
    score, classes = d.score, d.classes
    d.score = lambda phi: features.append(phi) or score(phi)
    everything = jnp.stack([d(x, jnp.full(CLASSES, label)) for label in range(CLASSES)], 1)
    d.score = score
    phi = np.float64(features[0])
    for seen in features[1:]:
        np.testing.assert_array_equal(seen, features[0])

    def divided(layer, vector):
        w = np.float64(layer.layer.kernel[...])
        v = w @ vector / np.linalg.norm(w @ vector)
        return w / (v @ w @ (w.T @ v) / np.linalg.norm(w.T @ v))

    w, v = divided(score, np.float64(score.u[...])), divided(classes, np.float64(classes.u[...]))
    expected = phi @ w + float(score.layer.bias[...][0]) + phi @ v.T
    np.testing.assert_allclose(everything, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_the_discriminator_sees_each_image_by_itself_under_any_batch_axes():
    d = perturbed(gan().discriminator)
    d.eval()
    x, y = random(3, 2, 12, 8, 2), labels(3, 2)
    apart = [[float(d(x[i, j], y[i, j])) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(d(x, y), apart, rtol=1e-4, atol=1e-4)


def test_all_kernels_are_divided_but_those_of_the_attention():
    model = gan()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear | nnx.Conv):
            assert path[-1] == "layer" or "attention" in path, path


@pytest.mark.full
@pytest.mark.parametrize("attention", ["sagan", "none"])
def test_the_networks_attend_to_maps_of_half_the_size(attention):
    model = perturbed(gan(attention=attention))
    z, y = random(5, 6), labels(5)
    maps = attention_maps(model, z, y) | attention_maps(model.discriminator, random(5, 12, 8, 2), y)
    assert {path: m.shape for path, m in maps.items()} == (
        {} if attention == "none" else {"generator.attention": (5, 24, 24), "attention": (5, 24, 24)}
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("image_size", "arguments"),
    [
        ((8, 8), {"in_channels": 1}),
        ((32, 32), {"in_channels": 3, "generator_features": (8, 8, 8, 8), "discriminator_features": (8, 8, 8)}),
        ((6, 10), {"in_channels": 3, "discriminator_features": (8,)}),
    ],
)
def test_sizes_are_arguments(image_size, arguments):
    model = gan(image_size=image_size, **arguments)
    model.eval()
    y = jnp.array([0, 1, 1])
    images = model(random(3, 6), y)
    assert images.shape == (3, *image_size, arguments["in_channels"])
    assert jnp.abs(images).max() <= 1
    assert jnp.abs(images[1] - images[2]).max() > 1e-3
    assert model.discriminator(images, y).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (12, 10)}, r"multiples of 4 for discriminator_features=\(8, 12\), got \(12, 10\)"),
        ({"image_size": (9, 8), "discriminator_features": (8,)}, r"multiples of 2 for generator_features=\(16, 8\)"),
        (
            {"generator_features": (16,)},
            r"generator_features must be positive sizes of at least one block, got \(16,\)",
        ),
        ({"discriminator_features": ()}, "discriminator_features must be positive sizes of at least one block"),
        ({"discriminator_features": (0,)}, "discriminator_features must be positive sizes of at least one block"),
        ({"latent_features": 0}, "latent_features must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        gan(**arguments)


def test_latent_vectors_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"z must be \(b, 6\) for the b labels, got shapes \(3, 5\) and \(3,\)"):
        gan()(random(3, 5), labels(3))
