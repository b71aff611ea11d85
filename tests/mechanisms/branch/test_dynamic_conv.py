"""Dynamic convolution against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.branch.dynamic_conv import DynamicConv
from tests.mechanisms import against_oracle
from tests.mechanisms.branch.convolution import conv, softmax

SHAPE = (7, 5, 6)
# What the Module is made of; the temperature and the groups.
FORMS = {
    "paper": ({"num_experts": 3, "hidden": 2, "temperature": 1.5}, (1.5, 1)),
    "hot": ({"num_experts": 3, "reduction": 2, "kernel_size": 1}, (30, 1)),
    "depthwise": ({"num_experts": 2, "groups": 6, "temperature": 1.5}, (1.5, 6)),
    "two groups": ({"num_experts": 2, "groups": 2, "temperature": 1.5}, (1.5, 2)),
}
CREATE = {form: partial(DynamicConv, 6, **arguments) for form, (arguments, _) in FORMS.items()}


def weights(x, p, tau=1.5, *, act=lambda u: np.maximum(u, 0), gate=softmax):
    z = act(x.mean((0, 1)) @ p["reduce.kernel"])
    return gate((z @ p["expand.kernel"] + p["expand.bias"]) / tau)


def convolved(x, p, pi, groups=1):
    each = [conv(x, w, groups=groups) + b for w, b in zip(p["kernel"], p["bias"], strict=True)]
    return sum(a * y for a, y in zip(pi, each, strict=True))


def oracle(x, p, tau=1.5, groups=1, **kinds):
    return convolved(x, p, weights(x, p, tau, **kinds), groups)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    tau, groups = FORMS[form][1]
    against_oracle.assert_equal(CREATE[form], partial(oracle, tau=tau, groups=groups), SHAPE)
    against_oracle.assert_equal(CREATE[form], partial(weights, tau=tau), SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "no temperature": partial(oracle, tau=1),
    "a temperature that multiplies": partial(oracle, tau=1 / 1.5),
    "a sigmoid": partial(oracle, gate=lambda e: 1 / (1 + np.exp(-e))),
    "no relu": partial(oracle, act=lambda u: u),
    "biases not mixed": lambda x, p: oracle(x, p | {"bias": np.tile(p["bias"][0], (3, 1))}),
    "no biases": lambda x, p: oracle(x, p | {"bias": 0 * p["bias"]}),
    "kernels transposed": lambda x, p: oracle(x, p | {"kernel": p["kernel"].swapaxes(-1, -2)}),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["paper"], MUTANTS[mutant], SHAPE)


def test_kernels_have_both_signs():
    kernel = np.asarray(DynamicConv(32, rngs=nnx.Rngs(0)).kernel)
    assert abs(kernel.mean()) < 0.05 * kernel.std()


def test_the_temperature_can_be_lowered_without_compiling_anew():
    module = DynamicConv(6, hidden=8, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    traces = []

    @jax.jit
    def weigh(module, x):
        traces.append(None)
        return module.attention_map(x)

    hot = weigh(module, x)
    module.temperature[...] = 0.01
    cold = weigh(module, x)
    assert len(traces) == 1
    assert hot.max() < 0.3 < cold.max()


def test_parameters_with_the_width_of_much_copied_code():
    c, k = 64, 4
    module = nnx.eval_shape(lambda: DynamicConv(c, hidden=c // 4 + 1, rngs=nnx.Rngs(0)))
    hidden = c // 4 + 1
    assert module.cost((7, 5, c)).parameters == k * (c * c * 9 + c) + c * hidden + hidden * k + k
