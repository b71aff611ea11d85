"""The strip and the mixed pooling module against their derivations."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.strip_pooling import MixedPooling, StripPooling
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
create_strip = partial(StripPooling, 6)
create_mixed = partial(MixedPooling, 6, reduction=2, pool_sizes=(3, 8))


def relu(x):
    return np.maximum(x, 0)


def convolve(x, kernel):
    """Zeros around the map."""
    (tall, wide), (h, w, _) = kernel.shape[:2], x.shape
    padded = np.pad(x, ((tall // 2, tall // 2), (wide // 2, wide // 2), (0, 0)))
    return np.array(
        [[np.tensordot(padded[i : i + tall, j : j + wide], kernel, axes=3) for j in range(w)] for i in range(h)]
    )


def conv_norm(x, p, name, *, layer="conv", normalize=True):
    kernel = p[f"{name}.{layer}.kernel"]
    x = convolve(x, kernel) if layer == "conv" else x @ kernel
    if normalize:
        x = (x - p[f"{name}.norm.mean"]) / np.sqrt(p[f"{name}.norm.var"] + 1e-5)
        x = x * p[f"{name}.norm.scale"] + p[f"{name}.norm.bias"]
    return x


def strips(x, p, *, act=relu, names=("conv_h", "conv_w"), **kinds):
    h, w, _ = x.shape
    rows = np.array([[sum(x[i, j] for j in range(w)) / w] for i in range(h)])
    columns = np.array([[sum(x[i, j] for i in range(h)) / h for j in range(w)]])
    return act(conv_norm(rows, p, names[0], **kinds) + conv_norm(columns, p, names[1], **kinds))


def weights(x, p, *, gate=sigmoid, **kinds):
    return gate(strips(x, p, **kinds) @ p["project.kernel"] + p["project.bias"])


def strip_pooling(x, p, **kinds):
    return x * weights(x, p, **kinds)


def test_strip_pooling_is_the_paper():
    against_oracle.assert_equal(create_strip, strip_pooling, SHAPE)
    against_oracle.assert_equal(create_strip, weights, SHAPE, method="attention_map", gradient=False)


def pooled(x, size):
    (h, w, _), out = x.shape, np.empty((size, size, x.shape[-1]))
    for i in range(size):
        for j in range(size):
            rows = slice(i * h // size, math.ceil((i + 1) * h / size))
            columns = slice(j * w // size, math.ceil((j + 1) * w / size))
            out[i, j] = x[rows, columns].mean((0, 1))
    return out


def upsampled(x, h, w, *, corners=True):
    def place(i, new, old):
        if corners:
            return i * (old - 1) / (new - 1)
        return min(max((i + 0.5) * old / new - 0.5, 0), old - 1)

    def between(along, t):
        low = min(int(t), len(along) - 2)
        return along[low] + (t - low) * (along[low + 1] - along[low])

    tall = np.array([between(x, place(i, h, len(x))) for i in range(h)])
    return np.array([[between(row, place(j, w, x.shape[1])) for j in range(w)] for row in tall])


def context(x, p, *, corners=True, inner=relu, sizes=(3, 8)):
    h, w, _ = x.shape
    u, v = (relu(conv_norm(x, p, f"reduce_{part}", layer="linear")) for part in ("pyramid", "strips"))
    levels = [conv_norm(pooled(u, s), p, f"conv_pooled.{n}") for n, s in enumerate(sizes)]
    pyramid = inner(conv_norm(u, p, "conv") + sum(upsampled(level, h, w, corners=corners) for level in levels))
    parts = [
        relu(conv_norm(pyramid, p, "refine_pyramid")),
        relu(conv_norm(strips(v, p, act=inner), p, "refine_strips")),
    ]
    return conv_norm(np.concatenate(parts, -1), p, "fuse", layer="linear")


def mixed_pooling(x, p, **kinds):
    return relu(x + context(x, p, **kinds))


def test_mixed_pooling_is_the_paper():
    against_oracle.assert_equal(create_mixed, mixed_pooling, SHAPE)
    against_oracle.assert_equal(create_mixed, context, SHAPE, method="attention_map", gradient=False)


STRIP_MUTANTS = {
    "no ReLU": lambda x, p: strip_pooling(x, p, act=lambda u: u),
    "no normalisation": lambda x, p: strip_pooling(x, p, normalize=False),
    "no sigmoid": lambda x, p: strip_pooling(x, p, gate=lambda u: u),
    "the sum of strips for x": lambda x, p: relu(x + weights(x, p, gate=lambda u: u)),
    "the weights alone": weights,
    "a residual": lambda x, p: x + strip_pooling(x, p),
}


@pytest.mark.parametrize("mutant", STRIP_MUTANTS)
def test_usual_mistakes_of_strip_pooling_differ(mutant):
    against_oracle.assert_different(create_strip, STRIP_MUTANTS[mutant], SHAPE)


MIXED_MUTANTS = {
    "a gate": lambda x, p: x * sigmoid(context(x, p)),
    "no residual": lambda x, p: relu(context(x, p)),
    "no ReLU outside": lambda x, p: x + context(x, p),
    "no ReLU between": lambda x, p: mixed_pooling(x, p, inner=lambda u: u),
    "centres on centres": lambda x, p: mixed_pooling(x, p, corners=False),
    "the sizes exchanged": lambda x, p: mixed_pooling(x, p, sizes=(8, 3)),
}


@pytest.mark.parametrize("mutant", MIXED_MUTANTS)
def test_usual_mistakes_of_mixed_pooling_differ(mutant):
    against_oracle.assert_different(create_mixed, MIXED_MUTANTS[mutant], SHAPE)


def test_mixed_pooling_has_the_parameters_of_the_authors_code():
    module = nnx.eval_shape(lambda: MixedPooling(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4.1875 * 64**2 + 6.5 * 64


def test_the_authors_bins_fit_maps_that_are_smaller():
    module = MixedPooling(4, rngs=nnx.Rngs(0))
    module.eval()
    for shape in ((1, 1, 4), (1, 5, 4), (20, 12, 4)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        assert jnp.isfinite(jax.jit(module)(x)).all()
