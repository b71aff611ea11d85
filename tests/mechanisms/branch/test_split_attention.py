"""Split attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.branch.split_attention import SplitAttention
from tests.mechanisms import against_oracle
from tests.mechanisms.branch.convolution import conv, normalize, softmax
from tests.oracles import sigmoid

SHAPE = (7, 5, 8)
# What the Module is made of; radix and cardinality.
FORMS = {
    "paper": ({"hidden": 6}, (2, 1)),
    "two cardinal groups": ({"hidden": 6, "groups": 2}, (2, 2)),
    "four splits": ({"hidden": 6, "radix": 4, "kernel_size": 1}, (4, 1)),
    "one split": ({"hidden": 6, "radix": 1, "groups": 2}, (1, 2)),
    "without norms": ({"hidden": 6, "groups": 2, "use_norm": False}, (2, 2)),
}
CREATE = {form: partial(SplitAttention, 8, **arguments) for form, (arguments, _) in FORMS.items()}


def relu(x):
    return np.maximum(x, 0)


def norm(x, p, name):
    return normalize(x, p, name) if f"{name}.mean" in p else x


def splits(x, p, radix, cardinality):
    u = relu(norm(conv(x, p["conv.kernel"], groups=radix * cardinality), p, "conv_norm"))
    return [u[..., r * 8 : (r + 1) * 8] for r in range(radix)]


def in_groups(z, p, name):
    """Each cardinal group's features by its own matrix."""
    parts = np.split(z, len(p[f"{name}.kernel"]))
    layers = zip(parts, p[f"{name}.kernel"], p[f"{name}.bias"], strict=True)
    return [part @ w + b for part, w, b in layers]


def weights_of(us, p, *, act=relu, normed=True, pool=np.mean, fused=sum):
    s = pool(fused(us), (0, 1))
    z = np.concatenate(in_groups(s, p, "reduce"))
    z = act(norm(z, p, "norm") if normed else z)
    scores = [group.reshape(len(us), -1) for group in in_groups(z, p, "expand")]
    return np.concatenate([softmax(e, 0) if len(us) > 1 else sigmoid(e) for e in scores], 1)


def weights(x, p, form="paper", **kinds):
    return weights_of(splits(x, p, *FORMS[form][1]), p, **kinds)


def fuse(us, a):
    return sum(a_r * u for a_r, u in zip(a, us, strict=True))


def oracle(x, p, form="paper", **kinds):
    us = splits(x, p, *FORMS[form][1])
    return fuse(us, weights_of(us, p, **kinds))


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], partial(oracle, form=form), SHAPE)
    against_oracle.assert_equal(
        CREATE[form], partial(weights, form=form), SHAPE, method="attention_map", gradient=False
    )


def by_radix_first(x, p):
    """The features of the last layer read as if the splits came before the cardinal groups."""
    us = splits(x, p, 2, 2)
    z = relu(norm(np.concatenate(in_groups(us[0].mean((0, 1)) + us[1].mean((0, 1)), p, "reduce")), p, "norm"))
    return fuse(us, softmax(np.concatenate(in_groups(z, p, "expand")).reshape(2, -1), 0))


def over_cardinality(x, p):
    us = splits(x, p, 2, 2)
    z = relu(norm(np.concatenate(in_groups(us[0].mean((0, 1)) + us[1].mean((0, 1)), p, "reduce")), p, "norm"))
    return fuse(us, softmax(np.concatenate(in_groups(z, p, "expand")).reshape(2, 2, -1), 0).reshape(2, -1))


def splits_interleaved(x, p):
    u = np.concatenate(splits(x, p, 2, 2), -1)
    us = [u[..., r::2] for r in range(2)]
    return fuse(us, weights_of(us, p))


grouped = partial(oracle, form="two cardinal groups")
MUTANTS = {
    "splits before cardinal groups": by_radix_first,
    "a softmax over cardinal groups": over_cardinality,
    "splits interleaved": splits_interleaved,
    "no norm inside": lambda x, p: grouped(x, p, normed=False),
    "no relu inside": lambda x, p: grouped(x, p, act=lambda z: z),
    "the sum of positions": lambda x, p: grouped(x, p, pool=np.sum),
    "the mean of splits": lambda x, p: grouped(x, p, fused=lambda us: sum(us) / 2),
    "a residual": lambda x, p: x + grouped(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["two cardinal groups"], MUTANTS[mutant], SHAPE)


def test_one_split_is_not_normalised_to_one():
    ones = lambda x, p: splits(x, p, 1, 2)[0]  # noqa: E731
    against_oracle.assert_different(CREATE["one split"], ones, SHAPE)


@pytest.mark.parametrize("c", [32, 256])
def test_the_middle_has_half_the_channels_and_at_least_32(c):
    a, shape = max(32, c // 2), (7, 5, c)
    plain, normed = (
        nnx.eval_shape(lambda use_norm=use_norm: SplitAttention(c, use_norm=use_norm, rngs=nnx.Rngs(0)))
        for use_norm in (False, True)
    )
    assert plain.cost(shape).parameters == 9 * c * c + 3 * c * a + a + 2 * c
    assert normed.cost(shape).parameters == plain.cost(shape).parameters + 4 * c + 2 * a
