"""BAM against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.bam import Bam
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
DILATION = 2
CREATE = partial(Bam, 6, reduction=2, dilation=DILATION)
AUTHORS = partial(CREATE, norm_hidden=True, merge="product")


def relu(u):
    return np.maximum(u, 0)


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def norm(x, p, name):
    return (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def dilated(x, p, name, d):
    h, w, _ = x.shape
    kernel = p[f"{name}.kernel"]
    out = np.zeros((h, w, kernel.shape[-1])) + p[f"{name}.bias"]
    for i in range(h):
        for j in range(w):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if 0 <= i + a * d < h and 0 <= j + b * d < w:
                        out[i, j] += x[i + a * d, j + b * d] @ kernel[a + 1, b + 1]
    return out


def mean(x):
    return np.array([x[:, :, k].sum() / x[:, :, k].size for k in range(x.shape[-1])])


def weights(x, p, *, merge=lambda c, s: c + s, d=DILATION, squeeze=mean):
    """The paper: batch norm at the end of each branch; relu between the layers."""
    c = relu(linear(squeeze(x), p, "channel.layers.0"))
    c = norm(linear(c, p, "channel.layers.2"), p, "channel.layers.3")
    s = relu(linear(x, p, "spatial.layers.0"))
    s = relu(dilated(s, p, "spatial.layers.2", d))
    s = relu(dilated(s, p, "spatial.layers.4", d))
    s = norm(linear(s, p, "spatial.layers.6"), p, "spatial.layers.7")
    return sigmoid(merge(c[None, None], s))


def authors_weights(x, p, *, merge=lambda c, s: c * s):
    """The authors' code: batch norm and relu after each hidden layer; the product."""
    c = relu(norm(linear(mean(x), p, "channel.layers.0"), p, "channel.layers.1"))
    c = linear(c, p, "channel.layers.3")
    s = relu(norm(linear(x, p, "spatial.layers.0"), p, "spatial.layers.1"))
    s = relu(norm(dilated(s, p, "spatial.layers.3", DILATION), p, "spatial.layers.4"))
    s = relu(norm(dilated(s, p, "spatial.layers.6", DILATION), p, "spatial.layers.7"))
    s = linear(s, p, "spatial.layers.9")
    return sigmoid(merge(c[None, None], s))


def oracle(x, p, **kinds):
    return x * (1 + weights(x, p, **kinds))


@pytest.mark.parametrize(
    ("create", "weights"), [(CREATE, weights), (AUTHORS, authors_weights)], ids=["paper", "authors' code"]
)
def test_it_is_the_paper(create, weights):
    against_oracle.assert_equal(create, lambda x, p: x * (1 + weights(x, p)), SHAPE)
    against_oracle.assert_equal(create, weights, SHAPE, method="attention_map", gradient=False)


def mean_of_a_square(x):
    return mean(x[: min(x.shape[:2]), : min(x.shape[:2])])


MUTANTS = {
    "the product for the sum": lambda x, p: oracle(x, p, merge=lambda c, s: c * s),
    "sigmoids before the sum": lambda x, p: oracle(x, p, merge=lambda c, s: sigmoid(c) + sigmoid(s)),
    "no residual": lambda x, p: x * weights(x, p),
    "no dilation": lambda x, p: oracle(x, p, d=1),
    "the mean over a square": lambda x, p: oracle(x, p, squeeze=mean_of_a_square),
    "one position for all": lambda x, p: x * (1 + weights(x, p)[:1, :1]),
    "the channels alone": lambda x, p: oracle(x, p, merge=lambda c, s: c + 0 * s),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


def test_its_widths_are_those_of_the_paper_and_of_the_authors():
    c, m = 64, 4
    paper, authors = (Bam(c, norm_hidden=hidden, rngs=nnx.Rngs(0)).cost((56, 56, c)) for hidden in (False, True))
    assert paper.parameters == 3 * c * m + 3 * c + 18 * m * m + 5 * m + 3
    assert authors.parameters == 3 * c * m + c + 18 * m * m + 13 * m + 1
