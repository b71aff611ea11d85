"""Efficient channel attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.eca import EfficientChannel
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 8)
CREATE = {
    "paper": partial(EfficientChannel, 8),
    "wide window": partial(EfficientChannel, 8, kernel_size=5),
    "window beyond all channels": partial(EfficientChannel, 8, kernel_size=17),
    "ring": partial(EfficientChannel, 8, kernel_size=5, circular=True),
    "mlp": partial(EfficientChannel, 8, use_mlp=True, hidden=3),
    "mlp on a ring": partial(EfficientChannel, 8, use_mlp=True, hidden=3, circular=True),
}


def weights(x, p, *, circular=False, gate=sigmoid, shift=0, bias=0.0, flip=False):
    kernel = p["kernel"][::-1] if flip else p["kernel"]
    k, c = len(kernel), x.shape[-1]
    z = x.reshape(-1, c).sum(0) / (x.shape[0] * x.shape[1])
    s = np.zeros(c)
    for i in range(c):
        s[i] = p.get("bias", 0) + bias
        for j in range(k):
            neighbour = i + j - k // 2 + shift
            if circular or 0 <= neighbour < c:
                u = z[neighbour % c]
                if "lift.kernel" in p:
                    u = np.maximum(u * p["lift.kernel"][0] + p["lift.bias"], 0)
                s[i] += np.sum(kernel[j] * u)
    return gate(s)


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    circular = "ring" in form
    against_oracle.assert_equal(CREATE[form], partial(oracle, circular=circular), SHAPE)
    map_of_it = partial(weights, circular=circular)
    against_oracle.assert_equal(CREATE[form], map_of_it, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
    "a residual": lambda x, p: x + oracle(x, p),
    "no gate": lambda x, p: oracle(x, p, gate=lambda u: u),
    "a convolution for a correlation": lambda x, p: oracle(x, p, flip=True),
    "a ring": lambda x, p: oracle(x, p, circular=True),
    "a causal window": lambda x, p: oracle(x, p, shift=-1),
    "a bias": lambda x, p: oracle(x, p, bias=0.1),
    "the sum for the mean": lambda x, p: x * weights(35 * x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["paper"], MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(("form", "zeros"), [("ring", {"circular": False}), ("mlp", {"circular": True})])
def test_the_border_of_the_channels_matters(form, zeros):
    against_oracle.assert_different(CREATE[form], partial(oracle, **zeros), SHAPE)


@pytest.mark.parametrize(
    ("channels", "k"), [(1, 1), (4, 1), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_the_window_grows_with_the_width(channels, k):
    module = nnx.eval_shape(lambda: EfficientChannel(channels, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, channels)).parameters == k


def test_the_residual_network_of_50_layers_has_86_parameters():
    """As the formula says, where the authors' checkpoint has 80."""
    stages = {256: 3, 512: 4, 1024: 6, 2048: 3}
    assert sum(blocks * EfficientChannel(c, rngs=nnx.Rngs(0)).kernel.size for c, blocks in stages.items()) == 86


def test_a_ring_of_channels_may_be_turned():
    module = CREATE["ring"](rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    turned = jnp.roll(module(x), 3, axis=-1)
    np.testing.assert_allclose(module(jnp.roll(x, 3, axis=-1)), turned, rtol=1e-5, atol=1e-6)
