"""Double attention.

    G   = A softmax_hw(B)ᵀ
    z_i = G softmax_n(v_i)
    y   = W_z z

with the 1×1 convolutions A of x to c_m features, B to c_n maps and V to c_n weights v_i for each position i. B gathers
c_n descriptors of c_m features from the whole map, and each position takes its own mixture of them by v_i; no two
positions are ever compared.

Differs from the paper: nothing. `residual` adds x to y. c_m and c_n are c/4 each by default.

Errors elsewhere: External-Attention-pytorch takes both softmaxes over the batch, so that an example depends on its
batch mates; the code of the survey by Guo et al. takes that of V over positions, means instead of sums and no W_z;
other implementations take V's over positions, too.

Source: Chen, Kalantidis, Li, Yan and Feng, "A²-Nets: Double Attention Networks" (2018), arXiv:1810.11579. Stated from
the paper's equation, not compared with the authors' code.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote, reduced


def double_attention_weights(
    x: Float[Array, "*b h w c"], gather: Callable, distribute: Callable
) -> tuple[Float[Array, "*b m n"], Float[Array, "*b n m"]]:
    """The c_n maps that gather, each a softmax over the positions, and every position's weights of what was gathered.

    Args:
        x: maps.
        gather: B, any callable on (*b, h, w, c) to c_n features.
        distribute: V, likewise.
    """
    b, v = (flatten_positions(project(x), 2) for project in (gather, distribute))
    return ops.softmax(jnp.swapaxes(b, -1, -2)), ops.softmax(v)


def double_attention(
    x: Float[Array, "*b h w c"], feature: Callable, gather: Callable, distribute: Callable
) -> Float[Array, "*b h w e"]:
    """z, by the weights of `double_attention_weights`; `feature` is A, any callable on (*b, h, w, c).

    It is what `ops.efficient_attention` computes with the queries V, the keys B and the values A.

    >>> x = jnp.array([[[1.0], [3.0]]])
    >>> double_attention(x, lambda x: x, lambda x: 0 * x, lambda x: 0 * x)
    Array([[[2.],
            [2.]]], dtype=float32)
    """
    a, b, v = (flatten_positions(project(x), 2)[..., None, :] for project in (feature, gather, distribute))
    return ops.efficient_attention(v, b, a).reshape(*x.shape[:-1], -1)


class DoubleAttention(nnx.Module):
    """Double attention on maps of any size.

    Parameters: (c + 1)(c_m + 2c_n) + (c_m + 1)c. Multiply-adds: n·c·(2c_m + 2c_n) + 2n·c_m·c_n.

    Args:
        channels: c.
        reduction: what c is divided by for c_m and c_n.
        c_m: the features of a descriptor, by default ⌊c/reduction⌋ and at least 1.
        c_n: how many descriptors are gathered, by default the same.
        residual: whether x is added.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        c_m: int | None = None,
        c_n: int | None = None,
        residual: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = reduced(channels, reduction)
        c_m, c_n = (width if size is None else size for size in (c_m, c_n))
        check(c_m >= 1, f"c_m must be at least 1, got {c_m}.")
        check(c_n >= 1, f"c_n must be at least 1, got {c_n}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.feature = nnx.Linear(channels, c_m, **layer)
        self.gather = nnx.Linear(channels, c_n, **layer)
        self.distribute = nnx.Linear(channels, c_n, **layer)
        self.project = nnx.Linear(c_m, channels, **layer)
        self.residual = residual

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """The maps that "gather", (*b, c_n, n), and the weights that "distribute", (*b, n, c_n)."""
        gather, distribute = double_attention_weights(self._map(x), self.gather, self.distribute)
        return {"gather": gather, "distribute": distribute}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        y = self.project(double_attention(x, self.feature, self.gather, self.distribute))
        return x + y if self.residual else y

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *positions, c = shape
        n, c_m, c_n = math.prod(positions), self.feature.out_features, self.gather.out_features
        return Cost((c + 1) * (c_m + 2 * c_n) + (c_m + 1) * c, 2 * n * c * (c_m + c_n) + 2 * n * c_m * c_n)

    def _map(self, x):
        check_map(x, self.feature.in_features)
        return promote(x, self.feature)
