"""Losses by hand, a step against plain optax, the judge's sums against NumPy, and devices that agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.sagan import ConditionalBatchNorm
from attn_flax.models.spectral_norm import SpectralNorm
from attn_flax.tasks import Gan
from attn_flax.tasks.gan import discriminator_loss, generator_loss, sample
from attn_flax.tasks.pixels import normal_for_images
from attn_flax.training import Learning, NonFiniteError, Tally, leaf_names, parallelize
from tests.replicas import trained_in_replicas

CLASSES, LATENTS, SHAPE = 3, 4, (4, 2, 2)
MEAN, STD = (0.4, 0.2), (0.3, 0.6)
SGD = optax.sgd(0.1)


class Generator(nnx.Module):
    """Keeps the latent vectors of the last call in training."""

    latent_features = LATENTS

    def __init__(self, size, rngs):
        self.linear = nnx.Linear(LATENTS, 16, rngs=rngs)
        self.classes = nnx.Embed(CLASSES, 16, rngs=rngs)
        self.z = nnx.BatchStat(jnp.zeros((size, LATENTS)))
        self.deterministic = False

    def __call__(self, z, labels):
        if not self.deterministic:
            self.z[...] = z
        return jnp.tanh(self.linear(z) + self.classes(labels)).reshape(-1, *SHAPE)


class Discriminator(nnx.Module):
    """Keeps the pairs of real and generated images that it saw last."""

    def __init__(self, size, rngs):
        self.linear = nnx.Linear(16, CLASSES, rngs=rngs)
        self.pairs = nnx.BatchStat(jnp.zeros((size, 2, *SHAPE)))

    def __call__(self, x, labels):
        if x.shape == self.pairs.shape:
            self.pairs[...] = x
        scores = self.linear(x.reshape(*x.shape[:-3], 16))
        return jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]


class Toy(nnx.Module):
    def __init__(self, size, rngs):
        self.generator = Generator(size, rngs)
        self.discriminator = Discriminator(size, rngs)


class Judge(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 5, rngs=rngs)
        self.out = nnx.Linear(5, CLASSES, rngs=rngs)

    def forward_features(self, x):
        return self.hidden(x.reshape(len(x), -1))

    def pool(self, x):
        return jnp.tanh(x)

    def __call__(self, x):
        return self.out(self.pool(self.forward_features(x)))


JUDGE = Judge(nnx.Rngs(5))


def toy(size=8, *, ema_decay=0.0, optimizers=(SGD, SGD), **arguments):
    generator, discriminator = optimizers
    learning = {"generator": Learning(generator, ema_decay=ema_decay), "discriminator": Learning(discriminator)}
    return Gan(Toy(size, nnx.Rngs(0)), **{**learning, **arguments}, mean=MEAN, std=STD)


def batch_of(size, *, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, size=(size, *SHAPE)) / 255
    image = (pixels - np.array(MEAN)) / np.array(STD)
    return {
        "image": jnp.asarray(image, jnp.float32),
        "label": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
        "weight": np.ones(size, np.float32),
    }


def test_losses_are_the_hinges():
    real, fake = np.random.default_rng(0).normal(scale=2, size=(2, 20))
    expected = np.mean([max(0, 1 - r) for r in real]) + np.mean([max(0, 1 + f) for f in fake])
    np.testing.assert_allclose(discriminator_loss(jnp.asarray(real), jnp.asarray(fake)), expected, rtol=1e-6)
    np.testing.assert_allclose(generator_loss(jnp.asarray(fake)), -np.mean(fake), rtol=1e-6)


def generated(params, z, labels):
    linear, table = params["linear"], params["classes"]["embedding"]
    return np.tanh(np.float64(z) @ linear["kernel"] + linear["bias"] + table[labels])


def latents_of(params, images, labels):
    """The z of images that the generator with these parameters made, each pixel by what its rounding leaves of it."""
    kernel, table = np.float64(params["linear"]["kernel"]), params["classes"]["embedding"]
    images, offset = np.float64(images).reshape(-1, 16), params["linear"]["bias"] + table[labels]
    slopes, moved = 1 - images**2, np.arctanh(images) - offset
    z = np.stack([np.linalg.lstsq((kernel * s).T, m * s)[0] for s, m in zip(slopes, moved, strict=True)])
    np.testing.assert_allclose(np.tanh(z @ kernel + offset), images, atol=1e-6)
    return z


def by_hand(params, opt_states, batch, fake, z, optimizers):
    """A step of each network written out, with the gradients by formula."""
    g, d = params
    real, labels, size = 2 * pixels_of(batch) - 1, np.array(batch["label"]), len(z)
    onehot = np.eye(CLASSES)[labels]

    def scores(d, x):
        return ((x @ d["linear"]["kernel"] + d["linear"]["bias"]) * onehot).sum(1)

    real_scores, fake_scores = scores(d, real), scores(d, fake)
    pull = [sign * (active[:, None] * onehot) / size for sign, active in ((-1, real_scores < 1), (1, fake_scores > -1))]
    d_grads = {"linear": {"kernel": real.T @ pull[0] + fake.T @ pull[1], "bias": pull[0].sum(0) + pull[1].sum(0)}}
    updates, d_opt = optimizers[1].update(d_grads, opt_states[1], d)
    d = jax.tree.map(np.float64, optax.apply_updates(d, updates))

    x = generated(g, z, labels)
    slope = -(onehot @ d["linear"]["kernel"].T) * (1 - x**2) / size
    g_grads = {
        "linear": {"kernel": np.float64(z).T @ slope, "bias": slope.sum(0)},
        "classes": {"embedding": onehot.T @ slope},
    }
    updates, g_opt = optimizers[0].update(g_grads, opt_states[0], g)
    metrics = {
        "discriminator_loss": np.maximum(0, 1 - real_scores).mean() + np.maximum(0, 1 + fake_scores).mean(),
        "generator_loss": -scores(d, x).mean(),
        "real_score": real_scores.mean(),
        "fake_score": fake_scores.mean(),
    }
    return (jax.tree.map(np.float64, optax.apply_updates(g, updates)), d), (g_opt, d_opt), metrics


def pixels_of(batch):
    return (np.float64(batch["image"]) * np.array(STD) + np.array(MEAN)).reshape(-1, 16)


def test_a_step_is_one_of_the_discriminator_and_then_one_of_the_generator():
    optimizers = optax.adam(0.03, b1=0.0, b2=0.9), optax.sgd(0.2, momentum=0.9)
    task = toy(11, optimizers=optimizers)
    state, update = task.init(jax.random.key(0)), jax.jit(task.update)
    params = tuple(jax.tree.map(np.float64, state.params[name]) for name in ("generator", "discriminator"))
    opt_states = tuple(optimizer.init(p) for optimizer, p in zip(optimizers, params, strict=True))
    for seed in range(3):
        batch = batch_of(11, seed=seed)
        state, metrics = update(state, batch)
        real, fake = np.moveaxis(np.float64(state.model_state["discriminator"]["pairs"]).reshape(11, 2, 16), 1, 0)
        np.testing.assert_allclose(real, 2 * pixels_of(batch) - 1, atol=1e-5)
        latents_of(params[0], fake, np.array(batch["label"]))  # made by the generator of before the step
        z = state.model_state["generator"]["z"]
        params, opt_states, expected = by_hand(params, opt_states, batch, fake, z, optimizers)
        assert metrics.pop("finite").all()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-4)
    after = state.params["generator"], state.params["discriminator"]
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert int(state.step) == 3


def test_latent_vectors_are_normal_and_new_in_every_step_of_every_network():
    task = toy(200)
    state, update, drawn = task.init(jax.random.key(0)), jax.jit(task.update), []
    for seed in range(4):
        params, batch = state.params["generator"], batch_of(200, seed=seed)
        state, _ = update(state, batch)
        fake = state.model_state["discriminator"]["pairs"][:, 1]
        drawn += [latents_of(params, fake, np.array(batch["label"])), state.model_state["generator"]["z"]]
    drawn = np.float32(np.stack(drawn))
    assert len(np.unique(drawn.reshape(-1, LATENTS).round(3), axis=0)) == 8 * 200
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 5 / np.sqrt(2 * drawn.size)


def test_the_generator_alone_is_averaged():
    task = toy(ema_decay=0.6)
    state = task.init(jax.random.key(0))
    expected = np.float64(state.params["generator"]["linear"]["kernel"])
    update = jax.jit(task.update)
    for step in range(20):
        state, _ = update(state, batch_of(8, seed=step))
        share = min(0.6, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * np.float64(state.params["generator"]["linear"]["kernel"])
    averages, _ = state.ema
    jax.tree.map(np.testing.assert_array_equal, averages["discriminator"], state.params["discriminator"])
    kernels = [params["generator"]["linear"]["kernel"] for params in (averages, state.params)]
    np.testing.assert_allclose(kernels[0], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    np.testing.assert_array_equal(task.module(state).generator.linear.kernel[...], kernels[0])


def test_without_averages_the_parameters_are_evaluated():
    task = toy()
    state, _ = jax.jit(task.update)(task.init(jax.random.key(0)), batch_of(8))
    assert state.ema is None
    kernel = task.module(state).generator.linear.kernel[...]
    np.testing.assert_array_equal(kernel, state.params["generator"]["linear"]["kernel"])


def test_a_gradient_that_is_not_finite_is_named():
    class Broken(Generator):
        def __init__(self):
            super().__init__(8, nnx.Rngs(0))
            self.broken = nnx.Param(jnp.zeros(()))

        def __call__(self, z, labels):
            return super().__call__(z, labels) + 0 * jnp.sqrt(self.broken[...])

    model = Toy(8, nnx.Rngs(0))
    model.generator = Broken()
    task = Gan(model, Learning(SGD), Learning(SGD), MEAN, STD)
    state = task.init(jax.random.key(0))
    _, metrics = jax.jit(task.update)(state, batch_of(8))
    assert len(metrics["finite"]) == len(leaf_names(state.params))
    tally = Tally(parallelize(task, devices=jax.devices()[:1]), state)
    tally.add(1, jax.tree.map(jnp.asarray, metrics))
    with pytest.raises(NonFiniteError, match=r"in 1 of 6 leaves: generator\.broken"):
        tally.fetch()


def test_the_judge_sees_real_images_and_of_each_class_generated_ones():
    task = toy(judge=JUDGE, samples=3)
    state, batch = task.init(jax.random.key(0)), batch_of(60)
    batch["weight"] = jnp.asarray(np.random.default_rng(0).integers(0, 2, 60), jnp.float32)
    sums = jax.device_get(jax.jit(task.evaluate)(state, batch))
    z = normal_for_images(batch["image"], (3, LATENTS)).reshape(-1, LATENTS)
    labels = np.array(batch["label"]).repeat(3)
    images = generated(jax.tree.map(np.float64, state.params["generator"]), z, labels)
    pixels = np.round((images + 1) / 2 * 255).reshape(-1, *SHAPE) / 255
    fake = (pixels - np.array(MEAN)) / np.array(STD)
    for name, x, y, weight in (
        ("real", batch["image"], batch["label"], batch["weight"]),
        ("generated", fake, labels, batch["weight"].repeat(3)),
    ):
        features, predicted = judged(x)
        counted = np.array(weight) > 0
        of_name = sums[name]
        np.testing.assert_allclose(of_name["features"]["count"], counted.sum())
        np.testing.assert_allclose(of_name["features"]["sum"], features[counted].sum(0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            of_name["features"]["outer"], features[counted].T @ features[counted], rtol=1e-3, atol=1e-2
        )
        np.testing.assert_allclose(of_name["correct"], (predicted == y)[counted].sum(), atol=1)
    summary = task.summarize(sums)
    assert summary["label_accuracy"] == float(sums["generated"]["correct"]) / (3 * batch["weight"].sum())
    assert summary["judge_accuracy"] == pytest.approx(float(sums["real"]["correct"]) / batch["weight"].sum())
    assert summary["frechet_distance"] > 0.1


def judged(x):
    hidden, out = ([np.float64(p[...]) for p in (layer.kernel, layer.bias)] for layer in (JUDGE.hidden, JUDGE.out))
    features = np.tanh(np.float64(x).reshape(len(x), -1) @ hidden[0] + hidden[1])
    return features, (features @ out[0] + out[1]).argmax(1)


def test_of_a_generator_that_copies_the_data_the_distance_is_normed():
    """Images of three fixed patterns, one for each class: the real and the generated ones are the same."""

    class Copy(nnx.Module):
        latent_features = LATENTS

        def __init__(self):
            self.patterns = nnx.Param(
                jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (CLASSES, *SHAPE)), jnp.float32)
            )

        def __call__(self, z, labels):
            return self.patterns[...][labels]

    model = Toy(8, nnx.Rngs(0))
    model.generator = Copy()
    task = Gan(model, Learning(SGD), Learning(SGD), MEAN, STD, JUDGE)
    batch = batch_of(40)
    pixels = np.rint(255 * (np.array(model.generator.patterns[...]) + 1) / 2)[batch["label"]] / 255
    batch["image"] = jnp.asarray((pixels - np.array(MEAN)) / np.array(STD), jnp.float32)
    summary = task.summarize(jax.device_get(jax.jit(task.evaluate)(task.init(jax.random.key(0)), batch)))
    assert summary["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert summary["label_accuracy"] == summary["judge_accuracy"]


def test_scores_rank_by_distance_and_among_equals_by_accuracy():
    worst_first = [(3.0, 1.0), (2.0, 0.5), (2.0, 0.6), (0.1, 0.2)]
    score = toy().score
    scores = [score({"frechet_distance": distance, "label_accuracy": accuracy}) for distance, accuracy in worst_first]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


class NormedGenerator(nnx.Module):
    latent_features = LATENTS

    def __init__(self, rngs):
        self.linear = nnx.Linear(LATENTS, 16, rngs=rngs)
        self.norm = ConditionalBatchNorm(CLASSES, 2, rngs=rngs)

    def __call__(self, z, labels):
        return jnp.tanh(self.norm(self.linear(z).reshape(-1, *SHAPE), labels))


def normed():
    """With all that may differ between devices: batch statistics and spectral norms."""
    model = Toy(16, nnx.Rngs(0))
    model.generator = NormedGenerator(nnx.Rngs(1))
    model.discriminator.linear = SpectralNorm(model.discriminator.linear, rngs=nnx.Rngs(2))
    model.discriminator.pairs = nnx.BatchStat(jnp.zeros(()))
    return Gan(model, Learning(SGD, ema_decay=0.9), Learning(SGD), MEAN, STD)


STEPS = 6


@functools.cache
def trained(how, devices):
    task = normed()
    runner = parallelize(task, how, jax.devices()[:devices])
    state, metrics = runner.place(task.init(jax.random.key(1))), None
    for seed in range(STEPS):
        state, metrics = runner.update(state, runner.put(images_of(seed)))
    return runner.fetch(state), runner.fetch(metrics)


def images_of(seed):
    batch = batch_of(16, seed=seed)
    return {"image": batch["image"], "label": batch["label"]}


def assert_equal(one, other):
    kept = [(s.params, s.model_state, s.opt_state, s.ema, metrics) for s, metrics in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("how", ["jit", "fsdp"])
def test_a_mesh_agrees_with_one_device(how):
    assert_equal(trained("jit", 1), trained(how, 8))


@pytest.mark.full
def test_pmap_agrees_with_vmap_of_the_same_step():
    state, metrics = trained_in_replicas(normed(), map(images_of, range(STEPS)), key=jax.random.key(1))
    assert_equal((state, metrics[-1]), trained("pmap", 8))


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_devices_agree_in_evaluation(how):
    task = toy(judge=JUDGE, samples=2)
    state, batch = task.init(jax.random.key(0)), batch_of(16)
    batch["weight"][13:] = 0
    expected = jax.jit(task.evaluate)(state, batch)
    runner = parallelize(task, how)
    sums = runner.fetch(runner.evaluate(runner.place(state), runner.put(batch)))
    for a, b in zip(*map(jax.tree.leaves, (sums, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_samples_are_bytes_and_a_function_of_their_key():
    model = toy().model
    model.eval()
    labels = jnp.array([0, 1, 2, 2])
    first, again, other = (np.array(sample(model, jax.random.key(key), labels)) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1 / 255
    assert np.abs(first[2] - first[3]).max() > 1 / 255
    np.testing.assert_allclose(255 * first, np.rint(255 * first), atol=1e-4)
    assert 0 <= first.min() < first.max() <= 1
    assert first.shape == (4, *SHAPE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"discriminator": Learning(SGD, ema_decay=0.5)}, "discriminator's ema_decay must be 0, got 0.5"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        toy(**arguments)


def test_evaluation_without_a_judge_is_refused():
    task = toy()
    with pytest.raises(InputError, match="judged by a classifier, got none"):
        task.evaluate(task.init(jax.random.key(0)), batch_of(4))
