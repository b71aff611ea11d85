"""timm's networks with random numbers in them, and those numbers in ours."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from attn_flax import interop
from tests import timm_oracle


def random_network(name, **arguments):
    """timm's network in evaluation mode, its parameters and running statistics random and of moderate size."""
    network = timm_oracle.load("models").create_model(name, **arguments).eval()
    import torch

    rng = np.random.default_rng(0)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            if "running_var" in key:
                numbers = rng.uniform(0.5, 2, value.shape)
            elif value.ndim > 1:
                numbers = rng.normal(size=value.shape) / np.sqrt(value[0].numel())
            else:
                numbers = 0.1 * rng.normal(size=value.shape) + key.endswith("weight")
            value.copy_(torch.from_numpy(np.asarray(numbers, np.float32)))
    return network


def copy_numbers(theirs, ours):
    """Sets all of our numbers to theirs, and our network to evaluation."""
    interop.load_timm(ours, theirs.state_dict())
    ours.eval()


def images(*shape):
    """Random images of different contrast for us, and for timm."""
    import torch

    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x *= 4 ** np.arange(len(x), dtype=np.float32)[:, None, None, None]
    return jnp.asarray(x), torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def channels_last(maps):
    """What timm gives, in our layout."""
    return np.moveaxis(maps.detach().numpy(), 1, -1)


def random_network_of(kind, **arguments):
    """As `random_network`, of timm's class of that name; its models' names do not let all of their sizes be changed."""
    models = timm_oracle.load("models")
    with mock.patch.object(models, "create_model", lambda name, **sizes: getattr(models, name)(**sizes)):
        return random_network(kind, num_classes=11, **arguments)


def assert_it_is_timms(model, network, shape):
    """Features and logits of images, with timm's numbers."""
    copy_numbers(network, model)
    our_images, their_images = images(*shape)
    features, logits = jax.jit(lambda model, x: (model.features(x), model(x)))(model, our_images)
    expected = network.forward_intermediates(their_images, intermediates_only=True)
    for feature, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(feature, channels_last(theirs), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(logits, network(their_images).detach().numpy(), rtol=2e-4, atol=2e-4)
    assert logits.std(0).mean() > 0.01
