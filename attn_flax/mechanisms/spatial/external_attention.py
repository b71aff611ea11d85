"""External attention.

    A~ = softmax over the positions of F M_kᵀ
    A  = A~ / (ε + the sum of A~ over the S units)
    y  = A M_v

with F the n×c map or tokens and two memories M_k and M_v of S units each, learned and the same for all examples. Every
position is compared with the units and not with other positions, so the cost is linear in their number; normalising
twice keeps the size of a position's features from deciding how much it takes.

Differs from the paper: nothing; ε is the authors' code's. With `block` it stands, as there, between two 1×1
convolutions, the second one followed by a batch norm, and relu(x + …) comes last.

Errors elsewhere: External-Attention-pytorch divides by the sum without ε; the code of the survey by Guo et al. begins
with M_v as a copy of M_k. So do the authors, who then draw both anew: the memories are two.

Source: Guo, Liu, Mu and Hu, "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks"
(2021), arXiv:2105.02358. Confirmed with the authors' code.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_channels, flatten_positions, promote


def external_attention_weights(
    x: Float[Array, "*b n c"], key_memory: Float[Array, "s c"], *, epsilon: float = 1e-9
) -> Float[Array, "*b n s"]:
    """A, each position's weights of the units; they sum to d / (d + ε), with d the position's sum of A~.

    Args:
        x: F.
        key_memory: M_k.
        epsilon: ε.
    """
    wide = ops.at_least_float32(x.dtype)
    scores = jnp.einsum("...nc,sc->...ns", x, key_memory, preferred_element_type=wide)
    over_positions = jax.nn.softmax(scores, axis=-2)
    return (over_positions / (epsilon + over_positions.sum(-1, keepdims=True))).astype(x.dtype)


def external_attention(
    x: Float[Array, "*b n c"],
    key_memory: Float[Array, "s c"],
    value_memory: Float[Array, "s e"],
    *,
    epsilon: float = 1e-9,
) -> Float[Array, "*b n e"]:
    """y = A M_v, with the A of `external_attention_weights`; `value_memory` is M_v.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> external_attention(x, jnp.zeros((3, 2)), jnp.array([[1.0], [2.0], [6.0]]))  # no unit stands out
    Array([[3.],
           [3.]], dtype=float32)
    """
    weights = external_attention_weights(x, key_memory, epsilon=epsilon)
    return jnp.einsum("...ns,se->...ne", weights, value_memory).astype(x.dtype)


class ExternalAttention(nnx.Module):
    """External attention of the positions of a map.

    Parameters: 2c·S, and 2c² + 3c with the block. Multiply-adds: 2n·c·S, and 2n·c² with the block.

    Args:
        channels: c.
        units: S, of each memory.
        epsilon: ε, added to the sum of a position's weights.
        block: whether it stands in the authors' block of convolutions, batch norm and residual.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, or an epsilon that is not positive, at construction; channels or axes that do not
            fit at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        units: int = 64,
        epsilon: float = 1e-9,
        block: bool = False,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(units >= 1, f"units must be at least 1, got {units}.")
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        key_init, value_init = (
            nnx.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=i, out_axis=o)
            for i, o in ((1, 0), (0, 1))
        )
        self.key_memory = nnx.Param(key_init(rngs.params(), (units, channels), param_dtype))
        self.value_memory = nnx.Param(value_init(rngs.params(), (units, channels), param_dtype))
        self.before = nnx.data(nnx.Linear(channels, channels, **layer) if block else None)
        self.after = nnx.data(nnx.Linear(channels, channels, use_bias=False, **layer) if block else None)
        self.norm = nnx.data(BatchNorm(channels, **layer) if block else None)
        self.epsilon = epsilon
        self.num_spatial_dims = num_spatial_dims
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b n s"]:
        """A, a row for each position, in row-major order, and a column for each unit."""
        seen = self._seen(self._positions(x))
        return external_attention_weights(seen, self.key_memory[...].astype(seen.dtype), epsilon=self.epsilon)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        tokens = self._positions(x)
        memories = (memory[...].astype(tokens.dtype) for memory in (self.key_memory, self.value_memory))
        y = external_attention(self._seen(tokens), *memories, epsilon=self.epsilon)
        if self.norm is not None:
            y = jax.nn.relu(tokens + self.norm(self.after(y)))
        return y.reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n, units = math.prod(positions), len(self.key_memory)
        parameters, multiply_adds = (0, 0) if self.norm is None else (2 * c * c + 3 * c, 2 * n * c * c)
        return Cost(2 * c * units + parameters, 2 * n * c * units + multiply_adds)

    def _seen(self, tokens):
        """What the memories are compared with."""
        return tokens if self.before is None else self.before(tokens)

    def _positions(self, x):
        check_channels(x, self.key_memory.shape[-1])
        return flatten_positions(promote(x, self), self.num_spatial_dims)
