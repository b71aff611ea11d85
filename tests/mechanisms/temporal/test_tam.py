"""The temporal adaptive module against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.temporal.tam import TemporalAdaptive
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal import naive
from tests.oracles import sigmoid

SHAPE = (4, 3, 2, 6)
CREATE = {
    "three frames": partial(TemporalAdaptive, 6, num_frames=4, beta=3),
    "five frames": partial(TemporalAdaptive, 6, num_frames=4, kernel_size=5, alpha=3, beta=2),
}


def relu(u):
    return np.maximum(u, 0)


def means(x):
    t, h, w, _ = x.shape
    return np.array([sum(x[s, i, j] for i in range(h) for j in range(w)) / (h * w) for s in range(t)])


def convolved(g, kernel):
    """Σ_k W_k g_{t + k - ⌊K/2⌋}."""
    size, reach = len(kernel), len(kernel) // 2
    frames = [[(k, t + k - reach) for k in range(size) if 0 <= t + k - reach < len(g)] for t in range(len(g))]
    return np.array([sum(g[s] @ kernel[k] for k, s in pairs) for pairs in frames])


def importance(g, p, *, gate=sigmoid, norm=naive.batch_norm):
    return gate(relu(norm(convolved(g, p["reduce.kernel"]), p, "reduce_norm")) @ p["expand.kernel"])


def kernel(g, p, *, norm=naive.batch_norm, normalize=naive.softmax):
    return normalize(relu(norm(g.T @ p["widen.kernel"], p, "widen_norm")) @ p["form.kernel"])


def filtered(x, theta, flip=1):
    reach = theta.shape[1] // 2
    y = np.zeros_like(x)
    for t in range(len(x)):
        for k in range(theta.shape[1]):
            if 0 <= t + flip * (k - reach) < len(x):
                y[t] += theta[:, k] * x[t + flip * (k - reach)]
    return y


def oracle(x, p):
    g = means(x)
    return filtered(importance(g, p)[:, None, None] * x, kernel(g, p))


def maps(x, p):
    return {"importance": importance(means(x), p), "kernel": kernel(means(x), p)}


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[form], maps, SHAPE, method="attention_map", gradient=False)


def no_norm(u, p, name):
    return u


MUTANTS = {
    "no importance": lambda x, p: filtered(x, kernel(means(x), p)),
    "no kernel": lambda x, p: importance(means(x), p)[:, None, None] * x,
    "importance after the kernel": lambda x, p: (
        importance(means(x), p)[:, None, None] * filtered(x, kernel(means(x), p))
    ),
    "the kernel of the weighed video": lambda x, p: filtered(
        importance(means(x), p)[:, None, None] * x, kernel(means(x) * importance(means(x), p), p)
    ),
    "a flipped kernel": lambda x, p: filtered(importance(means(x), p)[:, None, None] * x, kernel(means(x), p), -1),
    "no softmax": lambda x, p: filtered(
        importance(means(x), p)[:, None, None] * x, kernel(means(x), p, normalize=lambda u: u)
    ),
    "no norm of the kernel": lambda x, p: filtered(
        importance(means(x), p)[:, None, None] * x, kernel(means(x), p, norm=no_norm)
    ),
    "no norm of the importance": lambda x, p: filtered(
        importance(means(x), p, norm=no_norm)[:, None, None] * x, kernel(means(x), p)
    ),
    "one kernel for all channels": lambda x, p: filtered(
        importance(means(x), p)[:, None, None] * x, np.tile(kernel(means(x), p).mean(0), (6, 1))
    ),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["three frames"], MUTANTS[mutant], SHAPE)


def test_in_training_channels_are_normalised_over_the_batch():
    module = TemporalAdaptive(6, num_frames=4, beta=3, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, *SHAPE))
    p = against_oracle.numbers(module)
    g = np.array([means(video) for video in x])
    wide = g.swapaxes(1, 2) @ p["widen.kernel"]
    wide = relu((wide - wide.mean((0, 1))) / np.sqrt(wide.var((0, 1)) + 1e-5))
    theta = module.attention_map(jnp.asarray(x, jnp.float32))["kernel"]
    np.testing.assert_allclose(theta, naive.softmax(wide @ p["form.kernel"]), rtol=1e-4, atol=1e-5)


def test_at_the_paper_width_it_has_the_paper_count():
    c, t, k = 64, 8, 3
    cost = TemporalAdaptive(c, num_frames=t, rngs=nnx.Rngs(0)).cost((t, 7, 5, c))
    assert cost.parameters == (k + 1) * c * c // 4 + c // 2 + 2 * t * t + 4 * t + 2 * t * k
