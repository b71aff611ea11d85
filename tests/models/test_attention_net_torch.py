"""The network against the article's listing, corrected, in PyTorch: logits and the gradient of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models import create_model

torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
pytestmark = pytest.mark.full


class Listing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1)
        self.reduce = torch.nn.Conv2d(64, 8, 1)
        self.expand = torch.nn.Conv2d(8, 64, 1)
        self.conv2 = torch.nn.Conv2d(64, 128, 3, padding=1)
        self.pool = torch.nn.AdaptiveAvgPool2d(8)
        self.linear1 = torch.nn.Linear(128 * 8 * 8, 512)
        self.linear2 = torch.nn.Linear(512, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = x * torch.relu(self.expand(torch.sigmoid(self.reduce(x))))
        x = self.pool(self.conv2(x)).flatten(1)
        return self.linear2(self.linear1(x))


def to_flax(name, tensors):
    """The kernel and bias of a layer of the listing, or their gradients, in our layout."""
    weight, bias = (t.detach().numpy() for t in tensors)
    if name == "linear1":  # flattened with channels first there, last here
        weight = weight.reshape(512, 128, 8, 8).transpose(0, 2, 3, 1).reshape(512, -1)
    if name in ("reduce", "expand"):
        weight = weight[:, :, 0, 0]
    return (weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T), bias


def layers(net):
    gate = net.attention
    return {
        "conv1": net.conv1,
        "reduce": gate.reduce,
        "expand": gate.expand,
        "conv2": net.conv2,
        "linear1": net.linear1,
        "linear2": net.linear2,
    }


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (9, 11)])
def test_logits_and_gradients_agree(height, width):
    torch.manual_seed(0)
    listing = Listing()
    net = create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    for name, layer in layers(net).items():
        theirs = getattr(listing, name)
        kernel, bias = to_flax(name, (theirs.weight, theirs.bias))
        layer.kernel.set_value(jnp.array(kernel))
        layer.bias.set_value(jnp.array(bias))
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    cotangent = rng.normal(size=(2, 10)).astype(np.float32)

    expected = listing(torch.tensor(images.transpose(0, 3, 1, 2)))
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(net(jnp.asarray(images)), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    gradients = nnx.grad(lambda net: (net(jnp.asarray(images)) * cotangent).sum())(net)
    for name, layer in layers(gradients).items():
        theirs = getattr(listing, name)
        kernel, bias = to_flax(name, (theirs.weight.grad, theirs.bias.grad))
        scale = np.abs(kernel).max()
        np.testing.assert_allclose(jax.device_get(layer.kernel[...]), kernel, rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(jax.device_get(layer.bias[...]), bias, rtol=1e-4, atol=1e-5 * np.abs(bias).max())
