"""Depthwise convolution: every channel has a window of its own.

Both derivatives are depthwise sums over the same offsets, and each of the three is linear in what the others are
derivatives by, so two functions and their transposes are closed under reverse differentiation of any order.

Where XLA's own convolution is fast (GPU, TPU) it is used; on CPU, where it takes channels one by one, the sums are
written out. Which of the two it is, is chosen when the program is lowered for a platform.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops.geometry import Geometry, met_by, spread, window_geometry
from attn_flax.ops.precision import at_least_float32

MAX_WINDOW_AXES = 3
# How many products XLA is given to fuse. With fewer than 16 (jax 0.10) or more than about 100 its loops are not
# vectorised, which costs a factor of eight and more; with more than 16 those of the window's gradient miss the cache.
BLOCK_TERMS = 16
MAX_FUSED_TAPS = 49


def depthwise_conv(
    x: Float[Array, "*s c"],
    kernel: Float[Array, "*window c_kernel"],
    *,
    strides: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> Float[Array, "*t c"]:
    """y_i = Σ_o w_o ∘ x_{i∘strides + o∘dilation}, a sum over the offsets o of a window, ∘ by axis and by channel.

    Accumulated in float32 or wider, returned in the type of x. Reverse-mode derivatives of any order; forward mode
    (`jax.jvp`, `jax.jacfwd`) is refused by JAX, since the derivatives are rules of our own.

    Args:
        x: maps (*b, *s, c) with as many spatial axes as the window has, and any number of batch axes before them.
        kernel: the window w, one to three axes and the channels.
        strides: steps of the output positions; one by default.
        dilation: steps between the taps of the window; one by default.
        padding: "SAME", "SAME_LOWER", "VALID" or the zeros to add before and after each axis (fewer than none:
            positions to drop), as `jax.lax.conv_general_dilated` means them.

    Raises:
        InputError: a window of no or more than three axes, or larger than the padded map; x with fewer axes, or
            another number of channels; strides, dilation or padding that do not fit the window.

    >>> depthwise_conv(jnp.arange(5.0)[:, None], jnp.ones((3, 1))).squeeze()
    Array([1., 3., 6., 9., 7.], dtype=float32)

    Source: Sifre and Mallat, "Rigid-Motion Scattering for Texture Classification" (2014), arXiv:1403.1687, chapter 6.
    """
    *window, channels = kernel.shape
    axes = len(window)
    check(
        1 <= axes <= MAX_WINDOW_AXES and min(window) >= 1,
        f"kernel must have 1 to {MAX_WINDOW_AXES} window axes and one of channels, got shape {kernel.shape}.",
    )
    check(
        x.ndim > axes and x.shape[-1] == channels,
        f"x must have {axes} spatial axes and {channels} channels on its last axis, as the kernel has, "
        f"got shapes {x.shape} and {kernel.shape}.",
    )
    size = x.shape[-axes - 1 : -1]
    geometry = window_geometry(size, window, strides, dilation, padding)
    check(
        min(geometry.output_size(size, window)) >= 1,
        f"the window {tuple(window)} with dilation {geometry.dilation} must fit the padded map, "
        f"got shape {x.shape} and padding {geometry.padding}.",
    )
    return _convolve(x, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, geometry):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_sum_of_shifts, geometry=geometry),
        default=functools.partial(_xla_convolution, geometry=geometry),
    )


def _convolve_and_keep(x, kernel, geometry):
    return _convolve(x, kernel, geometry), (x, kernel)


def _convolve_transposed(geometry, kept, dy):
    x, kernel = kept
    window = kernel.shape[:-1]
    dx = _input_gradient(dy, kernel, x.shape, geometry)
    return dx.astype(x.dtype), _correlate(x, dy, window, geometry).astype(kernel.dtype)


_convolve.defvjp(_convolve_and_keep, _convolve_transposed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlate(x, dy, window, geometry):
    """The gradient of the window: Σ_i x_{i∘strides + o∘dilation} ∘ dy_i for each offset o, in float32 or wider."""
    return lax.platform_dependent(
        x,
        dy,
        cpu=functools.partial(_sums_by_lane, window=window, geometry=geometry),
        default=functools.partial(_xla_correlation, window=window, geometry=geometry),
    )


def _correlate_and_keep(x, dy, window, geometry):
    return _correlate(x, dy, window, geometry), (x, dy)


def _correlate_transposed(window, geometry, kept, dkernel):
    x, dy = kept
    dx = _input_gradient(dy, dkernel, x.shape, geometry)
    return dx.astype(x.dtype), _convolve(x, dkernel, geometry).astype(dy.dtype)


_correlate.defvjp(_correlate_and_keep, _correlate_transposed)


def _input_gradient(dy, kernel, shape, geometry):
    size, window = shape[-geometry.axes - 1 : -1], kernel.shape[:-1]
    return _convolve(dy, jnp.flip(kernel, range(geometry.axes)), geometry.transposed(size, window))


def _sum_of_shifts(x, kernel, geometry):
    wide = at_least_float32(jnp.promote_types(x.dtype, kernel.dtype))
    window = kernel.shape[:-1]
    size = geometry.output_size(x.shape[-geometry.axes - 1 : -1], window)
    padded = lax.optimization_barrier(geometry.padded(x))  # or it would be padded anew for each offset
    offsets = list(itertools.product(*map(range, window)))

    def products(offsets):
        for o in offsets:
            met = padded[..., *met_by(o, size, geometry.strides, geometry.dilation), :]
            yield met.astype(wide) * kernel[o].astype(wide)

    y = sum(products(offsets[:MAX_FUSED_TAPS]))
    for i in range(MAX_FUSED_TAPS, len(offsets), MAX_FUSED_TAPS):
        y = lax.optimization_barrier(y) + sum(products(offsets[i : i + MAX_FUSED_TAPS]))
    return y.astype(x.dtype)


def _sums_by_lane(x, dy, window, geometry):
    """The sums, of as many parts of the batch as the devices can share, so that none needs another's images."""
    sums = functools.partial(_sums_of_products, window=window, geometry=geometry)
    lanes = math.gcd(len(x), jax.device_count()) if x.ndim > geometry.axes + 1 else 1
    if lanes == 1:
        return sums(x, dy)
    x, dy = (a.reshape(lanes, -1, *a.shape[1:]) for a in (x, dy))
    return jax.vmap(sums)(x, dy).sum(0)


