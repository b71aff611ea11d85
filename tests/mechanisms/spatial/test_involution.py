"""Involution against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.involution import Involution
from tests.mechanisms import against_oracle

SHAPE, GROUPS = (7, 5, 6), 3
CREATE = {
    "as the paper": partial(Involution, 6, kernel_size=3, group_channels=2, reduction=2),
    "with a bias": partial(Involution, 6, kernel_size=3, group_channels=2, reduction=2, use_bias=True),
    "with windows wider than the map": partial(Involution, 6, group_channels=2, reduction=2),
}


def norm(x, p):
    return (x - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]


def windows(x, p, *, norm=norm, bias=True):
    hidden = x @ p["reduce.kernel"] + (p.get("reduce.bias", 0) if bias else 0)
    numbers = np.maximum(norm(hidden, p), 0) @ p["span.kernel"] + p["span.bias"]
    k = round((numbers.shape[-1] / GROUPS) ** 0.5)
    return numbers.reshape(*x.shape[:2], GROUPS, k, k)


def applied(x, kernels):
    h, w, c = x.shape
    k = kernels.shape[-1]
    y = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            for u in range(k):
                for v in range(k):
                    row, column = i + u - k // 2, j + v - k // 2
                    if 0 <= row < h and 0 <= column < w:
                        for channel in range(c):
                            y[i, j, channel] += kernels[i, j, channel * GROUPS // c, u, v] * x[row, column, channel]
    return y


def oracle(x, p, **kinds):
    return applied(x, windows(x, p, **kinds))


@pytest.mark.parametrize("form", ["as the paper", "with a bias"])
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[form], windows, SHAPE, method="attention_map", gradient=False)


def test_windows_may_be_wider_than_the_map():
    against_oracle.assert_equal(CREATE["with windows wider than the map"], oracle, (4, 3, 6), gradient=False)


def interleaved(x, p):
    """The numbers of a window spread over the groups."""
    kernels = windows(x, p)
    return applied(x, kernels.reshape(*x.shape[:2], 3, 3, GROUPS).transpose(0, 1, 4, 2, 3))


MUTANTS = {
    "no bias": partial(oracle, bias=False),
    "no norm": partial(oracle, norm=lambda x, p: x),
    "one group for all channels": lambda x, p: applied(x, windows(x, p)[:, :, [0] * GROUPS]),
    "the window flipped": lambda x, p: applied(x, windows(x, p)[..., ::-1, ::-1]),
    "the window transposed": lambda x, p: applied(x, windows(x, p).swapaxes(-1, -2)),
    "groups interleaved": interleaved,
    "a softmax of the window": lambda x, p: applied(
        x, np.exp(windows(x, p)) / np.exp(windows(x, p)).sum((-2, -1), keepdims=True)
    ),
    "one window for all positions": lambda x, p: applied(x, 0 * windows(x, p) + windows(x, p).mean((0, 1))),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["with a bias"], MUTANTS[mutant], SHAPE)


def test_a_shifted_map_gives_a_shifted_map():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["as the paper"])
        x = np.zeros((9, 8, 6))
        x[2:5, 2:5] = np.random.default_rng(0).normal(size=(3, 3, 6))
        shifted = np.roll(x, (2, 1), (0, 1))
        y, of_shifted = (module(jnp.asarray(a)) for a in (x, shifted))
        np.testing.assert_allclose(of_shifted, np.roll(y, (2, 1), (0, 1)), atol=1e-12)


@pytest.mark.parametrize("use_bias", [False, True])
def test_its_forms_have_as_many_parameters_as_the_authors(use_bias):
    module = Involution(64, use_bias=use_bias, rngs=nnx.Rngs(0))
    counted = sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    of_authors = 64 * 16 + 2 * 16 + (16 + 1) * 4 * 49
    assert counted == module.cost((8, 8, 64)).parameters == of_authors + (16 if use_bias else 0)
