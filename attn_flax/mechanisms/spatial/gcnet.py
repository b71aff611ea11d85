"""Global context.

    α = softmax over all positions j of w_kᵀ x_j
    z = Σ_j α_j x_j
    y_i = x_i + W_2 relu(LN(W_1 z))

with w_k one query for all positions, W_1 from c to c/r features, LN a layer norm over them and W_2 back. It is the
non-local block with one map for all queries: a weighted mean of the whole map is transformed and added to every
position.

Differs from the paper: nothing. `fuse_scale` multiplies x by the sigmoid of such a transform, before or instead of the
sum (in the authors' code, and timm's "gc"); without `use_attention` all α are equal. The last layers begin at zero, so
that the sum begins as the identity and the gate at 1/2.

Errors elsewhere: timm's "gc" is by default the gate and not the paper's sum, which is called "gca"; its
`init_last_zero` is never read.

Source: Cao, Xu, Lin, Wei and Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond" (2019),
arXiv:1904.11492. Confirmed with the authors' code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm
from attn_flax.mechanisms.layout import check_map, flatten_positions, hidden_width, promote


def gcnet_weights(x: Float[Array, "*b h w c"], score: Callable) -> Float[Array, "*b h w"]:
    """α, which sums to one over the map.

    Args:
        x: maps.
        score: x_j -> w_kᵀ x_j, any callable from (*b, h, w, c) to (*b, h, w, 1).
    """
    scores = flatten_positions(score(x), 2)
    return ops.softmax(jnp.swapaxes(scores, -1, -2)).reshape(x.shape[:-1])


def gcnet(
    x: Float[Array, "*b h w c"], score: Callable, *, add: Callable | None = None, scale: Callable | None = None
) -> Float[Array, "*b h w c"]:
    """y_i = x_i · sigmoid(scale(z)) + add(z), without the part that is not given; z = Σ_j α_j x_j by `gcnet_weights`.

    Args:
        x: maps.
        score: as of `gcnet_weights`.
        add: z -> W_2 relu(LN(W_1 z)), any callable on (*b, c).
        scale: another one.

    >>> gcnet(jnp.array([[[1.0], [3.0]]]), lambda x: 0 * x, add=lambda z: 10 * z)
    Array([[[21.],
            [23.]]], dtype=float32)
    """
    wide = ops.at_least_float32(x.dtype)
    z = jnp.einsum("...hw,...hwc->...c", gcnet_weights(x, score), x, preferred_element_type=wide)
    z = z.astype(x.dtype)[..., None, None, :]
    if scale is not None:
        x = x * jax.nn.sigmoid(scale(z))
    return x if add is None else x + add(z)


class Transform(nnx.Module):
    """W_2 relu(LN(W_1 z)), zero at first.

    Parameters: 2c·hidden + 3·hidden + c.

    Args:
        channels: c.
        hidden: the features between the layers.
        epsilon: of the layer norm.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        epsilon: float,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.reduce = nnx.Linear(channels, hidden, **layer)
        self.norm = LayerNorm(hidden, epsilon=epsilon, **layer)
        self.expand = nnx.Linear(hidden, channels, kernel_init=nnx.initializers.zeros, **layer)

    def __call__(self, z: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """The features on the last axis transformed."""
        return self.expand(jax.nn.relu(self.norm(self.reduce(z))))

    def cost(self) -> Cost:
        """For one vector."""
        c, hidden = self.reduce.in_features, self.reduce.out_features
        return Cost(2 * c * hidden + 3 * hidden + c, 2 * c * hidden)


class GlobalContext(nnx.Module):
    """Global context of maps of any size.

    Parameters: c + 1 for the attention, 2c·hidden + 3·hidden + c for each of sum and gate. Multiply-adds: 2n·c for
    attention and mean, 2c·hidden for each of sum and gate.

    Args:
        channels: c.
        reduction: r; the paper reports 16 and 4, timm's is 8.
        hidden: the features between the layers, by default ⌊c/r⌋ and at least 1.
        fuse_add: whether W_2 relu(LN(W_1 z)) is added.
        fuse_scale: whether x is multiplied by the sigmoid of another transform first.
        use_attention: whether z is weighted by α; otherwise it is the mean.
        epsilon: of the layer norm; timm's is 1e-6.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: neither sum nor gate, a size below 1 or an epsilon that is not positive at construction; an input
            that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        fuse_add: bool = True,
        fuse_scale: bool = False,
        use_attention: bool = True,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        check(fuse_add or fuse_scale, "fuse_add or fuse_scale must be true, got neither.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.score = nnx.data(nnx.Linear(channels, 1, **layer) if use_attention else None)
        self.add = nnx.data(Transform(channels, hidden, epsilon=epsilon, **layer) if fuse_add else None)
        self.scale = nnx.data(Transform(channels, hidden, epsilon=epsilon, **layer) if fuse_scale else None)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w"]:
        """α, a weight for each position; without attention all are the same."""
        return gcnet_weights(self._map(x), self._score)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return gcnet(self._map(x), self._score, add=self.add, scale=self.scale)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        transforms = [transform.cost() for transform in (self.add, self.scale) if transform is not None]
        return Cost(
            (0 if self.score is None else c + 1) + sum(transform.parameters for transform in transforms),
            (1 if self.score is None else 2) * h * w * c + sum(transform.multiply_adds for transform in transforms),
        )

    def _score(self, x):
        return jnp.zeros_like(x[..., :1]) if self.score is None else self.score(x)

    def _map(self, x):
        reduce = (self.add or self.scale).reduce
        check_map(x, reduce.in_features)
        return promote(x, reduce)
