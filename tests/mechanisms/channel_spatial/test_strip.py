"""Strip attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest

from attn_flax.mechanisms.channel_spatial.strip import StripAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {
    "three taps": partial(StripAttention, 6),
    "five taps with biases": partial(StripAttention, 6, kernel_size=5, use_bias=True),
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


def scores(x, p, *, order=1):
    h, w, _ = x.shape
    rows = np.array([sum(x[i, j] for j in range(w)) / w for i in range(h)])
    columns = np.array([sum(x[i, j] for i in range(h)) / h for j in range(w)])
    a_h = convolve(rows, p["conv_h.kernel"][:, 0][::order]) + p.get("conv_h.bias", 0)
    a_w = convolve(columns, p["conv_w.kernel"][0][::order]) + p.get("conv_w.bias", 0)
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


MUTANTS = {
    "a gate for each": product_of_gates,
    "the rows alone": lambda x, p: x * sigmoid(scores(x, p)[0])[:, None],
    "the taps flipped": lambda x, p: oracle(x, p, order=-1),
    "no sigmoid": lambda x, p: x * (scores(x, p)[0][:, None] + scores(x, p)[1][None]),
    "the weights alone": weights,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["three taps"], MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(
    ("form", "arguments"), [("three taps", {}), ("five taps with biases", {"kernel_size": 5, "bias": True})]
)
def test_it_is_timms(form, arguments):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("layers.coord_attn").StripAttn(6, **arguments).double().eval()

    def timms(x, p):
        arrays = {f"conv_{axis}.weight": np.moveaxis(p[f"conv_{axis}.kernel"], -1, 0)[:, None] for axis in "hw"}
        arrays |= {name: array for name, array in p.items() if name.endswith("bias")}
        theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()

    against_oracle.assert_equal(CREATE[form], timms, SHAPE)
