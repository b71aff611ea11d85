"""The evidence lower bound against numerical integration, scipy's distributions and codes that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, stats

from attn_flax.checks import InputError
from attn_flax.tasks import Vae
from attn_flax.tasks.pixels import normal_for_images
from attn_flax.tasks.vae import (
    interpolate,
    kl_divergence,
    log_discretized_logistic,
    reconstruct,
    sample,
)
from attn_flax.training import Learning, parallelize
from tests.replicas import trained_in_replicas

MEAN, STD = (0.4, 0.2), (0.3, 0.6)
LATENTS = 3


class Linear(nnx.Module):
    """Four linear layers: of the image to μ and log σ², of z to locations and log-scales."""

    latent_features = LATENTS

    def __init__(self, shape=(5, 3, 2), *, rngs):
        size = int(np.prod(shape))
        self.mean, self.log_variance = (nnx.Linear(size, LATENTS, rngs=rngs) for _ in range(2))
        self.location, self.log_scale = (nnx.Linear(LATENTS, size, rngs=rngs) for _ in range(2))
        self.shape = shape

    def encode(self, x):
        x = x.reshape(len(x), -1)
        return self.mean(x), self.log_variance(x)

    def decode(self, z):
        return tuple(layer(z).reshape(-1, *self.shape) for layer in (self.location, self.log_scale))

    def __call__(self, x, noise):
        mean, log_variance = self.encode(x)
        return mean, log_variance, *self.decode(mean + jnp.exp(log_variance / 2) * noise)


class Fixed(nnx.Module):
    """A posterior that is the prior, and one logistic for all pixels."""

    latent_features = LATENTS

    def __init__(self, log_scale):
        self.log_scale = nnx.Param(jnp.array(log_scale))

    def __call__(self, x, noise):
        return 0 * noise, 0 * noise, 0 * x, self.log_scale[...] + 0 * x


def batch_of(size, *, levels, shape=(5, 3, 2), seed=0):
    """Images of random levels, standardised, and the levels."""
    chosen = np.random.default_rng(seed).integers(0, levels, size=(size, *shape))
    image = (chosen / (levels - 1) - np.array(MEAN)) / np.array(STD)
    return {"image": jnp.asarray(image, jnp.float32), "weight": np.ones(size, np.float32)}, chosen


def vae(model, **arguments):
    return Vae(model, Learning(optax.sgd(0.1)), MEAN, STD, **arguments)


def logistic_bins(levels, location, log_scale, count):
    """p of each level by scipy's distribution function, from the side where it is small."""
    side = np.where(2 * levels / (count - 1) - 1 > location, -1, 1)
    logistic = stats.logistic(side * location, np.exp(log_scale))
    lower = np.where(levels == 0, -np.inf, (2 * levels - 1) / (count - 1) - 1)
    upper = np.where(levels == count - 1, np.inf, (2 * levels + 1) / (count - 1) - 1)
    return np.abs(logistic.cdf(side * upper) - logistic.cdf(side * lower))


@pytest.mark.parametrize("count", [2, 17, 256])
@pytest.mark.parametrize("log_scale", [-6.0, -2.5, 0.7])
def test_the_likelihood_is_a_distribution_over_the_levels(count, log_scale):
    levels, location = np.arange(count), np.random.default_rng(0).uniform(-1.3, 1.3, size=(6, 1))
    with jax.enable_x64():
        shape = (6, count)
        log_p = log_discretized_logistic(
            *(jnp.broadcast_to(jnp.asarray(x, float), shape) for x in (levels, location, log_scale)), count
        )
    p = np.exp(log_p)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(p, logistic_bins(levels, location, log_scale, count), rtol=1e-9, atol=1e-300)


def test_the_likelihood_of_what_is_far_away_is_finite_and_has_a_gradient():
    def log_p(location, log_scale):
        return log_discretized_logistic(jnp.array([0.0, 100.0, 255.0]), location, log_scale, 256)

    location, log_scale = jnp.array([1.0, -1.0, -1.0]), jnp.full(3, -7.0)
    values = log_p(location, log_scale)
    expected = stats.logistic.logsf(np.array([2 - 1 / 255]), scale=np.exp(-7.0))
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-5)
    gradients = jax.grad(lambda *x: log_p(*x).sum(), argnums=(0, 1))(location, log_scale)
    assert all(jnp.isfinite(x).all() and (x != 0).all() for x in (values, *gradients))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.3, 0.4), (-0.2, 2.1)])
