"""Efficient local attention against its derivation, and timm's."""

from functools import partial

import jax
import numpy as np
import pytest

from attn_flax.mechanisms.channel_spatial.ela import EfficientLocalAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (9, 5, 8)
CREATE = {
    "the paper's": partial(EfficientLocalAttention, 8, groups=4),
    "timm's": partial(EfficientLocalAttention, 8, kernel_size=3, groups=1, activation=jax.nn.silu),
}


def convolve(z, taps):
    """The features of each place and its neighbours on a line, weighted by channel; zeros beyond the ends."""
    reach = len(taps) // 2
    return np.array(
        [
            sum(taps[o + reach] * z[i + o] for o in range(-reach, reach + 1) if 0 <= i + o < len(z))
            for i in range(len(z))
        ]
    )


def normalize(z, groups, scale, bias):
    out = np.empty_like(z)
    for members in np.split(np.arange(z.shape[1]), groups):
        group = z[:, members]
        out[:, members] = (group - group.mean()) / np.sqrt(((group - group.mean()) ** 2).mean() + 1e-5)
    return out * scale + bias


def gates(x, p, *, groups=4, act=lambda u: u, flip=False, gate=sigmoid, norm=normalize):
    h, w, _ = x.shape
    rows = np.array([sum(x[i, j] for j in range(w)) / w for i in range(h)])
    columns = np.array([sum(x[i, j] for i in range(h)) / h for j in range(w)])
    taps_h, taps_w = p["conv_h.kernel"][:, 0], p["conv_w.kernel"][0]
    if flip:
        taps_h, taps_w = taps_h[::-1], taps_w[::-1]
    height = norm(convolve(rows, taps_h), groups, p["norm_h.scale"], p["norm_h.bias"])
    width = norm(convolve(columns, taps_w), groups, p["norm_w.scale"], p["norm_w.bias"])
    return {"height": gate(act(height))[:, None], "width": gate(act(width))[None]}


def oracle(x, p, **kinds):
    g = gates(x, p, **kinds)
    h, w, _ = x.shape
    return np.array([[x[i, j] * g["height"][i, 0] * g["width"][0, j] for j in range(w)] for i in range(h)])


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    kinds = {"groups": 1, "act": lambda u: u * sigmoid(u)} if form == "timm's" else {}
    against_oracle.assert_equal(CREATE[form], partial(oracle, **kinds), SHAPE)
    theirs = partial(gates, **kinds)
    against_oracle.assert_equal(CREATE[form], theirs, SHAPE, method="attention_map", gradient=False)


def one_for_both(p):
    """The parameters of the rows for the columns too."""
    return {name: p[name.replace("_w", "_h")].reshape(p[name].shape) for name in p}


MUTANTS = {
    "timm's SiLU": lambda x, p: oracle(x, p, act=lambda u: u * sigmoid(u)),
    "timm's single group": lambda x, p: oracle(x, p, groups=1),
    "a group for each channel": lambda x, p: oracle(x, p, groups=8),
    "one convolution and normalisation for both": lambda x, p: oracle(x, one_for_both(p)),
    "no normalisation": lambda x, p: oracle(x, p, norm=lambda z, _, scale, bias: z * scale + bias),
    "the taps flipped": lambda x, p: oracle(x, p, flip=True),
    "no sigmoid": lambda x, p: oracle(x, p, gate=lambda u: u),
    "the gates added": lambda x, p: x * sum(gates(x, p).values()),
    "the gate of the rows alone": lambda x, p: x * gates(x, p)["height"],
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"], MUTANTS[mutant], SHAPE)


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("layers.coord_attn").EfficientLocalAttn(8, kernel_size=3).double().eval()
    arrays = {f"conv_{axis}.weight": np.moveaxis(p[f"conv_{axis}.kernel"], -1, 0)[:, None] for axis in "hw"}
    arrays |= {f"norm_{axis}.weight": p[f"norm_{axis}.scale"] for axis in "hw"}
    arrays |= {f"norm_{axis}.bias": p[f"norm_{axis}.bias"] for axis in "hw"}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


def test_it_is_timms():
    against_oracle.assert_equal(CREATE["timm's"], timms, SHAPE)
