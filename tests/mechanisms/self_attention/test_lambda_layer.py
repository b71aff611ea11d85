"""Lambda layers against their derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.lambda_layer import LambdaLayer
from tests import timm_oracle
from tests.mechanisms import against_oracle

SHAPE = (5, 3, 6)
HEADS, FEATURES = 2, 4
create = partial(LambdaLayer, 6, num_heads=HEADS, key_features=FEATURES)
FORMS = {
    "a convolution": partial(create, kernel_size=3),
    "a convolution wider than the map": partial(create, kernel_size=7),
    "a table": partial(create, kernel_size=None, size=SHAPE[:2]),
}


def normalize(z, p, name):
    mean, var = p[f"{name}.mean"], p[f"{name}.var"]
    return (z - mean) / np.sqrt(var + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def softmax_over_positions(k):
    return np.array([np.exp(u - max(u)) / sum(np.exp(u - max(u))) for u in k.T]).T


def asked(
    x, p, *, norms=("norm_q", "norm_v"), keys=softmax_over_positions, head=lambda j, d: slice(j * d, (j + 1) * d)
):
    """The queries of each head, κ and v, as (n, d) and (n, e)."""
    features = np.array([x_i @ p["qkv.kernel"] for x_i in x.reshape(-1, x.shape[-1])])
    q, k, v = np.split(features, [HEADS * FEATURES, (HEADS + 1) * FEATURES], 1)
    q = normalize(q, p, "norm_q") if "norm_q" in norms else q
    v = normalize(v, p, "norm_v") if "norm_v" in norms else v
    return [q[:, head(j, FEATURES)] for j in range(HEADS)], keys(k), v


def embedding(p, offset):
    """e for an offset from i to j."""
    if "table" in p:
        middle = np.array(p["table"].shape[:2]) // 2
        return p["table"][tuple(middle + offset)]
    reach = len(p["convolve.kernel"]) // 2
    within = max(abs(o) for o in offset) <= reach
    return p["convolve.kernel"][offset[0] + reach, offset[1] + reach, 0] if within else np.zeros(FEATURES)


def weights(x, p, *, content=1.0, position=1.0, scale=1.0, sign=1, **kinds):
    h, w, _ = x.shape
    places = [np.array([y, z]) for y in range(h) for z in range(w)]
    queries, kappa, _ = asked(x, p, **kinds)
    return np.array(
        [
            [
                [
                    scale * q_i @ (content * kappa[j] + position * embedding(p, sign * (places[j] - places[i])))
                    for j in range(h * w)
                ]
                for i, q_i in enumerate(q)
            ]
            for q in queries
        ]
    )


def oracle(x, p, *, bias=True, content=1.0, position=1.0, scale=1.0, sign=1, **kinds):
    h, w, _ = x.shape
    places = [np.array([y, z]) for y in range(h) for z in range(w)]
    queries, kappa, v = asked(x, p, **kinds)
    of_content = sum(np.outer(kappa_j, v_j) for kappa_j, v_j in zip(kappa, v, strict=True))
    out = []
    for i, place in enumerate(places):
        of_positions = sum(np.outer(embedding(p, sign * (places[j] - place)), v[j]) for j in range(h * w))
        lambda_i = content * of_content + position * of_positions
        if bias and "convolve.bias" in p:
            lambda_i = lambda_i + p["convolve.bias"][:, None]
        out.append(np.concatenate([scale * lambda_i.T @ q[i] for q in queries]))
    return np.array(out).reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(FORMS[form], oracle, SHAPE)
    against_oracle.assert_equal(FORMS[form], weights, SHAPE, method="attention_map", gradient=False)


def softmax_over_features(k):
    return softmax_over_positions(k.T).T


MUTANTS = {
    "a softmax over the features": partial(oracle, keys=softmax_over_features),
    "no softmax": partial(oracle, keys=lambda k: k),
    "no content": partial(oracle, content=0),
    "no positions": partial(oracle, position=0),
    "offsets from j to i": partial(oracle, sign=-1),
    "queries not normalised": partial(oracle, norms=("norm_v",)),
    "values not normalised": partial(oracle, norms=("norm_q",)),
    "the scale of attention": partial(oracle, scale=FEATURES**-0.5),
    "heads interleaved": partial(oracle, head=lambda j, d: slice(j, None, HEADS)),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("form", ["a convolution", "a table"])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant, form):
    against_oracle.assert_different(FORMS[form], MUTANTS[mutant], SHAPE)


def test_a_convolution_without_its_bias_differs():
    against_oracle.assert_different(FORMS["a convolution"], partial(oracle, bias=False), SHAPE)


COUNTS = {
    "a convolution": ({}, 16 * 9**2 + 16),
    "a table": ({"kernel_size": None, "size": (7, 5)}, 13 * 9 * 16),
}


@pytest.mark.parametrize("form", COUNTS)
def test_it_has_as_many_parameters_as_timms(form):
    arguments, of_positions = COUNTS[form]
    module = nnx.eval_shape(lambda: LambdaLayer(64, **arguments, rngs=nnx.Rngs(0)))
    of_content = 64 * (4 * 16 + 16 + 64 // 4) + 2 * (4 * 16 + 64 // 4)
    assert module.cost((7, 5, 64)).parameters == of_content + of_positions


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    h, w, c = x.shape
    r = len(p["convolve.kernel"]) if "convolve.kernel" in p else None
    theirs = timm_oracle.load("layers.lambda_layer").LambdaLayer(
        c, feat_size=(h, w), num_heads=HEADS, dim_head=FEATURES, r=r
    )
    arrays = {"qkv.weight": p["qkv.kernel"].T[:, :, None, None]}
    for norm in ("norm_q", "norm_v"):
        names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
        arrays |= {f"{norm}.{name}": p[f"{norm}.{ours}"] for name, ours in names.items()}
        arrays[f"{norm}.num_batches_tracked"] = np.array(0)
    if r is None:
        arrays["pos_emb"] = p["table"]
    else:
        kernel = np.moveaxis(p["convolve.kernel"], -1, 0)  # (d, r, r, 1)
        arrays |= {"conv_lambda.weight": kernel[:, None], "conv_lambda.bias": p["convolve.bias"]}
    theirs.double().eval().load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_it_is_timms(form):
    against_oracle.assert_equal(FORMS[form], timms, SHAPE)
