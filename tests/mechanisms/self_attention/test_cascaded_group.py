"""Cascaded group attention against its derivation, and timm's."""

import itertools
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.cascaded_group import CascadedGroupAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

CHANNELS, HEADS, KEY_DIM, WINDOW = 6, 2, 4, 3
KERNEL_SIZES = (5, 3)
SHAPE = (5, 7, CHANNELS)
create = partial(
    CascadedGroupAttention,
    CHANNELS,
    num_heads=HEADS,
    key_dim=KEY_DIM,
    kernel_sizes=KERNEL_SIZES,
    window=WINDOW,
)
SIZES = {"windows over the border": SHAPE, "one window": (WINDOW, WINDOW, CHANNELS), "a small map": (2, 1, CHANNELS)}


def norm(z, p, name):
    mean, var = p[f"{name}.mean"], p[f"{name}.var"]
    return (z - mean) / np.sqrt(var + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def convolve(x, kernel):
    """Each position's neighbours weighted by channel, zeros around."""
    h, w, _ = x.shape
    reach = len(kernel) // 2
    out = np.zeros_like(x)
    for i, j, a, b in itertools.product(range(h), range(w), *[range(-reach, reach + 1)] * 2):
        if 0 <= i + a < h and 0 <= j + b < w:
            out[i, j] += kernel[a + reach, b + reach] * x[i + a, j + b]
    return out


def local_queries(q, p, name):
    return norm(convolve(q, p[f"{name}.conv.kernel"]), p, f"{name}.norm")


def distances(p, head):
    """B, of every two positions of the window."""
    places = list(itertools.product(range(WINDOW), repeat=2))
    table = p["biases"][head].reshape(WINDOW, WINDOW)
    return np.array([[table[abs(y - v), abs(x - w)] for v, w in places] for y, x in places])


def add(part, o):
    return part + o


def cascade(u, p, *, chain=add, queries=local_queries, bias=distances, scale=KEY_DIM**-0.5, added=0.0):
    """The weights and the values of each head in a window u."""
    alphas, values = [], []
    o = np.zeros((*u.shape[:2], CHANNELS // HEADS))
    for head, part in enumerate(np.split(u, HEADS, axis=-1)):
        name = f"heads.{head}"
        features = norm(chain(part, o) @ p[f"{name}.qkv.linear.kernel"], p, f"{name}.qkv.norm")
        q, k, v = np.split(features, [KEY_DIM, 2 * KEY_DIM], axis=-1)
        q, k, v = (f.reshape(WINDOW**2, -1) for f in (queries(q, p, name), k, v))
        alphas.append(softmax_values(scores(q, k) * scale + bias(p, head) + added))
        o = weighted_sums(alphas[-1], v).reshape(part.shape)
        values.append(o)
    return np.array(alphas), np.concatenate(values, -1)


def windows(x, side=WINDOW):
    """Where each window lies, and what it holds: zeros beyond the map."""
    h, w, c = x.shape
    for top, left in itertools.product(range(0, h, side), range(0, w, side)):
        held = np.zeros((side, side, c))
        part = x[top : top + side, left : left + side]
        held[: part.shape[0], : part.shape[1]] = part
        yield top, left, held


def weights(x, p):
    return np.array([cascade(u, p)[0] for _, _, u in windows(x)])


def oracle(x, p, *, activate=lambda o: np.maximum(o, 0), masked=0.0, **kinds):
    """y, where positions beyond the map are keys, unless a number is added to their scores."""
    out = np.zeros_like(x)
    for top, left, u in windows(x):
        room = out[top : top + WINDOW, left : left + WINDOW]
        rows, columns, _ = room.shape
        beyond = np.ones((WINDOW, WINDOW))
        beyond[:rows, :columns] = 0
        _, o = cascade(u, p, added=masked * beyond.ravel(), **kinds)
        room[...] = norm(activate(o) @ p["proj.linear.kernel"], p, "proj.norm")[:rows, :columns]
    return out


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_paper(size):
    against_oracle.assert_equal(create, oracle, SIZES[size])
    against_oracle.assert_equal(create, weights, SIZES[size], method="attention_map", gradient=False)


def signed(p, head):
    """The table read by y - v and x - w, negative ones from its end."""
    places = list(itertools.product(range(WINDOW), repeat=2))
    table = p["biases"][head].reshape(WINDOW, WINDOW)
    return np.array([[table[y - v, x - w] for v, w in places] for y, x in places])


def transposed(p, head):
    return distances({"biases": p["biases"].reshape(HEADS, WINDOW, WINDOW).swapaxes(1, 2).reshape(HEADS, -1)}, head)


MUTANTS = {
    "no cascade": partial(oracle, chain=lambda part, o: part),
    "what the head before gave, alone": partial(oracle, chain=lambda part, o: o if o.any() else part),
    "queries not convolved": partial(oracle, queries=lambda q, p, name: q),
    "queries convolved without a norm": partial(
        oracle, queries=lambda q, p, name: convolve(q, p[f"{name}.conv.kernel"])
    ),
    "the windows of queries flipped": partial(
        oracle,
        queries=lambda q, p, name: norm(convolve(q, p[f"{name}.conv.kernel"][::-1, ::-1]), p, f"{name}.norm"),
    ),
    "no bias": partial(oracle, bias=lambda p, head: 0),
    "a bias for each signed offset": partial(oracle, bias=signed),
    "rows and columns of the bias exchanged": partial(oracle, bias=transposed),
    "no scale": partial(oracle, scale=1.0),
    "the scale of the values' width": partial(oracle, scale=(CHANNELS / HEADS) ** -0.5),
    "no ReLU": partial(oracle, activate=lambda o: o),
    "the padding masked": partial(oracle, masked=-1e9),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_it_has_as_many_parameters_as_timms():
    c, h, k, r, sizes = 64, 4, 16, 7, (7, 5, 3, 3)
    module = nnx.eval_shape(lambda: CascadedGroupAttention(c, kernel_sizes=sizes, rngs=nnx.Rngs(0)))
    d = c // h
    count = (c + 2 * h) * (2 * k + d) + k * sum(s * s for s in sizes) + 2 * k * h + h * d * c + 2 * c + h * r * r
    assert module.cost((14, 10, c)).parameters == count


def batch_norm(p, ours, theirs):
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"{theirs}.{name}": p[f"{ours}.{ours_name}"] for ours_name, name in names.items()}


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.efficientvit_msra").LocalWindowAttention(
        CHANNELS,
        KEY_DIM,
        HEADS,
        attn_ratio=CHANNELS / HEADS / KEY_DIM,
        resolution=14,
        window_resolution=WINDOW,
        kernels=KERNEL_SIZES,
    )
    theirs = theirs.double().eval()
    arrays = {"attn.attention_biases": p["biases"]}
    layers = {"proj": "attn.proj.1"} | {f"heads.{i}.qkv": f"attn.qkvs.{i}" for i in range(HEADS)}
    for ours, name in layers.items():
        arrays[f"{name}.conv.weight"] = p[f"{ours}.linear.kernel"].T[..., None, None]
        arrays |= batch_norm(p, f"{ours}.norm", f"{name}.bn")
    for i in range(HEADS):
        arrays[f"attn.dws.{i}.conv.weight"] = p[f"heads.{i}.conv.kernel"].transpose(2, 0, 1)[:, None]
        arrays |= batch_norm(p, f"heads.{i}.norm", f"attn.dws.{i}.bn")
    theirs.load_state_dict(theirs.state_dict() | {name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("size", SIZES)
def test_it_is_timms(size):
    against_oracle.assert_equal(create, timms, SIZES[size])
