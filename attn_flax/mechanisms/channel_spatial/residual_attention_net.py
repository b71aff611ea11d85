"""Residual attention module.

    x' = u_p(x)
    M = sigmoid(W_2 relu(BN(W_1 relu(BN(H_1(x'))))))
    y = u_p((1 + M) ∘ u_t(x'))

    H_s(z) = up(u_r(u_1(d) + H_{s+1}(d))),   d = u_r(max(z)),   s < S
    H_S(z) = up(u_2r(max(z)))

with u_n a chain of n residual units u(z) = z + W relu(BN(f relu(BN(V relu(BN(z)))))), V and W 1×1 convolutions to c/4
channels and back and f a 3×3 one between, all without biases; max the largest of 3×3 at every other position, and up
the bilinear interpolation, corners on corners, to the size of z. The mask sees the map on S coarser scales and scales
every entry of the trunk by a factor between 1 and 2, so that a stack of such modules can sharpen features but not
silence them.

Differs from the paper: nothing on maps of even sizes. The authors' framework begins its 3×3 windows at the first
position, the padding "SAME" used here does so on even sizes, and centres the windows on odd ones, down to a map of 1×1.

Errors elsewhere: a popular port adds the unpooled maps once more beside their residual units, and the trunk to the
mask's input, and builds a 1×1 convolution into every unit that it does not use; a collection has another method under
this name.

Source: Wang, Jiang, Qian, Yang, Li, Zhang, Wang and Tang, "Residual Attention Network for Image Classification" (2017),
arXiv:1704.06904; compared with the authors' Attention-56 for Caffe.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote, reduced


def hourglass(
    z: Float[Array, "*b h w c"], down: Sequence[Callable], skip: Sequence[Callable], up: Sequence[Callable]
) -> Float[Array, "*b h w c"]:
    """H(z), by callables on maps from the finest scale to the coarsest, of `skip` and `up` one fewer than of `down`.

    >>> hourglass(jnp.array([[[1.0], [3.0], [2.0], [7.0]]]), [lambda z: z], [], []).squeeze().round(2)
    Array([3.  , 4.33, 5.67, 7.  ], dtype=float32)
    """
    d = down[0](nnx.max_pool(z, (3, 3), (2, 2), "SAME"))
    if skip:
        d = up[0](skip[0](d) + hourglass(d, down[1:], skip[1:], up[1:]))
    return ops.resize_bilinear(d, z.shape[-3:-1], align_corners=True)


def residual_attention_net_weights(
    x: Float[Array, "*b h w c"], look: Callable, score: Callable
) -> Float[Array, "*b h w c"]:
    """M = sigmoid(score(look(x))), in (0, 1), one for each position and channel.

    Args:
        x: maps, x'.
        look: H_1, such as an `hourglass`.
        score: the two 1×1 convolutions with their norms.
    """
    return jax.nn.sigmoid(score(look(x)))


def residual_attention_net(
    x: Float[Array, "*b h w c"], trunk: Callable, look: Callable, score: Callable
) -> Float[Array, "*b h w c"]:
    """(1 + M) ∘ trunk(x), with the M of `residual_attention_net_weights` of the other arguments.

    >>> residual_attention_net(jnp.array([[[2.0, -4.0]]]), lambda x: x, lambda x: 0 * x, lambda x: x)
    Array([[[ 3., -6.]]], dtype=float32)
    """
    return (1 + residual_attention_net_weights(x, look, score)) * trunk(x)


class ResidualUnit(nnx.Module):
    """z + W relu(BN(f relu(BN(V relu(BN(z)))))), with m channels inside.

    Parameters: 2cm + 9m² + 2c + 4m.
    """

    def __init__(self, channels: int, hidden: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm_in = BatchNorm(channels, **layer)
        self.reduce = nnx.Linear(channels, hidden, use_bias=False, **layer)
        self.norm = BatchNorm(hidden, **layer)
        self.conv = nnx.Conv(hidden, hidden, (3, 3), use_bias=False, **layer)
        self.norm_out = BatchNorm(hidden, **layer)
        self.expand = nnx.Linear(hidden, channels, use_bias=False, **layer)

    def __call__(self, z: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map of the same size."""
        hidden = self.reduce(jax.nn.relu(self.norm_in(z)))
        hidden = self.conv(jax.nn.relu(self.norm(hidden)))
        return z + self.expand(jax.nn.relu(self.norm_out(hidden)))

    def cost(self, n: int) -> Cost:
        """For n positions."""
        c, m = self.reduce.in_features, self.reduce.out_features
        products = 2 * c * m + 9 * m * m
        return Cost(products + 2 * c + 4 * m, n * products)


