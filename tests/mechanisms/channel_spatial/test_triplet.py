"""Triplet attention against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.triplet import TripletAttention
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {"the paper's": partial(TripletAttention, 6), "three taps": partial(TripletAttention, 6, kernel_size=3)}
AXES = {"height_width": 2, "height_channel": 1, "width_channel": 0}


def convolve(z, kernel):
    reach = len(kernel) // 2
    padded = np.pad(z, ((reach, reach), (reach, reach), (0, 0)))
    height, width, _ = z.shape
    return np.array(
        [
            [(padded[i : i + len(kernel), j : j + len(kernel)] * kernel[..., 0]).sum() for j in range(width)]
            for i in range(height)
        ]
    )


def gate(x, p, name, *, pool=(np.max, np.mean), act=sigmoid):
    axis = AXES[name]
    z = np.stack([kind(x, axis) for kind in pool], -1)
    scores = convolve(z, p[f"{name}.conv.kernel"])
    normalized = (scores - p[f"{name}.norm.mean"]) / np.sqrt(p[f"{name}.norm.var"] + 1e-5)
    return np.expand_dims(act(normalized * p[f"{name}.norm.scale"] + p[f"{name}.norm.bias"]), axis)


def gates(x, p, **kinds):
    return {name: gate(x, p, name, **kinds) for name in AXES}


def oracle(x, p, **kinds):
    return sum(x * g for g in gates(x, p, **kinds).values()) / 3


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[form], gates, SHAPE, method="attention_map", gradient=False)


def transposed(p):
    """The kernels of the rotated gates with the axes exchanged."""
    turn = lambda name: name.endswith("kernel") and "channel" in name  # noqa: E731
    return {name: value.swapaxes(0, 1) if turn(name) else value for name, value in p.items()}


def shared(p):
    return {name: p["height_width" + name[name.index(".") :]] for name in p}


MUTANTS = {
    "the gates summed": lambda x, p: 3 * oracle(x, p),
    "the gates multiplied": lambda x, p: x * np.prod(np.broadcast_arrays(*gates(x, p).values()), axis=0),
    "the spatial gate alone": lambda x, p: x * gate(x, p, "height_width"),
    "without the spatial gate": lambda x, p: x * (gate(x, p, "height_channel") + gate(x, p, "width_channel")) / 2,
    "the mean before the maximum": lambda x, p: oracle(x, p, pool=(np.mean, np.max)),
    "the minimum": lambda x, p: oracle(x, p, pool=(np.min, np.mean)),
    "the channels first in a kernel": lambda x, p: oracle(x, transposed(p)),
    "one gate for all": lambda x, p: oracle(x, shared(p)),
    "no sigmoid": lambda x, p: oracle(x, p, act=lambda u: u),
    "a ReLU before the sigmoid": lambda x, p: oracle(x, p, act=lambda u: sigmoid(np.maximum(u, 0))),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"], MUTANTS[mutant], SHAPE)


def test_it_has_300_parameters_at_any_width():
    for channels in (1, 64):
        assert TripletAttention(channels, rngs=nnx.Rngs(0)).cost((7, 5, channels)).parameters == 300


def test_height_and_width_may_be_exchanged_with_their_gates():
    module, (x,) = against_oracle.build(CREATE["the paper's"]), against_oracle.draw([SHAPE], 1)
    with jax.enable_x64():
        y = module(jnp.asarray(x))
        module.height_channel, module.width_channel = module.width_channel, module.height_channel
        kernel = module.height_width.conv.kernel
        kernel.set_value(kernel[...].swapaxes(0, 1))
        np.testing.assert_allclose(module(jnp.asarray(x.swapaxes(1, 2))), y.swapaxes(1, 2), rtol=1e-9)
