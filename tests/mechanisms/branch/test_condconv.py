"""Conditionally parameterised convolution against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.branch.condconv import CondConv
from tests.mechanisms import against_oracle
from tests.mechanisms.branch.convolution import conv, softmax
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
# What the Module is made of; the groups.
FORMS = {
    "paper": ({"num_experts": 3}, 1),
    "biases": ({"num_experts": 3, "use_bias": True, "routing_bias": True, "kernel_size": 5}, 1),
    "depthwise": ({"num_experts": 3, "groups": 6}, 6),
    "two groups": ({"num_experts": 2, "groups": 2, "use_bias": True}, 2),
}
CREATE = {form: partial(CondConv, 6, **arguments) for form, (arguments, _) in FORMS.items()}


def weights(x, p, *, route=sigmoid, pool=np.mean):
    return route(pool(x, (0, 1)) @ p["route.kernel"] + p.get("route.bias", 0))


def convolved(x, p, alpha, groups=1):
    """Σ_k α_k (W_k * x + b_k): the mixture of what the experts give, which is the convolution by their mixture."""
    each = [conv(x, w, groups=groups) + b for w, b in zip(p["kernel"], p.get("bias", np.zeros(99)), strict=False)]
    return sum(a * y for a, y in zip(alpha, each, strict=True))


def oracle(x, p, groups=1, **kinds):
    return convolved(x, p, weights(x, p, **kinds), groups)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], partial(oracle, groups=FORMS[form][1]), SHAPE)
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "a softmax": partial(oracle, route=partial(softmax, axis=0)),
    "no sigmoid": partial(oracle, route=lambda e: e),
    "the sum of positions": partial(oracle, pool=np.sum),
    "the same expert for all": lambda x, p: convolved(x, p, [1, 0, 0]),
    "kernels flipped": lambda x, p: oracle(x, p | {"kernel": p["kernel"][:, ::-1, ::-1]}),
    "kernels transposed": lambda x, p: oracle(x, p | {"kernel": p["kernel"].swapaxes(-1, -2)}),
    "experts by position": lambda x, p: convolved(x, p, np.moveaxis(sigmoid(x @ p["route.kernel"]), -1, 0)[..., None]),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["paper"], MUTANTS[mutant], SHAPE)


def test_every_expert_starts_as_a_convolution_does():
    kernel = np.asarray(CondConv(64, rngs=nnx.Rngs(0)).kernel)
    np.testing.assert_allclose(kernel.std((1, 2, 3, 4)), (9 * 64) ** -0.5, rtol=0.05)
