"""Single-head self-attention over a part of the channels against its derivation, and timm's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.single_head import SingleHeadAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

CHANNELS, PART, KEY_DIM = 8, 3, 4
SHAPE = (7, 5, CHANNELS)
create = partial(SingleHeadAttention, CHANNELS, key_dim=KEY_DIM, partial_channels=PART)


def batch_norm(z, p, name):
    mean, var = p[f"{name}.mean"], p[f"{name}.var"]
    return (z - mean) / np.sqrt(var + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def over_the_example(z, p):
    mean = sum(z.ravel()) / z.size
    return (z - mean) / np.sqrt(sum((z - mean).ravel() ** 2) / z.size + 1e-5) * p["norm.scale"] + p["norm.bias"]


def over_the_channels(z, p):
    return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5) * p["norm.scale"] + p["norm.bias"]


def over_the_positions(z, p):
    return (z - z.mean((0, 1))) / np.sqrt(z.var((0, 1)) + 1e-5) * p["norm.scale"] + p["norm.bias"]


def asked(x, p, *, norm=over_the_example, part=slice(PART), after=batch_norm):
    features = after(norm(x[..., part], p) @ p["qkv.linear.kernel"], p, "qkv.norm")
    return np.split(features.reshape(-1, 2 * KEY_DIM + PART), [KEY_DIM, 2 * KEY_DIM], axis=-1)


def weights(x, p, *, scale=KEY_DIM**-0.5, normalize=softmax_values, **kinds):
    q, k, _ = asked(x, p, **kinds)
    return normalize(scores(q, k) * scale)


def mixed(x, p, *, rest=slice(PART, None), scale=KEY_DIM**-0.5, normalize=softmax_values, **kinds):
    alpha = weights(x, p, scale=scale, normalize=normalize, **kinds)
    o = weighted_sums(alpha, asked(x, p, **kinds)[2])
    return np.concatenate([o.reshape(*x.shape[:2], PART), x[..., rest]], -1)


def oracle(x, p, *, activate=lambda u: np.maximum(u, 0), project=batch_norm, **kinds):
    return project(activate(mixed(x, p, **kinds)) @ p["proj.linear.kernel"], p, "proj.norm")


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, weights, SHAPE, method="attention_map", gradient=False)


def without_statistics(z, p, name):
    return z


MUTANTS = {
    "no scale": partial(oracle, scale=1.0),
    "the scale of the values' width": partial(oracle, scale=PART**-0.5),
    "a softmax over the queries": partial(oracle, normalize=lambda e: softmax_values(e.T).T),
    "the last channels": partial(oracle, part=slice(CHANNELS - PART, None), rest=slice(CHANNELS - PART)),
    "a norm over the channels of each position": partial(oracle, norm=over_the_channels),
    "a norm of each channel": partial(oracle, norm=over_the_positions),
    "no norm before": partial(oracle, norm=lambda z, p: z),
    "no batch norm of queries, keys and values": partial(oracle, after=without_statistics),
    "no batch norm at the end": partial(oracle, project=without_statistics),
    "no ReLU": partial(oracle, activate=lambda u: u),
    "ReLU of the attended part alone": partial(
        oracle, activate=lambda u: np.concatenate([np.maximum(u[..., :PART], 0), u[..., PART:]], -1)
    ),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize(("channels", "part"), [(224, 48), (320, 68), (2, 1)])
def test_it_has_as_many_parameters_as_timms(channels, part):
    """The widths of the authors' networks; a part of one channel at least."""
    module = nnx.eval_shape(lambda: SingleHeadAttention(channels, rngs=nnx.Rngs(0)))
    count = 2 * part + (part + 2) * (2 * 16 + part) + channels**2 + 2 * channels
    assert module.cost((7, 5, channels)).parameters == count


def timms(x, p):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    theirs = timm_oracle.load("models.shvit").SHSA(CHANNELS, KEY_DIM, PART).double().eval()
    arrays = {"pre_norm.weight": p["norm.scale"], "pre_norm.bias": p["norm.bias"]}
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, name in (("qkv", "qkv"), ("proj", "proj.1")):
        arrays[f"{name}.c.weight"] = p[f"{ours}.linear.kernel"].T[..., None, None]
        arrays |= {f"{name}.bn.{their_name}": p[f"{ours}.norm.{our_name}"] for our_name, their_name in names.items()}
    theirs.load_state_dict(theirs.state_dict() | {name: torch.tensor(array) for name, array in arrays.items()})
    return theirs(torch.tensor(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.full
def test_it_is_timms():
    against_oracle.assert_equal(create, timms, SHAPE)
