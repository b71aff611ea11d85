"""The non-local block, with embedded Gaussians.

    α_ij = softmax_j(θ(x_i)ᵀ φ(x_j))
    y_i  = x_i + BN(W_z Σ_j α_ij g(x_j))

with 1×1 convolutions θ, φ and g from c to c/2 features, W_z back to c and a batch norm BN whose scale begins at zero,
so that the block begins as the identity. Every position gathers from all others, near or far, what resembles it.

Differs from the paper: nothing. `scale` multiplies the products, which the paper's equation does not: by (c/2)^(-1/2)
in the authors' code, by c^(-1/2) in timm. `subsample` max-pools what φ and g see, the authors' 2×2 pooling. Without
`norm` it is W_z that begins at zero. Of the paper's four pairwise functions this is the default one.

Errors elsewhere: timm scales by the channels of the input, where the authors' code takes those of θ, and does not pool.

Source: Wang, Girshick, Gupta and He, "Non-local Neural Networks" (2018), arXiv:1711.07971. Confirmed with the authors'
code.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, hidden_width, promote
from attn_flax.mechanisms.spatial.self_attention_2d import self_attention_2d, self_attention_2d_weights

Scale = Literal["none", "hidden", "channels"]


def non_local_weights(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, *, scale: float = 1.0
) -> Float[Array, "*b n m"]:
    """α, a row for each position and a column for each one it attends to, both in row-major order.

    Args:
        x: maps.
        query: θ, any callable on (*b, h, w, c).
        key: φ, likewise; it may give a smaller map.
        scale: of the products.

    Raises:
        InputError: one example's map α would take more than 1 GiB.
    """
    return self_attention_2d_weights(x, query, key, scale=scale)[..., 0, :, :]


def non_local(
    x: Float[Array, "*b h w c"],
    query: Callable,
    key: Callable,
    value: Callable,
    project: Callable,
    *,
    scale: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """y_i = x_i + project(Σ_j α_ij value(x_j)), with the α of `non_local_weights`.

    Args:
        x: maps.
        query: θ.
        key: φ.
        value: g, which gives a map of the size of the keys'.
        project: W_z and what follows it, any callable on the map of values to (*b, h, w, c).
        scale: of the products.

    >>> same = lambda x: x
    >>> non_local(jnp.array([[[1.0], [3.0]]]), lambda x: 0 * x, same, same, same)
    Array([[[3.],
            [5.]]], dtype=float32)
    """
    return x + project(self_attention_2d(x, query, key, value, scale=scale))


class NonLocal(nnx.Module):
    """The non-local block on maps of any size.

    Parameters: 4c·hidden + 3·hidden + c, and 2c with the norm. Multiply-adds: 2(n + m)·c·hidden + 2n·m·hidden for the
    m of n positions that are left after pooling.

    Args:
        channels: c.
        reduction: what c is divided by; the paper's is 2, timm's 8.
        hidden: the features of θ, φ and g, by default ⌊c/reduction⌋ and at least 1; timm rounds to a multiple of 8.
        scale: of the products: "none" (the paper's equation), "hidden" for hidden^(-1/2) (the authors' code) or
            "channels" for c^(-1/2) (timm).
        subsample: the side of the windows that are max-pooled before φ and g; 2 in the authors' code.
        norm: whether a batch norm follows W_z.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an unknown scale at construction; at the call, an input that is no map of these
            channels or smaller than the pooled windows, or for `attention_map` a map of more than 1 GiB per example.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        hidden: int | None = None,
        scale: Scale = "none",
        subsample: int = 1,
        norm: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        check(scale in get_args(Scale), f"scale must be 'none', 'hidden' or 'channels', got {scale!r}.")
        check(subsample >= 1, f"subsample must be at least 1, got {subsample}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        zeros = nnx.initializers.zeros
        self.query = nnx.Linear(channels, hidden, **layer)
        self.key = nnx.Linear(channels, hidden, **layer)
        self.value = nnx.Linear(channels, hidden, **layer)
        self.project = nnx.Linear(hidden, channels, **layer, **({} if norm else {"kernel_init": zeros}))
        self.norm = nnx.data(BatchNorm(channels, scale_init=zeros, **layer) if norm else None)
        self.scale = {"none": 1.0, "hidden": hidden**-0.5, "channels": channels**-0.5}[scale]
        self.subsample = subsample

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n m"]:
        """α, a row for each position and a column for each one it attends to."""
        return non_local_weights(self._map(x), self.query, self._key, scale=self.scale)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return non_local(self._map(x), self.query, self._key, self._value, self._project, scale=self.scale)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        hidden, n, m = self.query.out_features, h * w, (h // self.subsample) * (w // self.subsample)
        norm = 0 if self.norm is None else 2 * c
        return Cost(4 * c * hidden + 3 * hidden + c + norm, 2 * (n + m) * c * hidden + 2 * n * m * hidden)

    def _key(self, x):
        return self.key(_max_pool(x, self.subsample))

    def _value(self, x):
        return self.value(_max_pool(x, self.subsample))

    def _project(self, y):
        z = self.project(y)
        return z if self.norm is None else self.norm(z)

    def _map(self, x):
        check_map(x, self.query.in_features)
        check(
            min(x.shape[-3:-1]) >= self.subsample,
            f"x must be a map of at least subsample × subsample = {self.subsample}×{self.subsample} positions, "
            f"got shape {x.shape}.",
        )
        return promote(x, self.query)


def _max_pool(x, size):
    """The largest of each window of size × size; what is left over at the end is dropped."""
    *b, h, w, c = x.shape
    rows, columns = h // size, w // size
    whole = x[..., : rows * size, : columns * size, :]
    return whole.reshape(*b, rows, size, columns, size, c).max((-4, -2))
