"""The attention gate against its derivation."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.attention_gate import AttentionGate
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE, SIGNAL = (7, 5, 6), (2, 3, 4)
CREATE = {
    "as the paper": partial(AttentionGate, 6, gating_channels=4),
    "at full resolution": partial(AttentionGate, 6, gating_channels=4, hidden=2, stride=1),
    "with an output layer": partial(AttentionGate, 6, gating_channels=4, project=True),
}


def relu(x):
    return np.maximum(x, 0)


def bilinear(x, size):
    """Between the middles of pixels, the outermost repeated."""

    def line(x, n):
        out = []
        for i in range(n):
            at = min(max((i + 0.5) * len(x) / n - 0.5, 0), len(x) - 1)
            low = int(at)
            out.append((1 - at + low) * x[low] + (at - low) * x[min(low + 1, len(x) - 1)])
        return np.array(out)

    return line(line(x, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)


def corners_aligned(x, size):
    rows, columns = (np.linspace(0, n - 1, m) for n, m in zip(x.shape, size, strict=False))

    def at(y, z):
        i, j = min(int(y), len(x) - 2), min(int(z), x.shape[1] - 2)
        top = (1 - z + j) * x[i, j] + (z - j) * x[i, j + 1]
        return (1 - y + i) * top + (y - i) * ((1 - z + j) * x[i + 1, j] + (z - j) * x[i + 1, j + 1])

    return np.array([[at(y, z) for z in columns] for y in rows])


def nearest(x, size):
    return np.array(
        [[x[i * x.shape[0] // size[0], j * x.shape[1] // size[1]] for j in range(size[1])] for i in range(size[0])]
    )


def strided(x, kernel):
    s = len(kernel)
    rows, columns = (n // s for n in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[-1]))
    for y in range(rows):
        for z in range(columns):
            out[y, z] = sum(x[s * y + i, s * z + j] @ kernel[i, j] for i in range(s) for j in range(s))
    return out


def weights(x, g, p, *, act=relu, gate=sigmoid, up=bilinear):
    of_x = strided(x, p["of_map.kernel"])
    of_g = g @ p["of_signal.kernel"] + p["of_signal.bias"]
    q = act(of_x + up(of_g, of_x.shape[:2])) @ p["score.kernel"] + p["score.bias"]
    return up(gate(q), x.shape[:2])[..., 0]


def gated(x, g, p, **kinds):
    return x * weights(x, g, p, **kinds)[..., None]


def oracle(x, g, p, **kinds):
    y = gated(x, g, p, **kinds)
    if "project.kernel" not in p:
        return y
    y = y @ p["project.kernel"] + p["project.bias"]
    return (y - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE, SIGNAL)
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, SIGNAL, method="attention_map", gradient=False)


MUTANTS = {
    "no output layer": gated,
    "the gate alone": lambda x, g, p: np.broadcast_to(weights(x, g, p)[..., None], x.shape),
    "a residual": lambda x, g, p: x + oracle(x, g, p),
    "softplus for relu": partial(oracle, act=lambda q: np.log1p(np.exp(q))),
    "a softmax over the positions": partial(oracle, gate=lambda q: np.exp(q) / np.exp(q).sum()),
    "corners aligned": partial(oracle, up=corners_aligned),
    "the nearest pixel": partial(oracle, up=nearest),
    "without the signal": lambda x, g, p: oracle(x, 0 * g, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["with an output layer"], MUTANTS[mutant], SHAPE, SIGNAL)


def test_the_output_layer_is_the_authors_alone():
    """The paper's equations have none."""
    with_output_layer = lambda x, g, p: gated(x, g, p) @ np.eye(6) * 1.5  # noqa: E731
    against_oracle.assert_different(CREATE["as the paper"], with_output_layer, SHAPE, SIGNAL)


@pytest.mark.parametrize(
    ("arguments", "formula"),
    [
        ({"project": True}, lambda c, f, g: 4 * c * f + g * f + 2 * f + c * c + 3 * c + 1),
        ({"stride": 1}, lambda c, f, g: c * f + g * f + 2 * f + 1),
    ],
)
def test_its_forms_have_as_many_parameters_as_the_authors(arguments, formula):
    module = AttentionGate(64, gating_channels=48, hidden=32, **arguments, rngs=nnx.Rngs(0))
    counted = sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert counted == module.cost((8, 8, 64)).parameters == formula(64, 32, 48)
