"""Deformable attention to shared points against its derivation."""

import itertools
import math
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import ops
from attn_flax.mechanisms.self_attention.dat import SharedDeformableAttention
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

CHANNELS, HEADS, GROUPS, RANGE = 8, 4, 2, 1.5
WIDTH = CHANNELS // GROUPS
SHAPE = (5, 7, CHANNELS)
create = partial(
    SharedDeformableAttention,
    CHANNELS,
    size=SHAPE[:2],
    num_heads=HEADS,
    groups=GROUPS,
    kernel_size=3,
    stride=2,
    offset_range=RANGE,
)
FORMS = {
    "every second position": (create, SHAPE, {}),
    "all positions, windows of 5×5": (partial(create, kernel_size=5, stride=1), (3, 4, CHANNELS), {"stride": 1}),
    "a map of another size than the table's": (partial(create, size=(3, 4)), SHAPE, {}),
    "a single row": (create, (1, 5, CHANNELS), {}),
    "a group for each head": (partial(create, groups=HEADS), (3, 5, CHANNELS), {"groups": HEADS}),
}


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def gelu(u):
    return u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))


def layer_norm(z, p):
    scale, bias = p["offset.norm.scale"], p["offset.norm.bias"]
    return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5) * scale + bias


def near(place, n):
    return [(i, 1 - abs(place - i)) for i in range(n) if abs(place - i) < 1]


def read(v, y, x):
    """v (h, w, e) at (y, x) from -1 to 1: the paper's sum over all pixels, of which those nearer than one count."""
    h, w, e = v.shape
    rows, columns = near((y + 1) * (h - 1) / 2, h), near((x + 1) * (w - 1) / 2, w)
    return sum((a * b * v[i, j] for (i, a), (j, b) in itertools.product(rows, columns)), np.zeros(e))


def read_by_edges(v, y, x):
    h, w, _ = v.shape
    return read(v, ((y + 1) * h - 1) / max(h - 1, 1) - 1, ((x + 1) * w - 1) / max(w - 1, 1) - 1)


def convolve(x, kernel, stride):
    h, w, c = x.shape
    reach = len(kernel) // 2
    rows, columns = range(0, h, stride), range(0, w, stride)
    out = np.zeros((len(rows), len(columns), c))
    for (i, y), (j, z) in itertools.product(enumerate(rows), enumerate(columns)):
        for a, b in itertools.product(range(-reach, reach + 1), repeat=2):
            if 0 <= y + a < h and 0 <= z + b < w:
                out[i, j] += kernel[a + reach, b + reach] * x[y + a, z + b]
    return out


def places(n):
    return [2 * i / (n - 1) - 1 if n > 1 else 0.0 for i in range(n)]


def half_a_step_on(n):
    """The authors' code: the middles of cells, as if they were corners."""
    return [2 * (i + 0.5) / (n - 1) - 1 for i in range(n)]


def middles(n):
    """An earlier state of the authors' code."""
    return [2 * (i + 0.5) / n - 1 for i in range(n)]


def points(
    q,
    p,
    *,
    stride=2,
    groups=GROUPS,
    places=places,
    squash=np.tanh,
    range_=RANGE,
    unit=lambda n: max(n - 1, 1),
    norm=layer_norm,
    first="x",
):
    """(y, x) of the points of each group."""
    out = []
    for part in np.split(q, groups, axis=-1):
        local = convolve(part, p["offset.conv.kernel"], stride) + p["offset.conv.bias"]
        moves = squash(gelu(norm(local, p)) @ p["offset.linear.kernel"])
        rows, columns = local.shape[:2]
        of_group = []
        for (i, y), (j, x) in itertools.product(enumerate(places(rows)), enumerate(places(columns))):
            dx, dy = moves[i, j] if first == "x" else moves[i, j, ::-1]
            of_group.append((y + range_ * dy / unit(rows), x + range_ * dx / unit(columns)))
        out.append(of_group)
    return out


