"""Outlook attention against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.outlook import OutlookAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import softmax_values

SHAPE = (7, 5, 6)
HEADS = 2
create = partial(OutlookAttention, 6, num_heads=HEADS)
FORMS = {
    "every position": ({}, SHAPE),
    "a stride of two": ({"stride": 2}, SHAPE),
    "a stride of two on an even map": ({"stride": 2}, (4, 6, 6)),
    "a stride of three": ({"stride": 3}, SHAPE),
    "a larger kernel": ({"kernel_size": 5, "stride": 3}, (4, 5, 6)),
}


def around(kernel_size):
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    return [(y, z) for y in reach for z in reach]


def mean_of_cell(x, corner, side):
    h, w, _ = x.shape
    rows, columns = (range(start, min(start + side, n)) for start, n in zip(corner, (h, w), strict=True))
    return sum(x[y, z] for y in rows for z in columns) / (len(rows) * len(columns))


def first_of_cell(x, corner, side):
    return x[corner]


def mean_with_zeros(x, corner, side):
    h, w, _ = x.shape
    rows, columns = (range(start, min(start + side, n)) for start, n in zip(corner, (h, w), strict=True))
    return sum(x[y, z] for y in rows for z in columns) / side**2


def of_head(j, size):
    return slice(j * size, (j + 1) * size)


def weights(x, p, *, kernel_size=3, stride=1, pool=mean_of_cell, scale=True, normalize=softmax_values, head=of_head):
    h, w, c = x.shape
    size = kernel_size**2
    factor = (c // HEADS) ** -0.5 if scale else 1.0

    def of_position(corner):
        scores = factor * (pool(x, corner, stride) @ p["attn.kernel"] + p["attn.bias"])
        return [normalize(scores[head(j, size**2)].reshape(size, size)) for j in range(HEADS)]

    return np.array([[of_position((y, z)) for z in range(0, w, stride)] for y in range(0, h, stride)])


def gathered(x, p, *, kernel_size=3, stride=1, shift=0, centre=False, average=False, **kinds):
    """[Σ …]_heads of each position."""
    h, w, c = x.shape
    e = c // HEADS
    v = np.array([[x_i @ p["v.kernel"] for x_i in row] for row in x])
    maps = weights(x, p, kernel_size=kernel_size, stride=stride, **kinds)
    offsets = around(kernel_size)
    out, times = np.zeros((h, w, c)), np.zeros((h, w, 1))
    for y in range(0, h, stride):
        for z in range(0, w, stride):
            for u, offset in enumerate(offsets):
                at = (y + offset[0], z + offset[1])
                if not (0 <= at[0] < h and 0 <= at[1] < w) or (centre and offset != (0, 0)):
                    continue
                times[at] += 1
                for t, other in enumerate(offsets):
                    seen = (y + other[0] + shift, z + other[1] + shift)
                    if 0 <= seen[0] < h and 0 <= seen[1] < w:
                        for j in range(HEADS):
                            alpha = maps[y // stride, z // stride, j, u, t]
                            out[at][of_head(j, e)] += alpha * v[seen][of_head(j, e)]
    return out / times if average else out


def oracle(x, p, **kinds):
    return gathered(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    sizes, shape = FORMS[form]
    ours = partial(create, **sizes)
    against_oracle.assert_equal(ours, partial(oracle, **sizes), shape)
    against_oracle.assert_equal(ours, partial(weights, **sizes), shape, method="attention_map", gradient=False)


def dropped(scores):
    """External-Attention's dropout, of a tenth of the weights."""
    alpha = softmax_values(scores)
    return alpha * (np.random.default_rng(0).uniform(size=alpha.shape) > 0.1) / 0.9


MUTANTS = {
    "no scale": partial(oracle, scale=False),
    "a softmax over the rows": partial(oracle, normalize=lambda e: softmax_values(e.T).T),
    "rows and columns exchanged": partial(oracle, normalize=lambda e: softmax_values(e).T),
    "a softmax over all": partial(oracle, normalize=lambda e: softmax_values(e.reshape(1, -1)).reshape(e.shape)),
    "a tenth of the weights dropped": partial(oracle, normalize=dropped),
    "heads interleaved": partial(oracle, head=lambda j, size: slice(j, None, HEADS)),
    "only the row of the middle": partial(oracle, centre=True),
    "the mean of what is gathered": partial(oracle, average=True),
    "no output layer": gathered,
    "a residual": lambda x, p, **sizes: x + oracle(x, p, **sizes),
}
OF_STRIDES = {
    "the first position instead of the mean": partial(oracle, pool=first_of_cell),
    "means with the zeros beyond the border": partial(oracle, pool=mean_with_zeros),
    "as much padding as the stride": partial(oracle, shift=-1),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize("mutant", OF_STRIDES)
def test_usual_mistakes_with_strides_differ(mutant):
    against_oracle.assert_different(partial(create, stride=2), partial(OF_STRIDES[mutant], stride=2), SHAPE)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: OutlookAttention(48, num_heads=6, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 48)).parameters == 2 * 48**2 + 48 + (48 + 1) * 3**4 * 6


def timms(x, p, *, kernel_size=3, stride=1):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.volo").OutlookAttention(
        x.shape[-1], HEADS, kernel_size=kernel_size, padding=kernel_size // 2, stride=stride
    )
    arrays = {f"{name}.weight": p[f"{name}.kernel"].T for name in ("v", "attn", "proj")}
    arrays |= {f"{name}.bias": p[f"{name}.bias"] for name in ("attn", "proj")}
    theirs.double().load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x)[None])[0].detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form):
    sizes, shape = FORMS[form]
    against_oracle.assert_equal(partial(create, **sizes), partial(timms, **sizes), shape)
