"""The global-local temporal representation against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.temporal.gltr import GlobalLocalTemporal
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal import naive

SHAPE = (7, 4)
DILATIONS = (1, 2, 3)
CREATE = {
    "the paper's": (partial(GlobalLocalTemporal, 4), DILATIONS),
    "another pyramid": (partial(GlobalLocalTemporal, 4, dilations=(2, 4), kernel_size=5, hidden=3), (2, 4)),
}


def convolved(x, kernel, dilation):
    reach = len(kernel) // 2
    y = np.zeros((len(x), kernel.shape[-1]))
    for t in range(len(x)):
        for k in range(len(kernel)):
            if 0 <= t + dilation * (k - reach) < len(x):
                y[t] += x[t + dilation * (k - reach)] @ kernel[k]
    return y


def pyramid(x, p, dilations):
    levels = [convolved(x, p[f"pyramid.{i}.kernel"], r) for i, r in enumerate(dilations)]
    return np.concatenate([x, *levels], -1)


def weights(x, p, *, dilations=DILATIONS, scale=1.0):
    z = pyramid(x, p, dilations)
    return naive.softmax(scale * naive.linear(z, p, "query") @ naive.linear(z, p, "key").T)


def related(x, p, *, norm=naive.batch_norm, **kinds):
    o = weights(x, p, **kinds) @ naive.linear(pyramid(x, p, kinds.get("dilations", DILATIONS)), p, "value")
    return norm(naive.linear(o, p, "project"), p, "norm")


def oracle(x, p, **kinds):
    return (pyramid(x, p, kinds.get("dilations", DILATIONS)) + related(x, p, **kinds)).mean(0)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    create, dilations = CREATE[form]
    against_oracle.assert_equal(create, partial(oracle, dilations=dilations), SHAPE)
    against_oracle.assert_equal(
        create, partial(weights, dilations=dilations), SHAPE, method="attention_map", gradient=False
    )


MUTANTS = {
    "scaled scores": partial(oracle, scale=8**-0.5),
    "no residual": lambda x, p: related(x, p).mean(0),
    "no norm": partial(oracle, norm=lambda u, p, name: u),
    "one dilation for all": partial(oracle, dilations=(1, 1, 1)),
    "no frame itself": lambda x, p: oracle(x, p) - np.concatenate([x.mean(0), np.zeros(12)]),
    "an activation in the pyramid": lambda x, p: (np.maximum(pyramid(x, p, DILATIONS), 0) + related(x, p)).mean(0),
    "the sum over frames": lambda x, p: 7 * oracle(x, p),
    "the last frame": lambda x, p: (pyramid(x, p, DILATIONS) + related(x, p))[-1],
    "nothing, as in an empty file": lambda x, p: np.zeros(16),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"][0], MUTANTS[mutant], SHAPE)


def test_at_first_it_is_the_mean_of_the_pyramid():
    module = GlobalLocalTemporal(4, rngs=nnx.Rngs(0))
    module.eval()
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    expected = pyramid(x, against_oracle.numbers(module), DILATIONS).mean(0)
    np.testing.assert_allclose(module(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_at_the_paper_width_it_has_the_paper_count():
    module = nnx.eval_shape(lambda: GlobalLocalTemporal(128, rngs=nnx.Rngs(0)))
    assert module.cost((16, 128)).parameters == 41 * 128**2 + 18 * 128 == 674_048
