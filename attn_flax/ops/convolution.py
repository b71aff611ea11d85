"""Convolution whose kernel's gradient is fast on the CPU, too.

For some sizes XLA's convolution for the CPU takes ten times as long for the kernel's gradient as for the products that
it sums (jax 0.10 to 0.12: 64 to 128 channels on 32×32 maps, from 8 images on), so there they are written out.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attn_flax.ops.geometry import met_by, window_geometry
from attn_flax.ops.precision import at_least_float32


def conv_general_dilated(
    x: Float[Array, "b *s c"],
    kernel: Float[Array, "*window c_group n"],
    window_strides: tuple[int, ...],
    padding: str | tuple[tuple[int, int], ...],
    *,
    rhs_dilation: tuple[int, ...] | None = None,
    feature_group_count: int = 1,
    **options,
) -> Float[Array, "b *t n"]:
    """y_i = Σ_o x_{i∘strides + o∘dilation} W_o, and on the CPU ∂W_o = Σ_i x_{i∘strides + o∘dilation} ∂y_iᵀ as written.

    `jax.lax.conv_general_dilated` in all but that gradient: give it to `flax.nnx.Conv` as its argument of this name.
    The gradient is written out for one group of channels last and undilated maps. Reverse-mode derivatives of any
    order; forward mode (`jax.jvp`, `jax.jacfwd`) is refused by JAX, since the derivatives are rules of our own.

    Args:
        x: maps, channels last.
        kernel: the window W.
        window_strides: steps of the output positions, one for each axis.
        padding: "SAME", "SAME_LOWER", "VALID" or the zeros before and after each axis.
        rhs_dilation: steps between the taps of the window; one by default.
        feature_group_count: groups of channels.
        options: the other arguments of `jax.lax.conv_general_dilated`.

    Raises:
        InputError: strides, dilation or padding that do not fit the window.
        TypeError, ValueError: what else `jax.lax.conv_general_dilated` refuses.

    >>> x, kernel = jnp.arange(5.0)[None, :, None], jnp.ones((3, 1, 1))
    >>> conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")).squeeze()
    Array([1., 3., 6., 9., 7.], dtype=float32)
    """
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        rhs_dilation=rhs_dilation,
        feature_group_count=feature_group_count,
        **options,
    )
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, options.get("dimension_numbers"))
    axes = x.ndim - 2
    channels_last = (0, axes + 1, *range(1, axes + 1))
    kernel_last = (axes + 1, axes, *range(axes))
    undilated = set(options.get("lhs_dilation") or (1,)) == {1} and options.get("batch_group_count", 1) == 1
    if not undilated or feature_group_count > 1 or tuple(numbers) != (channels_last, kernel_last, channels_last):
        return convolve(x, kernel)
    window = kernel.shape[:-2]
    geometry = window_geometry(x.shape[1:-1], window, window_strides, rhs_dilation, padding)
    return _with_gradient(convolve, functools.partial(_sums_of_products, window=window, geometry=geometry))(x, kernel)


def _with_gradient(convolve, correlate):
    """The convolution, its kernel's gradient on the CPU computed by `correlate`."""

    @jax.custom_vjp
    def convolution(x, kernel):
        return convolve(x, kernel)

    def backward(kept, dy):
        x, kernel = kept
        (dx,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)
        dkernel = lax.platform_dependent(
            x,
            dy,
            cpu=lambda x, dy: correlate(x, dy).astype(kernel.dtype),
            default=lambda x, dy: jax.vjp(lambda k: convolve(x, k), kernel)[1](dy)[0],
        )
        return dx, dkernel

    convolution.defvjp(lambda x, kernel: (convolution(x, kernel), (x, kernel)), backward)
    return convolution


def _sums_of_products(x, dy, window, geometry):
    """Σ_i x_{i∘strides + o∘dilation} dy_iᵀ for each offset o of the window, in float32 or wider."""
    wide = at_least_float32(dy.dtype)
    x = geometry.padded(x)
    positions = tuple(range(dy.ndim - 1))

    def product(offset):
        met = met_by(offset, dy.shape[1:-1], geometry.strides, geometry.dilation)
        return jnp.tensordot(x[:, *met], dy, (positions, positions), preferred_element_type=wide)

    sums = jnp.stack([product(offset) for offset in itertools.product(*map(range, window))])
    return sums.reshape(*window, *sums.shape[1:])