def test_the_divergence_is_its_integral(mean, std):
    def integrand(z):
        q, p = stats.norm(mean, std), stats.norm()
        return q.pdf(z) * (q.logpdf(z) - p.logpdf(z))

    expected, _ = integrate.quad(integrand, mean - 12 * std, mean + 12 * std)
    divergence = kl_divergence(jnp.array([[mean]]), jnp.array([[2 * np.log(std)]]))
    np.testing.assert_allclose(divergence, [expected], atol=1e-6)


def test_the_divergence_adds_over_latents():
    mean, log_variance = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)), jnp.float32)
    apart = jnp.stack([kl_divergence(m[:, None], v[:, None]) for m, v in zip(mean.T, log_variance.T, strict=True)])
    np.testing.assert_allclose(kl_divergence(mean, log_variance), apart.sum(0), rtol=1e-5)


@pytest.mark.parametrize("levels", [17, 256])
def test_the_bound_is_that_of_numpy_in_bits_per_dimension(levels):
    task = vae(Linear(rngs=nnx.Rngs(0)), levels=levels, beta=3.0)
    state, (batch, chosen) = task.init(jax.random.key(0)), batch_of(7, levels=levels)
    batch["weight"][5:] = 0
    summary = task.summarize(jax.device_get(jax.jit(task.evaluate)(state, batch)))

    params = jax.tree.map(np.float64, state.params)
    noise = np.float64(normal_for_images(batch["image"], (LATENTS,)))
    mean, log_variance = (apply(params[name], batch["image"]) for name in ("mean", "log_variance"))
    z = mean + np.exp(log_variance / 2) * noise
    location, log_scale = (apply(params[name], z).reshape(chosen.shape) for name in ("location", "log_scale"))
    bits = -np.log2(logistic_bins(chosen, location, np.maximum(log_scale, -7), levels)).mean((1, 2, 3))
    rate = sum(-np.log(s) + (s**2 + m**2 - 1) / 2 for m, s in zip(mean.T, np.exp(log_variance / 2).T, strict=True)) / (
        30 * np.log(2)
    )
    assert summary["distortion"] == pytest.approx(bits[:5].mean(), rel=1e-4)
    assert summary["rate"] == pytest.approx(rate[:5].mean(), rel=1e-4)
    assert summary["bits_per_dim"] == pytest.approx((bits + rate)[:5].mean(), rel=1e-4)


def apply(layer, x):
    return np.float64(x).reshape(len(x), -1) @ layer["kernel"] + layer["bias"]


@pytest.mark.parametrize(("levels", "scale"), [(2, 0.3), (3, 1 / (2 * np.log(2))), (4, 2 / (3 * np.log(3)))])
def test_uniform_pixels_cost_the_logarithm_of_their_levels(levels, scale):
    """With these scales the logistic's quantiles are the edges of the bins."""
    task = vae(Fixed(np.log(scale)), levels=levels)
    batch, _ = batch_of(5, levels=levels)
    summary = task.summarize(jax.device_get(jax.jit(task.evaluate)(task.init(jax.random.key(0)), batch)))
    assert summary == pytest.approx(
        {"bits_per_dim": np.log2(levels), "distortion": np.log2(levels), "rate": 0}, rel=1e-5
    )


