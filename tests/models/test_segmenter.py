"""The heads of Segmenter against their derivation in NumPy, and the network around them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from attn_flax.checks import InputError
from attn_flax.models import Segmenter
from attn_flax.models.segmenter import MaskHead
from tests.mechanisms.against_oracle import numbers
from tests.mechanisms.self_attention import test_mhsa as mhsa_oracle
from tests.mechanisms.spatial.test_attention_gate import bilinear
from tests.models.filled import filled, run

CHANNELS, CLASSES = 6, 3


def part(p, path):
    return {name.removeprefix(f"{path}."): number for name, number in p.items() if name.startswith(f"{path}.")}


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def block(z, p):
    z = z + mhsa_oracle.oracle(norm(z, part(p, "norm1")), part(p, "attn"))
    hidden = gelu(linear(norm(z, part(p, "norm2")), part(p, "mlp.reduce")))
    return z + linear(hidden, part(p, "mlp.expand"))


def unit(x):
    return np.array([row / np.sqrt(sum(row**2)) for row in x])


def oracle(z, p, *, unit=unit, normalize=norm):
    tokens = np.concatenate([linear(z, part(p, "enter")), p["classes"]])
    for i in range(2):
        tokens = block(tokens, part(p, f"blocks.{i}"))
    tokens = norm(tokens, part(p, "norm"))
    patches, classes = tokens[: len(z)], tokens[len(z) :]
    patches, classes = unit(linear(patches, part(p, "of_patches"))), unit(linear(classes, part(p, "of_classes")))
    scores = np.array([[z_i @ u_k for u_k in classes] for z_i in patches])
    return normalize(scores, part(p, "mask_norm"))


create = partial(MaskHead, CHANNELS, CLASSES, num_heads=2)


def test_the_mask_head_is_its_derivation():
    head = filled(create)
    with jax.enable_x64():
        z = np.random.default_rng(0).normal(size=(5, CHANNELS))
        logits, p = run(head, jnp.asarray(z)), numbers(head)
        np.testing.assert_allclose(logits, oracle(z, p), rtol=1e-8)
        for mistake in ({"unit": lambda x: x}, {"normalize": lambda x, p: x}):
            assert np.abs(logits - oracle(z, p, **mistake)).max() > 1e-3


SIZES = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": (10, 15), "in_channels": 2}


@nnx.jit
def logits_of_patches(net, image):
    return net.head(net.backbone.forward_features(image)[1:])


@pytest.mark.parametrize("head", ["mask", "linear"])
def test_logits_of_patches_are_interpolated_over_the_padded_image_and_cropped(head):
    net = filled(partial(Segmenter, CLASSES, head=head, **SIZES))
    with jax.enable_x64():
        images = np.random.default_rng(0).normal(size=(2, 1, 10, 15, 2))
        whole = np.pad(images[1, 0], [(0, 2), (0, 1), (0, 0)])
        patches = np.asarray(logits_of_patches(net, jnp.asarray(whole))).reshape(3, 4, CLASSES)
        logits = run(net, jnp.asarray(images))
    np.testing.assert_allclose(logits[1, 0], bilinear(patches, (12, 16))[:10, :15], rtol=1e-9, atol=1e-11)


@pytest.mark.full
def test_a_token_of_zeros_has_a_gradient():
    head = filled(create)
    with jax.enable_x64():
        head.of_patches.kernel.set_value(jnp.zeros((CHANNELS, CHANNELS)))
        gradient = nnx.jit(nnx.grad(lambda head: head(jnp.ones((5, CHANNELS))).sum()))(head)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(gradient)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"num_heads": 3}, "num_heads must be at least 1 and divide channels"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: Segmenter(CLASSES, **(SIZES | arguments), rngs=nnx.Rngs(0)))
