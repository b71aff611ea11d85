"""Simple coordinate attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.simple_coord import SimpleCoordinateAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {
    "with biases": partial(SimpleCoordinateAttention, 6),
    "without biases": partial(SimpleCoordinateAttention, 6, hidden=3, use_bias=False),
}


def silu(u):
    return u * sigmoid(u)


def scores(x, p, *, act=silu):
    h, w, _ = x.shape
    embed = lambda z: act(z @ p["reduce.kernel"] + p.get("reduce.bias", 0))  # noqa: E731
    rows = np.array([embed(sum(x[i, j] for j in range(w)) / w) for i in range(h)])
    columns = np.array([embed(sum(x[i, j] for i in range(h)) / h) for j in range(w)])
    a_h = rows @ p["expand_h.kernel"] + p.get("expand_h.bias", 0)
    a_w = columns @ p["expand_w.kernel"] + p.get("expand_w.bias", 0)
    return a_h, a_w


def weights(x, p, **kinds):
    a_h, a_w = scores(x, p, **kinds)
    return np.array([[sigmoid(row + column) for column in a_w] for row in a_h])


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_its_equation(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, method="attention_map", gradient=False)


def product_of_gates(x, p):
    a_h, a_w = scores(x, p)
    return x * sigmoid(a_h)[:, None] * sigmoid(a_w)[None]


def swapped(p):
    other = {"expand_h.kernel": "expand_w.kernel", "expand_w.kernel": "expand_h.kernel"}
    return {name: p[other.get(name, name)] for name in p}


MUTANTS = {
    "a gate for each, as coordinate attention": product_of_gates,
    "the rows' layer for the columns": lambda x, p: oracle(x, swapped(p)),
    "the rows alone": lambda x, p: x * sigmoid(scores(x, p)[0])[:, None],
    "no activation": lambda x, p: oracle(x, p, act=lambda u: u),
    "ReLU for SiLU": lambda x, p: oracle(x, p, act=lambda u: np.maximum(u, 0)),
    "the weights alone": weights,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["with biases"], MUTANTS[mutant], SHAPE)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("layers.coord_attn").SimpleCoordAttn(6).double().eval()
    layers = {"fc1": "reduce", "fc_h": "expand_h", "fc_w": "expand_w"}
    arrays = {f"{name}.weight": p[f"{ours}.kernel"].T for name, ours in layers.items()}
    arrays |= {f"{name}.bias": p[f"{ours}.bias"] for name, ours in layers.items()}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(CREATE["with biases"], timms, SHAPE)


def test_its_width_is_timms():
    make_divisible = timm_oracle.load("layers.helpers").make_divisible
    for channels in range(8, 600, 8):
        module = nnx.eval_shape(lambda channels=channels: SimpleCoordinateAttention(channels, rngs=nnx.Rngs(0)))
        assert module.reduce.out_features == make_divisible(channels * 0.25 * (2 / 3), 8, round_limit=0.0)