def test_a_step_descends_the_weighted_bound():
    """Against finite differences of NumPy's; of the bias of μ, which all terms depend on."""
    task = vae(Linear(rngs=nnx.Rngs(0)), levels=17, beta=2.5)
    state, (batch, chosen) = task.init(jax.random.key(3)), batch_of(6, levels=17)
    key, _ = jax.random.split(jax.random.fold_in(state.key, 0))
    noise = np.float64(jax.random.normal(key, (6, LATENTS)))
    params = jax.tree.map(np.float64, state.params)

    def parts(bias):
        mean = apply(params["mean"] | {"bias": bias}, batch["image"])
        variance = np.exp(apply(params["log_variance"], batch["image"]))
        z = mean + np.sqrt(variance) * noise
        location, log_scale = (apply(params[name], z).reshape(chosen.shape) for name in ("location", "log_scale"))
        distortion = -np.log2(logistic_bins(chosen, location, np.maximum(log_scale, -7), 17)).mean()
        return distortion, (mean**2 + variance - 1 - np.log(variance)).sum(1).mean() / (60 * np.log(2))

    def loss(bias):
        distortion, rate = parts(bias)
        return distortion + 2.5 * rate

    bias = params["mean"]["bias"]
    gradient = [(loss(bias + step) - loss(bias - step)) / 2e-5 for step in 1e-5 * np.eye(LATENTS)]
    after, metrics = jax.jit(task.update)(state, batch)
    np.testing.assert_allclose((bias - after.params["mean"]["bias"]) / 0.1, gradient, rtol=1e-3, atol=1e-5)
    distortion, rate = parts(bias)
    expected = {"distortion": distortion, "rate": rate, "loss": loss(bias), "bits_per_dim": distortion + rate}
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-4)


def test_pictures_are_the_locations():
    model = Linear(rngs=nnx.Rngs(0))
    one, other = (batch_of(4, levels=17, seed=seed)[0]["image"] for seed in range(2))

    def pixels(z):
        location = apply(jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(model.location))), z)
        return np.clip((location.reshape(-1, 5, 3, 2) + 1) / 2, 0, 1)

    means = [np.float64(model.encode(images)[0]) for images in (one, other)]
    np.testing.assert_allclose(reconstruct(model, one), pixels(means[0]), atol=1e-5)
    way = interpolate(model, one, other, 5)
    for step in range(5):
        z = (1 - step / 4) * means[0] + step / 4 * means[1]
        np.testing.assert_allclose(way[:, step], pixels(z), atol=1e-5)
    key = jax.random.key(7)
    z = jax.random.normal(key, (6, LATENTS))
    np.testing.assert_allclose(sample(model, key, 6), pixels(np.float64(z)), atol=1e-5)


STEPS = 5


def images_of(step):
    image = np.random.default_rng(step).normal(size=(16, 5, 3, 2))
    return {"image": jnp.asarray(image, jnp.float32)}


def trained(how, devices):
    task = vae(Linear(rngs=nnx.Rngs(0)), levels=17)
    runner = parallelize(task, how, jax.devices()[:devices])
    state, metrics = runner.place(task.init(jax.random.key(1))), []
    for step in range(STEPS):
        state, seen = runner.update(state, runner.put(images_of(step)))
        metrics.append(runner.fetch(seen))
    return runner.fetch(state), metrics


def assert_equal(one, other):
    for a, b in zip(*(jax.tree.leaves((state.params, metrics)) for state, metrics in (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_mesh_agrees_with_one_device():
    assert_equal(trained("jit", 8), trained("jit", 1))


@pytest.mark.full
def test_pmap_agrees_with_vmap_of_the_same_step():
    task = vae(Linear(rngs=nnx.Rngs(0)), levels=17)
    assert_equal(trained_in_replicas(task, map(images_of, range(STEPS)), key=jax.random.key(1)), trained("pmap", 8))


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_devices_agree_in_evaluation(how):
    task = vae(Linear(rngs=nnx.Rngs(0)), levels=17)
    state, (batch, _) = task.init(jax.random.key(0)), batch_of(16, levels=17)
    batch["weight"][13:] = 0
    expected = jax.jit(task.evaluate)(state, batch)
    runner = parallelize(task, how)
    sums = runner.fetch(runner.evaluate(runner.place(state), runner.put(batch)))
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"levels": 1}, "levels must be at least 2, got 1"), ({"beta": -1.0}, "beta must not be negative, got -1.0")],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        vae(Linear(rngs=nnx.Rngs(0)), **arguments)


def test_a_way_of_one_step_is_refused():
    image = batch_of(1, levels=17)[0]["image"]
    with pytest.raises(InputError, match="steps must be at least 2, got 1"):
        interpolate(Linear(rngs=nnx.Rngs(0)), image, image, 1)
