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
from tests.models.filled import filled, run

SHAPE = (8, 16, 2)
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


def oracle(x, p, *, cell=1, stages=3, gate=gate_oracle.gated, order=(0, 1)):
    x, skips = cells_to_channels(x, cell), []
    for stage in range(stages):
        x = convs(halve(x) if stage else x, part(p, f"down.{stage}"))
        skips.append(x)
    y = skips.pop()
    for stage in reversed(range(stages - 1)):
        numbers = part(p, f"gates.{stage - 1}")
        skip = gate(skips[stage], y, numbers) if stage and numbers else skips[stage]
        sides = skip, enlarge(y, part(p, f"enlarge.{stage}"))
        y = convs(np.concatenate([sides[i] for i in order], -1), part(p, f"up.{stage}"))
    return channels_to_cells(y @ p["head.kernel"] + p["head.bias"], cell)


def built_and_run(shape, **arguments):
    """A network in float64, its numbers at random, and what it makes of random images."""
    net = filled(partial(create, **arguments))
    with jax.enable_x64():
        images = np.random.default_rng(0).normal(size=shape)
        return against_oracle.numbers(net), images, np.asarray(run(net, jnp.asarray(images)))


@pytest.mark.parametrize("gates", [True, False])
def test_it_is_its_composition(gates):
    p, images, logits = built_and_run((2, *SHAPE), gates=gates)
    np.testing.assert_allclose(logits, [oracle(image, p) for image in images], rtol=1e-9, atol=1e-11)
    mistakes = [
        {"order": (1, 0)},
        {"gate": lambda x, signal, p: x},
        {"gate": lambda x, signal, p: gate_oracle.gated(x, np.zeros_like(signal), p)},
    ]
    for mistake in mistakes[: 3 if gates else 1]:
        assert np.abs(logits[0] - oracle(images[0], p, **mistake)).max() > 1e-3


def test_cells_of_pixels_are_positions():
    p, image, logits = built_and_run(SHAPE, cell=2)
    np.testing.assert_allclose(logits, oracle(image, p, cell=2), rtol=1e-9, atol=1e-11)


def test_a_size_that_no_map_divides_is_padded_with_zeros_and_cropped():
    net = filled(partial(create, cell=2))
    with jax.enable_x64():
        image = jnp.asarray(np.random.default_rng(0).normal(size=(37, 53, 2)))
        whole = jnp.zeros((40, 56, 2), image.dtype).at[:37, :53].set(image)
        np.testing.assert_allclose(run(net, image), run(net, whole)[:37, :53], rtol=1e-9, atol=1e-11)


def test_any_batch_axes():
    p, images, logits = built_and_run((2, 3, 4, 8, 2))
    np.testing.assert_allclose(logits[1, 2], oracle(images[1, 2], p), rtol=1e-9, atol=1e-11)


def test_the_maps_are_those_of_the_gates():
    net = filled(partial(UNet, 3, widths=(2, 3, 2, 3), depths=(1,) * 4, cell=2))
    maps = explain.attention_maps(net, jnp.ones((2, 32, 48, 3)))
    assert {path: weights.shape for path, weights in maps.items()} == {"gates.1": (2, 4, 6), "gates.0": (2, 8, 12)}
    # The deepest gate comes first.
    assert list(maps) == ["gates.1", "gates.0"]


def test_an_attention_follows_every_stage_on_the_way_down():
    class Double(nnx.Module):
        def __init__(self, channels, *, rngs):
            self.channels = channels

        def __call__(self, x):
            assert x.shape[-1] == self.channels
            return 2 * x

    def doubled(x, p):
        return 2 * convs(x, p)

    net = filled(partial(UNet, 2, widths=(2, 3), depths=(1, 1), in_channels=1, gates=False, attention=Double))
    image, p = np.random.default_rng(0).normal(size=(4, 6, 1)), against_oracle.numbers(net)
    first = doubled(image, part(p, "down.0"))
    with jax.enable_x64():
        maps = nnx.jit(lambda net, image: net.features(image))(net, jnp.asarray(image))
    np.testing.assert_allclose(maps[0], first, rtol=1e-9)
    np.testing.assert_allclose(maps[1], doubled(halve(first), part(p, "down.1")), rtol=1e-9)


@pytest.mark.parametrize(("gates", "parameters"), [(False, 31_039_426), (True, 32_072_517)])
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
