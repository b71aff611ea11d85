"""Convolution against loops, and against XLA's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from attn_flax import ops
from attn_flax.ops import convolution
from tests.compiled import with_gradients
from tests.ops.convolution_cases import CASES, meetings, random

IN, OUT = 3, 5


def convolve(x, kernel, case, function=ops.conv_general_dilated, **options):
    size, _, strides, dilation, padding = case
    s = "DHW"[-len(size) :]
    numbers = (f"N{s}C", f"{s}IO", f"N{s}C")
    strides = strides or (1,) * len(size)
    return function(x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers, **options)


@pytest.mark.parametrize("channels_for_one_product", [1, convolution.MANY_CHANNELS])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_oracles(name, channels_for_one_product, monkeypatch):
    monkeypatch.setattr(convolution, "MANY_CHANNELS", channels_for_one_product)
    case = CASES[name]
    x, kernel = random((2, *case[0], IN), (*case[1], IN, OUT))
    size, met = meetings(*case)
    expected, dx, dkernel = np.zeros((2, *size, OUT)), np.zeros_like(x), np.zeros_like(kernel)
    (dy,) = random(expected.shape, seed=1)
    for i, o, p in met:
        for b in range(len(x)):
            expected[b, *i] += x[b, *p] @ kernel[o]
            dx[b, *p] += kernel[o] @ dy[b, *i]
            dkernel[o] += np.outer(x[b, *p], dy[b, *i])
    with jax.enable_x64():
        ours = with_gradients(lambda x, k: convolve(x, k, case), (x, kernel), dy)
    for got, wanted in zip(ours, (expected, dx, dkernel), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"feature_group_count": 3}, {"lhs_dilation": (2, 1)}])
def test_what_is_not_written_out_is_xlas(options):
    case = CASES["padded by hand"]
    x, kernel = random((2, *case[0], IN), (*case[1], IN // options.get("feature_group_count", 1), 2 * IN))
    with jax.enable_x64():
        y = convolve(x, kernel, case, lax.conv_general_dilated, **options)
        ours, theirs = (
            with_gradients(lambda x, k, f=f: convolve(x, k, case, f, **options), (x, kernel), y)
            for f in (ops.conv_general_dilated, lax.conv_general_dilated)
        )
    for got, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_second_derivatives_are_xlas():
    case = CASES["strided and dilated"]
    x, kernel, direction = random((2, *case[0], IN), (*case[1], IN, OUT), (*case[1], IN, OUT))

    def product(function):
        def loss(kernel):
            return (convolve(jnp.array(x), kernel, case, function) ** 3).sum()

        return jax.jit(jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), direction)))(kernel)

    with jax.enable_x64():
        np.testing.assert_allclose(product(ops.conv_general_dilated), product(lax.conv_general_dilated), rtol=1e-10)


def test_a_narrow_layer_keeps_its_types():
    @nnx.jit
    @nnx.value_and_grad(has_aux=True)
    def loss(layer, x):
        y = layer(x)
        return (y.astype(jnp.float32) ** 2).sum(), y

    layers = [
        nnx.Conv(IN, OUT, (3, 3), **options, rngs=nnx.Rngs(0))
        for options in ({}, {"dtype": jnp.bfloat16, "conv_general_dilated": ops.conv_general_dilated})
    ]
    (x,) = random((2, 9, 7, IN))
    ((_, wide), wide_gradient), ((_, narrow), narrow_gradient) = (loss(layer, jnp.float32(x)) for layer in layers)
    assert (narrow.dtype, narrow_gradient.kernel[...].dtype) == (jnp.bfloat16, jnp.float32)
    for got, wanted in ((np.float32(narrow), wide), (narrow_gradient.kernel[...], wide_gradient.kernel[...])):
        assert np.linalg.norm(got - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("window", [(3, 5), (1, 1)])
def test_accelerators_get_xlas_own(window):
    def program(function, platform):
        gradient = jax.jit(jax.grad(lambda k, x: convolve(x, k, CASES["odd"], function).sum()))
        x, kernel = (jnp.float32(a) for a in random((2, 7, 5, IN), (*window, IN, OUT)))
        return gradient.trace(kernel, x).lower(lowering_platforms=(platform,)).as_text()

    assert "dot_general" in program(ops.conv_general_dilated, "cpu")
    for platform in ("cuda", "tpu"):
        assert "dot_general" not in program(ops.conv_general_dilated, platform)