def _sums_of_products(x, dy, window, geometry):
    """The sums by blocks of rows.

    A block of products is added to one array for each column of the window, (*positions in a row, rows of the window,
    c), so that the loop reduces nothing and finds in the cache what the rows of the window share. The reduction over
    the positions comes once, at the end.
    """
    x = geometry.padded(x)
    (stride, *strides), (step, *steps) = geometry.strides, geometry.dilation
    if geometry.axes == MAX_WINDOW_AXES:  # a sum of plane windows for each tap of the first axis
        plane = Geometry(tuple(strides), ((0, 0),) * 2, (1, 1), tuple(steps))
        times = [met_by([o], dy.shape[-4:-3], [stride], [step])[0] for o in range(window[0])]
        return jnp.stack([_sums_of_products(x[..., t, :, :, :], dy, window[1:], plane) for t in times])
    wide = at_least_float32(jnp.promote_types(x.dtype, dy.dtype))
    x, dy = (_one_batch_axis(a, geometry) for a in (x, dy))
    images, rows, starts = _blocks(*dy.shape[:2])
    reach = spread(window[0], step)
    dy = _extend(dy, starts[-1] + (images, rows))
    x = _extend(x, (starts[-1] + (images, rows - 1)) * (1, stride) + (0, reach))
    columns = list(itertools.product(*map(range, window[1:])))

    def add_block(sums, start):
        x_block = _take(x, start * np.int32([1, stride]), (images, (rows - 1) * stride + reach))
        dy_block = _take(dy, start, (images, rows))

        def products(column):
            met = met_by(column, dy.shape[2:-1], strides, steps)
            for image, row in itertools.product(range(images), range(rows)):
                window_rows = x_block[image, row * stride : row * stride + reach : step, *met].astype(wide)
                yield jnp.moveaxis(window_rows, 0, -2) * dy_block[image, row, ..., None, :].astype(wide)

        return [so_far + sum(products(column)) for so_far, column in zip(sums, columns, strict=True)], None

    zeros = [jnp.zeros((*dy.shape[2:-1], window[0], dy.shape[-1]), wide)] * len(columns)
    sums, _ = lax.scan(add_block, zeros, starts)
    return jnp.stack([s.sum(range(s.ndim - 2)) for s in sums], 1).reshape(*window, -1)


def _blocks(images, rows):
    """The images and rows of a block, BLOCK_TERMS products together, and where each block starts."""
    rows_each = min(2 ** math.ceil(math.log2(rows)), BLOCK_TERMS)
    images_each = BLOCK_TERMS // rows_each
    starts = itertools.product(range(0, max(images, 1), images_each), range(0, rows, rows_each))
    return images_each, rows_each, np.array(list(starts), np.int32)


def _extend(x, sizes):
    """The array with zeros after it, so that the first axes have at least these sizes."""
    return jnp.pad(
        x, [(0, max(size - s, 0)) for size, s in zip(sizes, x.shape, strict=False)] + [(0, 0)] * (x.ndim - len(sizes))
    )


def _take(x, start, size):
    """A part of this size of the first axes."""
    return lax.dynamic_slice(x, jnp.pad(start, (0, x.ndim - len(size))), (*size, *x.shape[len(size) :]))


def _xla_convolution(x, kernel, geometry):
    narrow = jnp.promote_types(x.dtype, kernel.dtype)
    s = "DHW"[-geometry.axes :]
    y = lax.conv_general_dilated(
        _one_batch_axis(x, geometry).astype(narrow),
        kernel[..., None, :].astype(narrow),
        window_strides=geometry.strides,
        padding=geometry.padding,
        lhs_dilation=geometry.base_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=kernel.shape[-1],
        preferred_element_type=at_least_float32(narrow),
    )
    return y.reshape(*x.shape[: -geometry.axes - 1], *y.shape[1:]).astype(x.dtype)


def _xla_correlation(x, dy, window, geometry):
    x, dy = (_one_batch_axis(a, geometry) for a in (x, dy))
    narrow = jnp.promote_types(x.dtype, dy.dtype)
    s = "DHW"[-geometry.axes :]
    padding = [  # the last positions of x may have met no tap
        (low, spread(k, step) - 1 + spread(n, stride) - spread(m, base) - low)
        for m, k, n, (stride, (low, _), base, step) in zip(
            x.shape[1:-1], window, dy.shape[1:-1], zip(*geometry, strict=True), strict=True
        )
    ]
    return lax.conv_general_dilated(
        x.astype(narrow),
        dy.astype(narrow),
        window_strides=geometry.dilation,
        padding=padding,
        lhs_dilation=geometry.base_dilation,
        rhs_dilation=geometry.strides,
        dimension_numbers=(f"C{s}N", f"I{s}O", f"N{s}C"),
        batch_group_count=x.shape[-1],
        preferred_element_type=at_least_float32(narrow),
    )[0]


def _one_batch_axis(x, geometry):
    return x.reshape(math.prod(x.shape[: -geometry.axes - 1]), *x.shape[-geometry.axes - 1 :])
