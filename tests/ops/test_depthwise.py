"""Depthwise convolution against loops, against XLA's convolution, and what it is lowered to."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attn_flax import ops
from attn_flax.checks import InputError
from tests.ops.convolution_cases import CASES, meetings, random

C = 6


def oracle(x, kernel, case):
    size, met = meetings(*case)
    y = np.zeros((len(x), *size, C))
    for i, o, p in met:
        for b in range(len(x)):
            y[b, *i] += kernel[o] * x[b, *p]
    return y


def oracle_gradients(x, kernel, dy, case):
    dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
    for i, o, p in meetings(*case)[1]:
        for b in range(len(x)):
            dx[b, *p] += kernel[o] * dy[b, *i]
            dkernel[o] += x[b, *p] * dy[b, *i]
    return dx, dkernel


def convolution(case):
    _, _, strides, dilation, padding = case
    return jax.jit(lambda x, kernel: ops.depthwise_conv(x, kernel, strides=strides, dilation=dilation, padding=padding))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_oracles(name):
    case = CASES[name]
    x, kernel = random((2, *case[0], C), (*case[1], C))
    expected = oracle(x, kernel, case)
    (dy,) = random(expected.shape, seed=1)
    with jax.enable_x64():
        y, pull_back = jax.vjp(convolution(case), jnp.array(x), jnp.array(kernel))
        gradients = pull_back(jnp.array(dy))
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients, oracle_gradients(x, kernel, dy, case), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_form_for_accelerators_is_the_one_for_cpus(name, monkeypatch):
    case = CASES[name]
    x, kernel = random((2, 3, *case[0], C), (*case[1], C))
    with jax.enable_x64():
        x, kernel = jnp.array(x), jnp.array(kernel)
        expected, pull_back = jax.vjp(convolution(case), x, kernel)
        (dy,) = random(expected.shape, seed=1)
        wanted = pull_back(jnp.array(dy))
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, cpu, default: default(*args))
        y, pull_back = jax.vjp(convolution(case), x, kernel)
        gradients = pull_back(jnp.array(dy))
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def xla(case):
    size, _, strides, dilation, padding = case
    s = "DHW"[-len(size) :]

    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel[..., None, :],
            strides or (1,) * len(size),
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{s}C", f"{s}IO", f"N{s}C"),
            feature_group_count=C,
        )

    return convolve


@pytest.mark.full
@pytest.mark.parametrize("name", ["even", "dilated", "strided and dilated", "cropped", "volume"])
def test_second_derivatives_are_those_of_xlas_convolution(name):
    case = CASES[name]
    x, kernel, dx, dkernel = random(*[(2, *case[0], C), (*case[1], C)] * 2)

    def second(convolve):
        def slope(x, kernel):
            gradients = jax.grad(lambda x, kernel: (convolve(x, kernel) ** 3).sum(), argnums=(0, 1))(x, kernel)
            return sum((g * d).sum() for g, d in zip(gradients, (dx, dkernel), strict=True))

        return jax.jit(jax.grad(slope, argnums=(0, 1)))(jnp.array(x), jnp.array(kernel))

    with jax.enable_x64():
        for got, wanted in zip(second(convolution(case)), second(xla(case)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["odd", "strided", "sequence", "strided volume"])
def test_takes_any_batch_axes_and_vmap_over_maps_and_windows(name):
    case = CASES[name]
    x, kernel = random((2, 3, *case[0], C), (3, *case[1], C))
    x, kernel = jnp.float32(x), jnp.float32(kernel)
    convolve = convolution(case)

    @jax.jit
    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: (convolve(x, kernel) ** 2).sum(), argnums=(0, 1))(x, kernel)

    expected = jnp.stack([convolve(x_b, kernel[0]) for x_b in x])
    np.testing.assert_allclose(convolve(x, kernel[0]), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(convolve(x[0, 0], kernel[0]), expected[0, 0], rtol=1e-5, atol=1e-5)
    for f in (convolve, gradients):
        each = [f(x[:, i], kernel[i]) for i in range(3)]
        mapped = jax.jit(jax.vmap(f, in_axes=(1, 0)))(x, kernel)
        for i in range(3):
            for got, wanted in zip(jax.tree.leaves(mapped), jax.tree.leaves(each[i]), strict=True):
                np.testing.assert_allclose(got[i], wanted, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_accumulated_in_float32():
    x, kernel = (jnp.array(1 + a, jnp.bfloat16) for a in random((2, 17, 15, C), (7, 7, C)))
    y, pull_back = jax.vjp(jax.jit(ops.depthwise_conv), x, kernel)
    dx, dkernel = pull_back(jnp.ones_like(y))
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    case = ((17, 15), (7, 7), None, None, "SAME")
    exact = oracle(np.float64(x), np.float64(kernel), case)
    magnitude = oracle(np.abs(np.float64(x)), np.abs(np.float64(kernel)), case)
    assert np.all(np.abs(np.float64(y) - exact) <= 2**-8 * np.abs(exact) + 49 * 2**-24 * magnitude)
    dx_exact, dkernel_exact = oracle_gradients(np.float64(x), np.float64(kernel), np.ones(y.shape), case)
    np.testing.assert_allclose(np.float64(dx), dx_exact, rtol=2**-8, atol=1e-4)
    np.testing.assert_allclose(np.float64(dkernel), dkernel_exact, rtol=2**-8, atol=1e-2)


def test_a_wider_window_does_not_widen_the_result():
    x, kernel = random((2, 7, 5, C), (3, 3, C))
    x, kernel = jnp.bfloat16(x), jnp.float32(kernel)
    y, pull_back = jax.vjp(jax.jit(ops.depthwise_conv), x, kernel)
    dx, dkernel = pull_back(y)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = oracle(np.float64(x), np.float64(kernel), ((7, 5), (3, 3), None, None, "SAME"))
    np.testing.assert_allclose(np.float64(y), exact, rtol=2**-8, atol=1e-5)


def test_maps_without_examples_are_taken():
    y, pull_back = jax.vjp(lambda *a: ops.depthwise_conv(*a), jnp.ones((0, 7, 5, C)), jnp.ones((3, 3, C)))
    assert y.shape == (0, 7, 5, C)
    np.testing.assert_array_equal(pull_back(y)[1], np.zeros((3, 3, C)))


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 3), ("tpu", 3)])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_accelerators_convolve_and_cpus_do_not(platform, convolutions, axes):
    def value_and_gradients(x, kernel):
        y, pull_back = jax.vjp(lambda x, kernel: ops.depthwise_conv(x, kernel), x, kernel)
        return y, pull_back(y)

    shapes = [
        jax.ShapeDtypeStruct((2, 3, *[7] * axes, C), jnp.bfloat16),
        jax.ShapeDtypeStruct((*[3] * axes, C), jnp.bfloat16),
    ]
    exported = jax.export.export(jax.jit(jax.vmap(value_and_gradients, (0, None))), platforms=[platform])(*shapes)
    assert exported.mlir_module().count("stablehlo.convolution") == convolutions


REFUSALS = {
    "no window": ((7, 5, C), (C,), {}, r"1 to 3 window axes and one of channels, got shape \(6,\)"),
    "four window axes": ((7, 5, 3, 2, C), (1, 1, 1, 1, C), {}, r"1 to 3 window axes .* got shape \(1, 1, 1, 1, 6\)"),
    "empty window": ((7, 5, C), (3, 0, C), {}, r"1 to 3 window axes .* got shape \(3, 0, 6\)"),
    "map axes": ((5, C), (3, 3, C), {}, r"2 spatial axes and 6 channels .* got shapes \(5, 6\) and \(3, 3, 6\)"),
    "channels": ((7, 5, 1), (3, 3, C), {}, r"2 spatial axes and 6 channels .* got shapes \(7, 5, 1\) and \(3, 3, 6\)"),
    "strides": ((7, 5, C), (3, 3, C), {"strides": (2,)}, r"strides must be 2 numbers of at least 1, .* got \(2,\)"),
    "dilation": (
        (7, 5, C),
        (3, 3, C),
        {"dilation": (1, 0)},
        r"dilation must be 2 numbers of at least 1, .* got \(1, 0\)",
    ),
    "padding name": (
        (7, 5, C),
        (3, 3, C),
        {"padding": "FULL"},
        "'SAME', 'SAME_LOWER', 'VALID' or pairs of numbers, got 'FULL'",
    ),
    "padding pairs": ((7, 5, C), (3, 3, C), {"padding": ((1, 1),)}, r"padding must be 2 pairs, .* got \(\(1, 1\),\)"),
    "window too large": (
        (7, 5, C),
        (3, 3, C),
        {"padding": "VALID", "dilation": (1, 3)},
        r"the window \(3, 3\) with dilation \(1, 3\) must fit the padded map, got shape \(7, 5, 6\)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    x, kernel, arguments, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        ops.depthwise_conv(jnp.ones(x), jnp.ones(kernel), **arguments)


def test_forward_mode_is_refused_as_the_docstring_says():
    x, kernel = jnp.ones((7, 5, C)), jnp.ones((3, 3, C))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ops.depthwise_conv, (x, kernel), (x, kernel))


@pytest.mark.parametrize("split", ["batch", "channels"])
def test_on_a_mesh_only_the_gradient_of_the_window_is_summed(split):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    maps, windows = {
        "batch": (PartitionSpec("a"), PartitionSpec()),
        "channels": (PartitionSpec(None, None, None, "a"), PartitionSpec(None, None, "a")),
    }[split]
    maps, windows = NamedSharding(mesh, maps), NamedSharding(mesh, windows)
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(16, 9, 7, 8)), "float32") for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 5, 8)), "float32")

    def both(x, kernel, dy):
        y, pull_back = jax.vjp(ops.depthwise_conv, x, kernel)
        return y, *pull_back(dy)

    sharded = jax.jit(both, in_shardings=(maps, windows, maps), out_shardings=(maps, maps, windows))
    compiled = sharded.lower(x, kernel, dy).compile()
    text = compiled.as_text()
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in text]
    assert ("all-reduce" in text) == (split == "batch")
    placed = (jax.device_put(a, sharding) for a, sharding in ((x, maps), (kernel, windows), (dy, maps)))
    chex.assert_trees_all_close(compiled(*placed), jax.jit(both)(x, kernel, dy), atol=1e-4)
