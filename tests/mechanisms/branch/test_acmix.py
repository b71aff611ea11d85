"""ACmix against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.branch.acmix import ACmix
from tests.mechanisms import against_oracle
from tests.mechanisms.branch.convolution import conv, softmax

SHAPE = (5, 4, 6)
FORMS = {
    "paper": {"heads": 2, "window": 3},
    "wide windows on a small map": {"heads": 3, "window": 7, "shift_bias": False},
    "one head and tap": {"heads": 1, "window": 1, "kernel_size": 1},
}
CREATE = {form: partial(ACmix, 6, **arguments) for form, arguments in FORMS.items()}


def reflect(i, size):
    """The position that mirrors at both ends of the map, as often as it takes, lead i to."""
    while size > 1 and not 0 <= i < size:
        i = -i if i < 0 else 2 * (size - 1) - i
    return i if size > 1 else 0


def clip(i, size):
    return min(max(i, 0), size - 1)


def affine(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def projections(x, p, heads):
    return [affine(x, p, name).reshape(*x.shape[:-1], heads, -1) for name in ("query", "key", "value")]


def attend(x, p, heads=2, window=3, *, border=reflect, sign=1, scale=lambda d: d**-0.5, swapped=False, **_):
    """A and its weights, by loops over heads, positions and windows."""
    (h, w, c), (q, k, v) = x.shape, projections(x, p, heads)
    along = lambda i, size: -1 + 2 * i / (size - 1) if size > 1 else -1.0  # noqa: E731
    place = lambda i, j: np.array([along(j, w), along(i, h)][:: -1 if swapped else 1])  # noqa: E731
    position = lambda i, j: place(i, j) @ p["position.kernel"]  # noqa: E731
    out, weights = np.zeros((h, w, heads, c // heads)), np.zeros((h, w, heads, window * window))
    reach = range(-(window // 2), window // 2 + 1)
    for i in range(h):
        for j in range(w):
            keys = [(border(i + a, h), border(j + b, w)) for a in reach for b in reach]
            for n in range(heads):
                e = [q[i, j, n] @ (k[*key, n] + sign * (position(i, j) - position(*key))) for key in keys]
                weights[i, j, n] = softmax(scale(c // heads) * np.array(e), 0)
                out[i, j, n] = sum(a * v[*key, n] for a, key in zip(weights[i, j, n], keys, strict=True))
    return out.reshape(x.shape), weights


def convolve(x, p, heads=2, **_):
    """B: the k² maps f_o of all heads, for each feature d, and the convolution in as many groups."""
    qkv = np.concatenate(projections(x, p, heads), -2)
    d = x.shape[-1] // heads
    f = np.concatenate([qkv[..., feature] @ p["mix.kernel"] for feature in range(d)], -1)
    return conv(f, p["shift.kernel"], groups=d) + p.get("shift.bias", 0)


def oracle(x, p, **kinds):
    return p["attention_rate"] * attend(x, p, **kinds)[0] + p["convolution_rate"] * convolve(x, p, **kinds)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    sizes = {name: FORMS[form][name] for name in ("heads", "window")}
    against_oracle.assert_equal(CREATE[form], partial(oracle, **sizes), SHAPE)
    weights = lambda x, p: attend(x, p, **sizes)[1]  # noqa: E731
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "windows that end at the border": partial(oracle, border=clip),
    "no scale": partial(oracle, scale=lambda d: 1),
    "positions of the wrong sign": partial(oracle, sign=-1),
    "no positions": partial(oracle, sign=0),
    "rows for columns": partial(oracle, swapped=True),
    "no bias of the shifts": lambda x, p: oracle(x, p | {"shift.bias": 0}),
    "one rate": lambda x, p: oracle(x, p | {"convolution_rate": p["attention_rate"]}),
    "attention alone": lambda x, p: p["attention_rate"] * attend(x, p)[0],
    "features of the convolution with the heads first": lambda x, p: (
        p["attention_rate"] * attend(x, p)[0]
        + p["convolution_rate"] * convolve(x, p).reshape(5, 4, 3, 2).swapaxes(-1, -2).reshape(SHAPE)
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["paper"], MUTANTS[mutant], SHAPE)


def test_the_convolution_starts_as_shifts():
    module = ACmix(6, heads=2, rngs=nnx.Rngs(0))
    f = np.random.default_rng(0).normal(size=(7, 5, 27))
    shifted = [np.pad(f.reshape(7, 5, 3, 9)[..., o], ((1, 1), (1, 1), (0, 0))) for o in range(9)]
    expected = sum(u[o // 3 : o // 3 + 7, o % 3 : o % 3 + 5] for o, u in enumerate(shifted))
    out = module.shift(jnp.asarray(f, jnp.float32))
    np.testing.assert_allclose(out, np.repeat(expected, 2, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3)])
def test_maps_smaller_than_the_window_are_reflected(size):
    form = {"heads": 2, "window": 7}
    against_oracle.assert_equal(partial(ACmix, 6, **form), partial(oracle, **form), (*size, 6))