def biases(p, size, positions, *, half=2, sign=1):
    """B of each head, query and point."""
    queries = list(itertools.product(places(size[0]), places(size[1])))
    table = p["table"]
    of_heads = []
    for head in range(HEADS):
        keys = positions[head * len(positions) // HEADS]
        of_heads.append(
            [
                [read(table[..., head : head + 1], sign * (y - v) / half, sign * (x - w) / half)[0] for v, w in keys]
                for y, x in queries
            ]
        )
    return np.array(of_heads)


def asked(x, p, *, read=read, bias=biases, scale=None, **kinds):
    """The weights and the values of each head."""
    q = linear(x, p, "q")
    positions = points(q, p, **kinds)
    parts = np.split(x, len(positions), axis=-1)
    sampled = np.concatenate(
        [[read(part, *at) for at in of_group] for part, of_group in zip(parts, positions, strict=True)], -1
    )
    q, k, v = (
        np.split(z, HEADS, axis=-1) for z in (q.reshape(-1, CHANNELS), linear(sampled, p, "k"), linear(sampled, p, "v"))
    )
    added = bias(p, x.shape[:2], positions)
    scale = scale or (CHANNELS // HEADS) ** -0.5
    alpha = [softmax_values(scores(a, b) * scale + e) for a, b, e in zip(q, k, added, strict=True)]
    return np.array(alpha), v


def weights(x, p, **kinds):
    return asked(x, p, **kinds)[0]


def oracle(x, p, **kinds):
    attended = [weighted_sums(alpha, v) for alpha, v in zip(*asked(x, p, **kinds), strict=True)]
    return linear(np.concatenate(attended, 1), p, "proj").reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, **kinds), shape)
    theirs = partial(weights, **kinds)
    against_oracle.assert_equal(create, theirs, shape, method="attention_map", gradient=False)


def no_bias(p, size, positions):
    return np.zeros(HEADS)


def of_other_groups(p, size, positions):
    return biases(p, size, positions[::-1])


MUTANTS = {
    "the grid of the authors' code": partial(oracle, places=half_a_step_on),
    "the grid of cells' middles": partial(oracle, places=middles),
    "offsets in shares of the map": partial(oracle, unit=lambda n: 1),
    "offsets in shares of the grid's points": partial(oracle, unit=lambda n: n),
    "offsets without a bound": partial(oracle, squash=lambda u: u),
    "no offsets": partial(oracle, squash=lambda u: 0 * u),
    "y before x": partial(oracle, first="y"),
    "no norm of the offsets' features": partial(oracle, norm=lambda z, p: z),
    "the map read by its pixels' edges": partial(oracle, read=read_by_edges),
    "no bias": partial(oracle, bias=no_bias),
    "the bias of the offset from query to point": partial(oracle, bias=partial(biases, sign=-1)),
    "the bias at twice the offset": partial(oracle, bias=partial(biases, half=1)),
    "the bias by another group's points": partial(oracle, bias=of_other_groups),
    "no scale": partial(oracle, scale=1.0),
    "the scale of one head": partial(oracle, scale=CHANNELS**-0.5),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_points_that_do_not_move_are_those_of_self_attention():
    """With a table of Swin's: a bias for each offset between positions."""
    module = create(stride=1, offset_range=0.0, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    module.table[...] = jnp.asarray(rng.normal(size=module.table.shape), jnp.float32)
    x = jnp.asarray(rng.normal(size=(3, *SHAPE)), jnp.float32)
    q, k = (layer(x).reshape(3, 35, HEADS, -1) for layer in (module.q, module.k))
    bias = ops.relative_position_bias(module.table[...].reshape(-1, HEADS), SHAPE[:2])
    expected = ops.dot_product_attention_weights(q, k, bias=bias)
    np.testing.assert_allclose(module.attention_map(x), expected, rtol=1e-4, atol=1e-6)


def test_points_stay_within_their_range():
    module, at_rest = (create(offset_range=s, rngs=nnx.Rngs(0)) for s in (RANGE, 0.0))
    module.offset.linear.kernel[...] = 100 * module.offset.linear.kernel[...]
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    moved = np.abs(module.positions(x) - at_rest.positions(x)) * np.array([4 - 1, 3 - 1])
    assert RANGE * 0.9 < moved.max() <= RANGE * (1 + 1e-5)


def test_it_has_as_many_parameters_as_the_authors():
    c, heads, groups, k, h, w = 96, 6, 3, 5, 14, 10
    module = nnx.eval_shape(
        lambda: SharedDeformableAttention(c, size=(h, w), num_heads=heads, groups=groups, rngs=nnx.Rngs(0))
    )
    count = 4 * c**2 + 4 * c + (k**2 + 5) * c // groups + heads * (2 * h - 1) * (2 * w - 1)
    assert module.cost((7, 5, c)).parameters == count
