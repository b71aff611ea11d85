"""Each optimiser against its formula in NumPy, two steps of it; decay, clipping and schedules by their values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_flax.training import create_optimizer, create_schedule, list_optimizers

RATE = 0.03
DECAY = 0.2


def trees(count):
    """Random trees of a kernel and a bias."""
    rng = np.random.default_rng(5)
    return [{"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)} for _ in range(count)]


def stepped(optimizer, params, *gradients):
    """The parameters after a step along each of the gradients, in float64."""
    with jax.enable_x64():
        params = jax.tree.map(jnp.array, params)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.array, gradient), state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.map(np.array, params)


def sgd(p, gradients, decay):
    velocity = 0
    for g in gradients:
        g = g + decay * p
        velocity = 0.9 * velocity + g
        p = p - RATE * (g + 0.9 * velocity)
    return p


def adam_directions(gradients, b1=0.9, b2=0.999):
    m = v = 0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield m / (1 - b1**t), v / (1 - b2**t)


def adam_gan(p, gradients, decay):
    for m, v in adam_directions(gradients, 0.0, 0.9):
        p = p - RATE * m / (np.sqrt(v) + 1e-8)
    return p


def adamw(p, gradients, decay):
    for m, v in adam_directions(gradients):
        p = p - RATE * (m / (np.sqrt(v) + 1e-8) + decay * p)
    return p


def lamb(p, gradients, decay):
    for m, v in adam_directions(gradients):
        direction = m / (np.sqrt(v) + 1e-6) + decay * p
        p = p - RATE * np.linalg.norm(p) / np.linalg.norm(direction) * direction
    return p


def lion(p, gradients, decay):
    m = 0
    for g in gradients:
        p = p - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * p)
        m = 0.99 * m + 0.01 * g
    return p


def adafactor(p, gradients, decay):
    """Without factors, which begin at 128 rows and columns; the step is clipped and scaled by root mean squares."""
    v = 0
    for t, g in enumerate(gradients, 1):
        share = 1 - t**-0.8
        v = share * v + (1 - share) * (g**2 + 1e-30)
        step = g / np.sqrt(v)
        step = step / max(1, np.sqrt((step**2).mean()))
        p = p - RATE * max(np.sqrt((p**2).mean()), 1e-3) * step - decay * p
    return p


FORMULAS = {
    "adafactor": adafactor,
    "adam": adamw,
    "adam_gan": adam_gan,
    "adamw": adamw,
    "lamb": lamb,
    "lion": lion,
    "sgd": sgd,
}


def test_every_optimizer_has_a_formula():
    assert list_optimizers() == sorted(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_two_steps_follow_the_formula_and_only_kernels_decay(name):
    params, *gradients = trees(3)
    decay = 0.0 if name in ("adam", "adam_gan") else DECAY
    after = stepped(create_optimizer(name, RATE, weight_decay=decay), params, *gradients)
    for leaf, its_decay in (("kernel", decay), ("bias", 0.0)):
        expected = FORMULAS[name](params[leaf], [g[leaf] for g in gradients], its_decay)
        np.testing.assert_allclose(after[leaf], expected, rtol=1e-6, err_msg=leaf)


@pytest.mark.parametrize("scale", [10.0, 0.01])
def test_gradients_are_clipped_to_a_global_norm(scale):
    params, gradient = trees(2)
    gradient = jax.tree.map(lambda g: scale * g, gradient)
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    assert (norm > 0.5) == (scale > 1)
    after = stepped(create_optimizer("sgd", RATE, clip_norm=0.5), params, gradient)
    for leaf in params:
        expected = params[leaf] - RATE * 1.9 * gradient[leaf] * min(1, 0.5 / norm)
        np.testing.assert_allclose(after[leaf], expected, rtol=1e-6)


def test_the_rate_is_that_of_the_step():
    params, *gradients = trees(4)
    rate = create_schedule("cosine", 0.2, steps=9, warmup_steps=2)
    after = stepped(create_optimizer("lion", rate), params, *gradients)
    one_by_one, m = params["bias"], 0
    for step, gradient in enumerate(gradients):
        one_by_one = one_by_one - float(rate(step)) * np.sign(0.9 * m + 0.1 * gradient["bias"])
        m = 0.99 * m + 0.01 * gradient["bias"]
    np.testing.assert_allclose(after["bias"], one_by_one, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 10), (1, 2)])
def test_cosine_rises_in_a_line_and_falls_along_half_a_wave(warmup, steps):
    rate = create_schedule("cosine", 0.3, steps=steps, warmup_steps=warmup)
    rising = [0.3 * step / warmup for step in range(warmup)]
    falling = [0.15 * (1 + np.cos(np.pi * step / (steps - warmup))) for step in range(steps - warmup + 1)]
    np.testing.assert_allclose([rate(step) for step in range(steps + 1)], rising + falling, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 4])
def test_constant_stays_at_the_peak(warmup):
    rate = create_schedule("constant", 0.3, steps=7, warmup_steps=warmup)
    expected = [0.3 * min(1, step / warmup) if warmup else 0.3 for step in range(9)]
    np.testing.assert_allclose([rate(step) for step in range(9)], expected, rtol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_factors_scale_the_steps_of_a_parameter_and_its_decay(name):
    params, gradient = trees(2)
    decay = 0.0 if name in ("adam", "adam_gan") else DECAY
    factors = {"kernel": 0.25, "bias": 1.0}
    plain, scaled = (
        stepped(create_optimizer(name, RATE, weight_decay=decay, clip_norm=2.0, factors=some), params, gradient)
        for some in (None, factors)
    )
    for leaf, factor in factors.items():
        np.testing.assert_allclose(scaled[leaf] - params[leaf], factor * (plain[leaf] - params[leaf]), rtol=1e-6)
