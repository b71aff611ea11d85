"""ReLU linear attention against its derivation, and timm's."""

from functools import partial
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.relu_linear import ReluLinearAttention, relu_linear_attention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import reciprocal, scores, softmax_values, weighted_sums

SHAPE = (7, 5, 6)
DIM = 3
EPSILON = 0.5
create = partial(ReluLinearAttention, 6, dim=DIM)
FORMS = {
    "as timm has it": (create, {}),
    "two scales, and a large ε": (
        partial(create, scales=(3, 5), epsilon=EPSILON),
        {"scales": (3, 5), "epsilon": EPSILON},
    ),
    "one scale, three heads": (partial(create, scales=(), num_heads=3), {"scales": ()}),
}


def depthwise(x, taps, *, flip=False):
    """A weighted sum of each position's neighbours, channel by channel, zeros around the map."""
    h, w, _ = x.shape
    taps = taps[::-1, ::-1] if flip else taps
    r = len(taps) // 2
    steps = range(-r, r + 1)
    return np.array(
        [
            [
                sum(
                    taps[a + r, b + r] * x[i + a, j + b]
                    for a in steps
                    for b in steps
                    if 0 <= i + a < h and 0 <= j + b < w
                )
                for j in range(w)
            ]
            for i in range(h)
        ]
    )


def by_groups(x, kernel, d):
    """A linear map of every d features to d others; the kernel (1, 1, d, features)."""
    return np.concatenate([x[..., g : g + d] @ kernel[0, 0, :, g : g + d] for g in range(0, x.shape[-1], d)], -1)


def multi_scale(x, p, *, scales=(5,), d=DIM, flip=False, linear=by_groups):
    qkv = x @ p["qkv.kernel"]
    maps = [qkv]
    for s in range(len(scales)):
        near = depthwise(qkv, p[f"aggreg.{s}.layers.0.kernel"], flip=flip)
        maps.append(linear(near, p[f"aggreg.{s}.layers.1.kernel"], d))
    return maps


def asked(x, p, *, d=DIM, **kinds):
    """q, k and v of each head of each scale, as a list of three (n, d)."""
    heads = []
    for features in multi_scale(x, p, d=d, **kinds):
        tokens = features.reshape(-1, features.shape[-1])
        for start in range(0, tokens.shape[1], 3 * d):
            heads.append([tokens[:, start + part * d : start + (part + 1) * d] for part in range(3)])
    return heads


def relu(u):
    return np.maximum(u, 0)


def weights(x, p, *, epsilon=1e-5, split=asked, phi=relu, normalize=None, **kinds):
    normalize = normalize or (lambda s: np.array([row / (sum(row) + epsilon) for row in s]))
    return np.array([normalize(scores(phi(q), phi(k))) for q, k, _ in split(x, p, **kinds)])


def normed(y, p):
    return (y - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]


def oracle(x, p, *, norm=normed, split=asked, epsilon=1e-5, phi=relu, normalize=None, **kinds):
    alphas = weights(x, p, epsilon=epsilon, split=split, phi=phi, normalize=normalize, **kinds)
    each = [weighted_sums(alpha, v) for alpha, (_, _, v) in zip(alphas, split(x, p, **kinds), strict=True)]
    return norm((np.concatenate(each, 1) @ p["proj.kernel"]).reshape(x.shape), p)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, kinds = FORMS[form]
    against_oracle.assert_equal(create, partial(oracle, **kinds), SHAPE)
    theirs = partial(weights, **kinds)
    against_oracle.assert_equal(create, theirs, SHAPE, method="attention_map", gradient=False)


def by_parts(x, p, **kinds):
    """All queries first, then all keys, then all values, as multi-head attention has them."""
    heads = []
    for features in multi_scale(x, p, **kinds):
        parts = np.split(features.reshape(-1, features.shape[-1]), 3, 1)
        heads += [[part[:, g : g + DIM] for part in parts] for g in range(0, parts[0].shape[1], DIM)]
    return heads


def keys_as_they_are(x, p, **kinds):
    return [(relu(q), k, v) for q, k, v in asked(x, p, **kinds)]


def one_matrix(x, kernel, d):
    """The linear map of the first features for all."""
    return np.concatenate([x[..., g : g + d] @ kernel[0, 0, :, :d] for g in range(0, x.shape[-1], d)], -1)


TWO = FORMS["two scales, and a large ε"][1]
large = partial(oracle, **TWO)
MUTANTS = {
    "the ε of the authors' code": partial(oracle, **TWO | {"epsilon": 1e-15}),
    "a guarded division": partial(large, normalize=lambda s: np.array([r * reciprocal(sum(r), EPSILON) for r in s])),
    "no denominator": partial(large, normalize=lambda s: s),
    "softmax attention": partial(large, phi=lambda u: u, normalize=softmax_values),
    "elu + 1": partial(large, phi=lambda u: np.where(u > 0, u + 1, np.exp(u))),
    "the relu on the queries alone": partial(large, split=keys_as_they_are, phi=lambda u: u),
    "queries, keys and values by parts": partial(large, split=by_parts),
    "one matrix for all groups": partial(large, linear=one_matrix),
    "no matrices": partial(large, linear=lambda x, kernel, d: x),
    "the taps flipped": partial(large, flip=True),
    "no normalisation": partial(large, norm=lambda y, p: y),
    "a residual": lambda x, p: x + large(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["two scales, and a large ε"][0], MUTANTS[mutant], SHAPE)


def test_sums_beyond_float16_are_taken_in_float32():
    rng = np.random.default_rng(0)
    q, k, v = (np.float16(rng.uniform(20, 40, size=(35, 1, 3))) for _ in range(3))
    o = relu_linear_attention(*map(jnp.asarray, (q, k, v)))
    assert o.dtype == jnp.float16
    similarity = np.float64(q[:, 0]) @ np.float64(k[:, 0]).T
    exact = similarity / similarity.sum(1, keepdims=True) @ np.float64(v[:, 0])
    np.testing.assert_allclose(np.float64(o[:, 0]), exact, rtol=1e-3)
    assert similarity.sum(1).min() > np.finfo(np.float16).max


@pytest.mark.parametrize("channels", [64, 128])
def test_it_has_as_many_parameters_as_timms(channels):
    module = nnx.eval_shape(lambda: ReluLinearAttention(channels, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, channels)).parameters == 5 * channels**2 + 101 * channels


def timms(x, p, *, scales):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.efficientvit_mit").LiteMLA(6, 6, dim=DIM, scales=scales).double().eval()
    arrays = {f"{name}.conv.weight": p[f"{name}.kernel"].T[..., None, None] for name in ("qkv", "proj")}
    for s in range(len(scales)):
        for i in range(2):
            arrays[f"aggreg.{s}.{i}.weight"] = p[f"aggreg.{s}.layers.{i}.kernel"]
        arrays[f"aggreg.{s}.0.weight"] = np.moveaxis(arrays[f"aggreg.{s}.0.weight"], -1, 0)[:, None]
        arrays[f"aggreg.{s}.1.weight"] = np.transpose(arrays[f"aggreg.{s}.1.weight"], (3, 2, 0, 1))
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    arrays |= {f"proj.norm.{name}": p[f"norm.{ours}"] for name, ours in names.items()}
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    theirs.load_state_dict(state | {"proj.norm.num_batches_tracked": torch.tensor(0)})
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):  # as it sums in float32 whatever the type
        return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("scales", [(5,), (3, 5)])
def test_it_is_timms(scales):
    against_oracle.assert_equal(partial(create, scales=scales), partial(timms, scales=scales), SHAPE, gradient=False)
