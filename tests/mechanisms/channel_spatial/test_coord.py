"""Coordinate attention against its derivation, and timm's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.mechanisms.channel_spatial.coord import CoordinateAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {
    "the paper's": partial(CoordinateAttention, 6),
    "timm's": partial(CoordinateAttention, 6, hidden=3, use_bias=False),
}


def h_swish(u):
    return u * np.minimum(np.maximum(u + 3, 0), 6) / 6


def embedded(x, p):
    """F_1 of the means of all rows, then of all columns."""
    h, w, _ = x.shape
    means = [sum(x[i, j] for j in range(w)) / w for i in range(h)]
    means += [sum(x[i, j] for i in range(h)) / h for j in range(w)]
    return np.array([z @ p["reduce.kernel"] + p.get("reduce.bias", 0) for z in means])


def gates(x, p, *, act=h_swish, gate=sigmoid, normalize=True):
    f = embedded(x, p)
    if normalize:
        f = (f - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]
    f_h, f_w = act(f)[: len(x)], act(f)[len(x) :]
    height = np.array([gate(f @ p["expand_h.kernel"] + p.get("expand_h.bias", 0)) for f in f_h])
    width = np.array([gate(f @ p["expand_w.kernel"] + p.get("expand_w.bias", 0)) for f in f_w])
    return {"height": height[:, None], "width": width[None]}


def oracle(x, p, **kinds):
    g = gates(x, p, **kinds)
    h, w, _ = x.shape
    return np.array([[x[i, j] * g["height"][i, 0] * g["width"][0, j] for j in range(w)] for i in range(h)])


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[form], gates, SHAPE, method="attention_map", gradient=False)


def swapped(p):
    other = {"expand_h.kernel": "expand_w.kernel", "expand_w.kernel": "expand_h.kernel"}
    return {name: p[other.get(name, name)] for name in p}


MUTANTS = {
    "the rows' layer for the columns": lambda x, p: oracle(x, swapped(p)),
    "the gates added": lambda x, p: x * sum(gates(x, p).values()),
    "the gate of the rows alone": lambda x, p: x * gates(x, p)["height"],
    "the gates alone": lambda x, p: oracle(x, p) / x,
    "a residual": lambda x, p: x + oracle(x, p),
    "no normalisation": lambda x, p: oracle(x, p, normalize=False),
    "ReLU for h_swish": lambda x, p: oracle(x, p, act=lambda u: np.maximum(u, 0)),
    "swish for h_swish": lambda x, p: oracle(x, p, act=lambda u: u * sigmoid(u)),
    "no sigmoid": lambda x, p: oracle(x, p, gate=lambda u: u),
    "the means of the map": lambda x, p: x * oracle(0 * x + x.mean((0, 1)), p) / x.mean((0, 1)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"], MUTANTS[mutant], SHAPE)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("layers.coord_attn").CoordAttn(6, rd_channels=3).double().eval()
    layers = {"conv1": "reduce", "conv_h": "expand_h", "conv_w": "expand_w"}
    weights = {f"{name}.weight": p[f"{ours}.kernel"].T[..., None, None] for name, ours in layers.items()}
    norm = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    weights |= {f"bn1.{name}": p[f"norm.{ours}"] for name, ours in norm.items()}
    theirs.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()}, strict=False)
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(CREATE["timm's"], timms, SHAPE)


def test_training_normalises_by_the_rows_and_columns_of_all_examples():
    module = against_oracle.build(CREATE["the paper's"])
    p, (x,) = against_oracle.numbers(module), against_oracle.draw([SHAPE], 1)
    f = np.concatenate([embedded(example, p) for example in x])
    statistics = {"norm.mean": f.mean(0), "norm.var": f.var(0)}
    module.train()
    with jax.enable_x64():
        expected = np.stack([oracle(example, {**p, **statistics}) for example in x])
        np.testing.assert_allclose(module(jnp.asarray(x)), expected, rtol=1e-9)
        np.testing.assert_allclose(module.norm.mean[...], 0.9 * p["norm.mean"] + 0.1 * f.mean(0), rtol=1e-6)


def test_rows_may_be_exchanged():
    module, (x,) = against_oracle.build(CREATE["the paper's"]), against_oracle.draw([SHAPE], 1)
    with jax.enable_x64():
        np.testing.assert_allclose(module(jnp.asarray(x[:, ::-1])), module(jnp.asarray(x))[:, ::-1], rtol=1e-9)
