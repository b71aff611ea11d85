"""U-Net, with and without attention gates, against its composition in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import explain
from attn_flax.checks import InputError
from attn_flax.models import UNet, create_model
from tests import oracles
from tests.mechanisms import against_oracle
from tests.mechanisms.spatial import test_attention_gate as gate_oracle
from tests.models.filled import Compiled, filled, run

create = partial(UNet, 2, widths=(2, 3, 4), depths=(1, 2, 1), in_channels=2)


def part(p, path):
    """The numbers of a part of the network, by their path in it."""
    return {name.removeprefix(f"{path}."): number for name, number in p.items() if name.startswith(f"{path}.")}


def convs(x, p):
    """Convolution, batch norm and relu, so many times as there are kernels."""
    for i in range(sum(name.endswith("conv.kernel") for name in p)):
        kernel = p[f"layers.{i}.conv.kernel"]
        y = oracles.conv3x3(x, kernel, np.zeros(kernel.shape[-1]))
        mean, var, scale, bias = (p[f"layers.{i}.norm.{name}"] for name in ("mean", "var", "scale", "bias"))
        x = np.maximum((y - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
    return x


def halve(x):
    h, w = x.shape[0] // 2, x.shape[1] // 2
    return np.array([[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1)) for j in range(w)] for i in range(h)])


def cells_to_channels(x, s):
    h, w = x.shape[0] // s, x.shape[1] // s
    return np.array([[x[s * i : s * i + s, s * j : s * j + s].ravel() for j in range(w)] for i in range(h)])


def channels_to_cells(x, s):
    y = np.zeros((x.shape[0] * s, x.shape[1] * s, x.shape[2] // s**2))
    for i, j in np.ndindex(y.shape[:2]):
        y[i, j] = np.split(x[i // s, j // s], s * s)[i % s * s + j % s]
    return y


def enlarge(x, p):
    """Each position becomes four, row by row."""
    return channels_to_cells(x @ p["kernel"] + p["bias"], 2)


def oracle(
    x, p, *, cell=1, stages=3, gate=gate_oracle.gated, attend=lambda x: x, order=(0, 1), up=gate_oracle.bilinear
):
    x, skips = cells_to_channels(x, cell), []
    for stage in range(stages):
        x = attend(convs(halve(x) if stage else x, part(p, f"down.{stage}")))
        skips.append(x)
    y = skips.pop()
    logits = y @ p[f"scores.{stages - 1}.kernel"] + p[f"scores.{stages - 1}.bias"]
    for stage in reversed(range(stages - 1)):
        numbers = part(p, f"gates.{stage - 1}")
        skip = gate(skips[stage], y, numbers) if stage and numbers else skips[stage]
        sides = skip, enlarge(y, part(p, f"enlarge.{stage}"))
        y = convs(np.concatenate([sides[i] for i in order], -1), part(p, f"up.{stage}"))
        scores = y @ p[f"scores.{stage}.kernel"] + p[f"scores.{stage}.bias"]
        finer = scores if stage else channels_to_cells(scores, cell)
        logits = finer + up(logits, finer.shape[:2])
    return logits


class Double(nnx.Module):
    """An attention that anyone can compute."""

    def __init__(self, channels, *, rngs):
        self.channels = channels

    def __call__(self, x):
        assert x.shape[-1] == self.channels
        return 2 * x


FORMS = {
    "gates, cells of pixels": ({"cell": 2}, {"cell": 2}),
    "no gates, an attention": ({"gates": False, "attention": Double}, {"attend": lambda x: 2 * x}),
}
MISTAKES = {
    "gates, cells of pixels": [
        {"order": (1, 0)},
        {"gate": lambda x, signal, p: x},
        {"gate": lambda x, signal, p: gate_oracle.gated(x, np.zeros_like(signal), p)},
    ],
    "no gates, an attention": [{"attend": lambda x: x}, {"up": gate_oracle.nearest}, {"up": lambda x, size: 0}],
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_its_composition_over_the_image_padded_with_zeros(form):
    arguments, kinds = FORMS[form]
    net = filled(partial(create, **arguments))
    with jax.enable_x64():
        images = np.random.default_rng(0).normal(size=(2, 1, 7, 13, 2))
        logits, p = np.asarray(run(net, jnp.asarray(images))), against_oracle.numbers(net)
    padded = np.pad(images[1, 0], [(0, 1), (0, 3), (0, 0)])
    np.testing.assert_allclose(logits[1, 0], oracle(padded, p, **kinds)[:7, :13], rtol=1e-9, atol=1e-11)
    for mistake in MISTAKES[form]:
        assert np.abs(logits[1, 0] - oracle(padded, p, **(kinds | mistake))[:7, :13]).max() > 1e-3


def test_the_maps_are_those_of_the_gates():
    net = filled(partial(UNet, 3, widths=(2, 3, 2, 3), depths=(1,) * 4, cell=2))
    with jax.enable_x64():
        maps = explain.attention_maps(Compiled(net), jnp.ones((2, 32, 48, 3)))
    shapes = {path: weights.shape for path, weights in maps.items()}
    assert shapes == {"net.gates.1": (2, 4, 6), "net.gates.0": (2, 8, 12)}


@pytest.mark.parametrize(("gates", "parameters"), [(False, 31_043_274), (True, 32_076_365)])
def test_parameters_of_the_papers_widths(gates, parameters):
    net = nnx.eval_shape(lambda: create_model("unet", num_classes=2, in_channels=1, gates=gates, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(net, nnx.Param))) == parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": 0}, "cell must be at least 1, got 0"),
        ({"widths": (2, 3)}, r"widths and depths must be .* two or more stages, got \(2, 3\), \(1, 2, 1\)"),
        ({"widths": (4,), "depths": (1,)}, "two or more stages"),
        ({"widths": (2, 0, 4)}, "at least 1 for each"),
        ({"widths": (2, 3), "depths": (1, 1)}, r"gates need a third stage, got widths \(2, 3\)"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        create(**arguments, rngs=nnx.Rngs(0))


def test_images_of_other_channels_are_refused():
    with pytest.raises(InputError, match=r"x must have 2 channels on its last axis, got shape \(8, 8, 3\)"):
        nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0))(jnp.ones((8, 8, 3))))
