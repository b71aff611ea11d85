"""Convolution that is fast on the CPU, too, where XLA's is slow (jax 0.10 to 0.12).

- A window of one tap is a product, which XLA's convolution reaches forward, not in its gradients.
- On maps smaller than the window, XLA takes a hundred times as long as the products that it sums: 3×3 windows of 512
  channels on 2×2 maps, forward and in the gradients, and on 4×4 maps with stride 2 in the gradients. There, and where
  many channels on few positions make the copies cheap, all that a window meets is laid side by side and multiplied at
  once.
- Elsewhere the kernel's gradient is written out, for which XLA takes up to ten times as long (64 to 128 channels on
  32×32 maps, from 8 images on).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attn_flax.ops.geometry import met_by, window_geometry
from attn_flax.ops.platforms import by_platform
from attn_flax.ops.precision import at_least_float32

FEW_POSITIONS = 256
MANY_CHANNELS = 128
MOST_COPIED_BYTES = 2**24
"""What is met by all windows together is laid side by side up to this size, on few positions and of many channels."""


def conv_general_dilated(
    x: Float[Array, "b *s c"],
    kernel: Float[Array, "*window c_group n"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    **options,
) -> Float[Array, "b *t n"]:
    """y_i = Σ_o x_{i∘strides + o∘dilation} W_o, and on the CPU ∂W_o = Σ_i x_{i∘strides + o∘dilation} ∂y_iᵀ as written.

    `jax.lax.conv_general_dilated`, faster on the CPU: give it to `flax.nnx.Conv` as its argument of this name. That is
    so for one group of channels last and undilated maps. Reverse-mode derivatives of any order; forward mode
    (`jax.jvp`, `jax.jacfwd`) is refused by JAX, since the derivatives are rules of our own.

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
    if _is_better_at_once(x, kernel, geometry):
        cpu = functools.partial(_product_at_once, geometry=geometry, precision=options.get("precision"))
    else:
        correlate = functools.partial(_sums_of_products, window=window, geometry=geometry)
        cpu = _with_kernel_gradient(convolve, correlate)
    return by_platform(cpu, convolve)(x, kernel)


def _is_better_at_once(x, kernel, geometry):
    *window, c, n = kernel.shape
    positions = geometry.output_size(x.shape[1:-1], window)
    is_larger = any(k > min(p, s) for k, p, s in zip(window, positions, x.shape[1:-1], strict=True))
    if math.prod(window) == 1 or is_larger:
        return True
    batch = x.shape[0] if isinstance(x.shape[0], int) else 1  # unknown in a program for batches of any size
    copied = batch * math.prod(positions) * math.prod(window) * c * x.dtype.itemsize
    return math.prod(positions) <= FEW_POSITIONS and min(c, n) >= MANY_CHANNELS and copied <= MOST_COPIED_BYTES


def _product_at_once(x, kernel, geometry, precision):
    """[x_{i∘strides + o∘dilation}]_o [W_o]_o: what all offsets o of the window meet, side by side."""
    window = kernel.shape[:-2]
    positions = geometry.output_size(x.shape[1:-1], window)
    x = geometry.padded(x)
    met = [
        x[:, *met_by(offset, positions, geometry.strides, geometry.dilation)]
        for offset in itertools.product(*map(range, window))
    ]
    return jnp.dot(jnp.concatenate(met, -1), kernel.reshape(-1, kernel.shape[-1]), precision=precision)


def _with_kernel_gradient(convolve, correlate):
    """The convolution, its kernel's gradient computed by `correlate`."""

    @jax.custom_vjp
    def convolution(x, kernel):
        return convolve(x, kernel)

    def backward(kept, dy):
        x, kernel = kept
        (dx,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)
        return dx, correlate(x, dy).astype(kernel.dtype)

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