class Chain(nnx.Module):
    """Modules, one after the other; none leave the map as it is."""

    def __init__(self, parts: Sequence[nnx.Module]):
        self.parts = nnx.List(parts)

    def __call__(self, z: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map of the same size."""
        for part in self.parts:
            z = part(z)
        return z


class ResidualAttention(nnx.Module):
    """The residual attention module of maps of any size.

    Parameters: those of p + t + `after` + 2r·S + S-1 units, each 17/16·c² + 3c with r = 4, and 2c² + 4c. Multiply-adds:
    those of the units, 17/16·c² for each position of their scale, and 2c² for each position of x.

    Args:
        channels: c.
        p: units before trunk and mask divide.
        t: units of the trunk.
        r: units of the mask between two changes of scale.
        steps: S, how often the mask is pooled; in the paper's three stages 3, 2 and 1.
        after: units after the two meet, in the paper p; 0 for (1 + M) ∘ u_t alone.
        reduction: by which a unit narrows.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, or p or after below 0, at construction; an input that is no map of these channels at
            the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        p: int = 1,
        t: int = 2,
        r: int = 1,
        steps: int = 3,
        after: int = 1,
        reduction: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        for name, least, number in (("p", 0, p), ("t", 1, t), ("r", 1, r), ("steps", 1, steps), ("after", 0, after)):
            check(number >= least, f"{name} must be at least {least}, got {number}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def units(number):
            return Chain([ResidualUnit(channels, hidden, **layer) for _ in range(number)])

        self.before = units(p)
        self.trunk = units(t)
        self.down = nnx.List([units(r if s < steps - 1 else 2 * r) for s in range(steps)])
        self.skip = nnx.List([units(1) for _ in range(steps - 1)])
        self.up = nnx.List([units(r) for _ in range(steps - 1)])
        self.norm_in = BatchNorm(channels, **layer)
        self.mix = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.norm = BatchNorm(channels, **layer)
        self.score = nnx.Linear(channels, channels, use_bias=False, **layer)
        self.after = units(after)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """M, in the layout of x."""
        return residual_attention_net_weights(self.before(self._map(x)), self._look, self._score)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return self.after(residual_attention_net(self.before(self._map(x)), self.trunk, self._look, self._score))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        chains = [(h * w, chain) for chain in (self.before, self.trunk, self.after)]
        for scale, at_scale in enumerate(zip_longest(self.down, self.skip, self.up), start=1):
            n = -(-h // 2**scale) * -(-w // 2**scale)
            chains += [(n, chain) for chain in at_scale if chain is not None]
        units = [unit.cost(n) for n, chain in chains for unit in chain.parts]
        return Cost(
            sum(unit.parameters for unit in units) + 2 * c * c + 4 * c,
            sum(unit.multiply_adds for unit in units) + h * w * 2 * c * c,
        )

    def _look(self, z):
        return hourglass(z, tuple(self.down), tuple(self.skip), tuple(self.up))

    def _score(self, z):
        return self.score(jax.nn.relu(self.norm(self.mix(jax.nn.relu(self.norm_in(z))))))

    def _map(self, x):
        check_map(x, self.mix.in_features)
        return promote(x, self.mix)
