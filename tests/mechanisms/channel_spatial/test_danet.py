"""Dual attention against its derivation."""

from functools import partial

import numpy as np
import pytest

from attn_flax.mechanisms.channel_spatial.danet import DualAttention
from tests.mechanisms import against_oracle
from tests.oracles import conv3x3, scores, softmax_values, weighted_sums

SHAPE, M = (5, 3, 8), 4
create = partial(DualAttention, 8, reduction=2, query_reduction=2)


def convolved(x, p, name):
    z = conv3x3(x, p[f"{name}.conv.kernel"], np.zeros(M))
    mean, variance, scale, bias = (p[f"{name}.norm.{part}"] for part in ("mean", "var", "scale", "bias"))
    return np.maximum((z - mean) / np.sqrt(variance + 1e-5) * scale + bias, 0)


def layer(u, p, name):
    return u.reshape(-1, M) @ p[f"position.{name}.kernel"] + p[f"position.{name}.bias"]


def position_weights(u, p):
    return softmax_values(scores(layer(u, p, "query"), layer(u, p, "key")))


def channel_weights(u, p, *, sign=-1):
    channels = u.reshape(-1, M).T
    e = scores(channels, channels)
    return softmax_values(e if sign > 0 else np.array([max(row) - row for row in e]))


def pam(u, p, *, residual=True):
    o = weighted_sums(position_weights(u, p), layer(u, p, "value"))
    return residual * u + p["position.gamma"] * o.reshape(u.shape)


def cam(u, p, *, residual=True, **sign):
    o = weighted_sums(channel_weights(u, p, **sign), u.reshape(-1, M).T).T
    return residual * u + p["beta"] * o.reshape(u.shape)


def oracle(x, p, *, pam=pam, cam=cam, fuse=np.add):
    of_positions = convolved(pam(convolved(x, p, "position_before"), p), p, "position_after")
    of_channels = convolved(cam(convolved(x, p, "channel_before"), p), p, "channel_after")
    return fuse(of_positions, of_channels) @ p["project.kernel"] + p["project.bias"]


def weights(x, p):
    return {
        "position": position_weights(convolved(x, p, "position_before"), p),
        "channel": channel_weights(convolved(x, p, "channel_before"), p),
    }


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the softmax of E": partial(oracle, cam=partial(cam, sign=1)),
    "the channels without residual": partial(oracle, cam=partial(cam, residual=False)),
    "the positions without residual": partial(oracle, pam=partial(pam, residual=False)),
    "the positions alone": partial(oracle, fuse=lambda p, a: p),
    "the channels alone": partial(oracle, fuse=lambda p, a: a),
    "the product": partial(oracle, fuse=np.multiply),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)
