"""Selective kernels against their derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.branch.sk import SelectiveKernel
from tests.mechanisms import against_oracle
from tests.mechanisms.branch.convolution import conv, normalize, softmax

SHAPE = (7, 5, 8)
REACHES = ((3, 1), (3, 2))
# What the Module is made of, and what the oracle is told: the branches' (k, dilation), the groups, the parts of x, and
# the stride.
FORMS = {
    "paper": ({"groups": 4, "hidden": 5}, (REACHES, 4, 1)),
    "from fewer channels at steps of 2": (
        {"in_channels": 6, "stride": 2, "groups": 2, "hidden": 5},
        (REACHES, 2, 1, 2),
    ),
    "three branches": ({"groups": 1, "hidden": 5, "kernel_sizes": (3, 5, 7)}, ((*REACHES, (3, 3)), 1, 1)),
    "not dilated": ({"groups": 8, "hidden": 5, "kernel_sizes": (1, 5), "dilated": False}, (((1, 1), (5, 1)), 8, 1)),
    "split input": ({"groups": 1, "hidden": 5, "split_input": True}, (REACHES, 1, 2)),
}
CREATE = {form: partial(SelectiveKernel, 8, **arguments) for form, (arguments, _) in FORMS.items()}


def relu(x):
    return np.maximum(x, 0)


def branches(x, p, reaches, groups, parts, stride=1):
    inputs = np.split(x, parts, -1) if parts > 1 else [x] * len(reaches)
    us = [conv(u, p[f"convs.{m}.kernel"], groups=groups, dilation=reaches[m][1]) for m, u in enumerate(inputs)]
    return [relu(normalize(u[::stride, ::stride], p, f"norms.{m}")) for m, u in enumerate(us)]


def weights_of(us, p, *, norm=True, act=relu, gate=softmax, pool=np.mean):
    s = pool(sum(us), (0, 1))
    z = s @ p["reduce.kernel"]
    z = act(normalize(z, p, "norm") if norm else z)
    w = p["expand.kernel"].reshape(len(z), len(us), -1)
    return gate(np.einsum("d,dmc->mc", z, w))


def weights(x, p, form="paper", **kinds):
    return weights_of(branches(x, p, *FORMS[form][1]), p, **kinds)


def oracle(x, p, form="paper", **kinds):
    us = branches(x, p, *FORMS[form][1])
    return sum(a * u for a, u in zip(weights_of(us, p, **kinds), us, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    shape = (7, 5, FORMS[form][0].get("in_channels", 8))
    against_oracle.assert_equal(CREATE[form], partial(oracle, form=form), shape)
    against_oracle.assert_equal(
        CREATE[form], partial(weights, form=form), shape, method="attention_map", gradient=False
    )


def mistaken(of_weights=lambda us: us, swap=1, reaches=REACHES):
    """The equation with other maps behind the weights, or the weights in another order."""

    def of(x, p):
        us = branches(x, p, reaches, 4, 1)
        return sum(a * u for a, u in zip(weights_of(of_weights(us), p)[::swap], us, strict=True))

    return of


MUTANTS = {
    "no norm before the softmax": partial(oracle, norm=False),
    "no relu before the softmax": partial(oracle, act=lambda z: z),
    "a softmax over channels": partial(oracle, gate=partial(softmax, axis=1)),
    "a sigmoid": partial(oracle, gate=lambda e: 1 / (1 + np.exp(-e))),
    "the sum of positions": partial(oracle, pool=np.sum),
    "the mean of branches": mistaken(of_weights=lambda us: [u / len(us) for u in us]),
    "weights of one branch": mistaken(of_weights=lambda us: [us[0], 0 * us[1]]),
    "branches exchanged": mistaken(swap=-1),
    "no dilation": mistaken(reaches=((3, 1), (3, 1))),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["paper"], MUTANTS[mutant], SHAPE)


def parameters(c, **arguments):
    return nnx.eval_shape(lambda: SelectiveKernel(c, **arguments, rngs=nnx.Rngs(0))).cost((7, 5, c)).parameters


def test_the_paper_never_squeezes_below_32_features_as_timm_does():
    c = 64
    assert parameters(c) == 18 * c * c // 32 + 4 * c + 3 * c * 32 + 2 * 32
    assert parameters(c, groups=1, hidden=8) == 18 * c * c + 4 * c + 3 * c * 8 + 2 * 8


def test_its_convolutions_cost_what_their_outputs_do():
    module = SelectiveKernel(6, in_channels=4, stride=2, groups=2, hidden=3, rngs=nnx.Rngs(0))
    cost = module.cost((5, 4, 4))
    assert cost.parameters == sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert cost.multiply_adds == 3 * 2 * 2 * (9 * 2 * 6) + 6 * 3 + 3 * 12


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (24, 8), (7, 1)])
def test_there_are_32_groups_where_they_fit(channels, groups):
    module = SelectiveKernel(channels, rngs=nnx.Rngs(0))
    assert {conv.feature_group_count for conv in module.convs} == {groups}


def test_statistics_move_in_training():
    module = SelectiveKernel(8, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
    before = jax.tree.map(jnp.copy, nnx.state(module, nnx.BatchStat))
    module.train()
    assert np.isfinite(module(x)).all()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, nnx.state(module, nnx.BatchStat))
    assert all(jax.tree.leaves(moved))
