"""scSE against its derivation."""

from functools import partial

import numpy as np
import pytest

from attn_flax.mechanisms.channel_spatial.scse import ScSE
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = partial(ScSE, 6)


def maps(x, p):
    h, w, c = x.shape
    z = np.array([sum(x[i, j, k] for i in range(h) for j in range(w)) / (h * w) for k in range(c)])
    hidden = np.maximum(z @ p["excite.reduce.kernel"] + p["excite.reduce.bias"], 0)
    s = sigmoid(hidden @ p["excite.expand.kernel"] + p["excite.expand.bias"])
    m = [[sigmoid(x[i, j] @ p["project.kernel"][:, 0] + p["project.bias"][0]) for j in range(w)] for i in range(h)]
    return {"channel": s, "spatial": np.array(m)}


def parts(x, p):
    s, m = maps(x, p).values()
    return x * s, x * m[..., None]


def oracle(x, p):
    by_channel, by_position = parts(x, p)
    return np.where(by_channel > by_position, by_channel, by_position)


def conference(x, p):
    return sum(parts(x, p))


@pytest.mark.parametrize(("merge", "oracle"), [("max", oracle), ("sum", conference)])
def test_it_is_the_paper(merge, oracle):
    against_oracle.assert_equal(partial(CREATE, merge=merge), oracle, SHAPE)
    against_oracle.assert_equal(partial(CREATE, merge=merge), maps, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the sum": conference,
    "the larger of the gates": lambda x, p: x * np.maximum(*(np.divide(part, x) for part in parts(x, p))),
    "both gates": lambda x, p: parts(x, p)[0] * maps(x, p)["spatial"][..., None],
    "the channels alone": lambda x, p: parts(x, p)[0],
    "the positions alone": lambda x, p: parts(x, p)[1],
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)
