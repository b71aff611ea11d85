"""The residual network for small images against naive layers."""

import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models import SmallResNet, create_model
from tests import oracles
from tests.models import networks

WIDTHS, DEPTHS, PATCH = (4, 6), (1, 2), 2


class Halved(nnx.Module):
    """An attention of which one knows what it does."""

    def __init__(self, channels, *, rngs):
        self.channels = channels

    def __call__(self, x):
        return x / 2


def normalized(x, p, name):
    """In groups of the largest divisor that the channels have in common with 16."""
    h, w, c = x.shape
    groups = x.reshape(h, w, -1, np.gcd(c, 16))
    mean, var = groups.mean((0, 1, 3), keepdims=True), groups.var((0, 1, 3), keepdims=True)
    y = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(h, w, c)
    return np.maximum(y * p[f"{name}.scale"] + p[f"{name}.bias"], 0)


def conv(x, p, name):
    kernel = p[f"{name}.kernel"]
    return oracles.conv3x3(x, kernel, p.get(f"{name}.bias", np.zeros(kernel.shape[-1])))


def block(x, p, name, stride, attend):
    y = conv(normalized(x, p, f"{name}.norm1"), p, f"{name}.conv1")[::stride, ::stride]
    y = attend(conv(normalized(y, p, f"{name}.norm2"), p, f"{name}.conv2"))
    if f"{name}.shortcut.kernel" in p:
        x = x[::stride, ::stride] @ p[f"{name}.shortcut.kernel"][0, 0] + p[f"{name}.shortcut.bias"]
    return x + y


def cells(image):
    h, w, _ = image.shape
    return np.array(
        [[image[i : i + PATCH, j : j + PATCH].ravel() for j in range(0, w, PATCH)] for i in range(0, h, PATCH)]
    )


def oracle(image, p, attend):
    x, maps = conv(cells(image), p, "stem"), []
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            x = block(x, p, f"stages.{i}.{j}", 2 if i > 0 and j == 0 else 1, attend)
        maps.append(normalized(x, p, f"norms.{i}"))
    return maps, maps[-1].mean((0, 1)) @ p["head.kernel"] + p["head.bias"]


@pytest.mark.parametrize(("attention", "attend"), [(None, lambda y: y), (Halved, lambda y: y / 2)])
def test_it_is_its_layers(attention, attend):
    image = networks.random(10, 6, 3)
    net, p = networks.build(
        lambda **types: SmallResNet(5, patch=PATCH, widths=WIDTHS, depths=DEPTHS, attention=attention, **types)
    )
    maps, logits = oracle(image, p, attend)
    for ours, theirs in zip(networks.run(net, image, method="features"), maps, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(networks.run(net, image), logits, rtol=1e-9, atol=1e-11)


def test_parameters_are_as_documented():
    assert networks.parameters("small_resnet", num_classes=10) == 702_666


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"widths": (4,)}, r"widths and depths must be sizes .* one for each stage, got \(4,\) and \(2, 2\)"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        SmallResNet(3, **arguments, rngs=nnx.Rngs(0))


def test_what_is_given_goes_before_what_a_name_stands_for():
    model = nnx.eval_shape(lambda: create_model("detr_small", num_queries=7, rngs=nnx.Rngs(0)))
    assert (model.num_queries, model.width, len(model.decoder)) == (7, 96, 2)
